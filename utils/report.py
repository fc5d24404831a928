"""Evaluations of several runs side by side: a table to read, JSON to keep, a figure to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from utils.evaluate import Evaluation
from utils.files import write_text
from utils.judge import FAULT_LABELS

NOT_JUDGED = "not judged"


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
    columns = {name: _column(run) for name, run in runs.items()}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    left, right = max(map(len, names)), max(11, *map(len, runs))
    rows = [("", columns), *((name, [column.get(name, NOT_JUDGED) for column in columns.values()]) for name in names)]
    return "\n".join(f"{name:{left}}" + "".join(f"  {value:>{right}}" for value in row) for name, row in rows)


def _column(run: Evaluated) -> dict[str, str]:
    found = run.found
    paid = found.dropped is not None
    faults = found.faults or {}
    lines = [
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
        ("told: coherent (built-in grammar)", f"{found.coherent:.1%}" if run.judged_by_grammar else NOT_JUDGED),
        ("  different words, of all told", f"{found.distinct[0]:.1%}"),
        ("  different pairs", f"{found.distinct[1]:.1%}"),
        ("  different triples", f"{found.distinct[2]:.1%}"),
        ("  repeated four-word sequences", f"{found.repetition:.1%}"),
        *((f"  {FAULT_LABELS[fault]}", f"{share:.1%}") for fault, share in faults.items()),
    ]
    return dict(lines)


def write_json(runs: dict[str, Evaluated], path: str | Path, settings: dict) -> None:
    """All figures, and the settings that they were measured with."""
    state = {name: {**run._asdict(), "found": run.found._asdict()} for name, run in runs.items()}
    write_text(path, json.dumps({"settings": settings, "runs": state}, indent=2))
