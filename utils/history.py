"""What a run has done, step by step: for people and figures to read, nothing depends on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from utils.files import check_kinds, read_json, write_text


@dataclass
class History:
    """What a run has done: `losses` of every step, and `rows`, one for each validation."""

    losses: list[float] = field(default_factory=list)
    rows: list[dict] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)

    def save(self, path: str | Path) -> None:
        write_text(path, json.dumps({"losses": self.losses, "rows": self.rows}))  # an indent takes 350 bytes a step

    @classmethod
    def load(cls, path: str | Path) -> History:
        """What `save` wrote. Raises FileNotFoundError where there is none, ValueError where it is something else."""
        state = read_json(Path(path))
        check_kinds(state, {"losses": list, "rows": list}, f"{path}: ")
        return cls(state["losses"], state["rows"])
