"""Evaluations of several runs side by side: a table to read, JSON to keep, a figure to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from utils.evaluate import Evaluation
from utils.files import write_text


NO_FAULT = "  none of these faults"


class Evaluated(NamedTuple):
    """A run and what was found."""

    step: int
    parameters: int
    active: int  # of them, for each token
    texts: str  # fingerprint of the texts that it was measured on: only numbers of the same texts compare
    judged_by_grammar: bool  # built-in stories: their grammar knows whether a story holds together
    found: Evaluation


def table(runs: dict[str, Evaluated]) -> str:
    """A row for each measure, a column for each run."""
    rows = {"": list(runs)}
    for run in runs.values():
        for name, value in _lines(run):
            rows.setdefault(name, []).append(value)
    left = max(map(len, rows))
    right = max(11, *map(len, runs))
    return "\n".join(f"{name:{left}}" + "".join(f"  {value:>{right}}" for value in row) for name, row in rows.items())


def _lines(run: Evaluated) -> list[tuple[str, str]]:
    found = run.found
    paid = found.dropped is not None
    faults = found.faults or {}
    return [
        ("steps of training", f"{run.step:,}"),
        ("parameters", f"{run.parameters / 1e6:.2f} M"),
        ("  active for each token", f"{run.active / 1e6:.2f} M"),
        ("bits per byte of the text", f"{found.bits_per_byte:.3f}" if paid else f">= {found.bits_per_byte:.3f}"),
        ("  of them for what words leave out", f"{found.dropped:.3f}" if paid else "not paid"),
        ("validation loss, nats per token", f"{found.loss:.3f}"),
        ("perplexity", f"{found.perplexity:,.2f}"),
        ("next token was the likeliest", f"{found.accuracy:.1%}"),
        ("experts that no token went to", f"{found.dead_experts:.1%}"),
        ("tokens read per second", f"{found.tokens_per_second:,.0f}"),
        ("told: coherent (built-in grammar)", f"{found.coherent:.1%}" if run.judged_by_grammar else "not judged"),
        ("  different words, of all told", f"{found.distinct[0]:.1%}"),
        ("  different pairs", f"{found.distinct[1]:.1%}"),
        ("  different triples", f"{found.distinct[2]:.1%}"),
        ("  repeated four-word sequences", f"{found.repetition:.1%}"),
        *((NO_FAULT if fault == "none" else f"  fault of {fault}", f"{share:.1%}") for fault, share in faults.items()),
    ]


def write_json(runs: dict[str, Evaluated], path: str | Path, settings: dict) -> None:
    """All figures, and the settings that they were measured with."""
    state = {name: {**run._asdict(), "found": run.found._asdict()} for name, run in runs.items()}
    write_text(path, json.dumps({"settings": settings, "runs": state}, indent=2))
