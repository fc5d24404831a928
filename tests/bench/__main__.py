"""Speed and memory against peers, from one run: python -m tests.bench

Every row runs ours and its peer in turn (A B A B ...), leaves out the first pairs, and gives medians and the median of
the pairwise ratios. Writes speed.md and speed.json. Peers: the original notebook's form (dense), Hugging Face
transformers, torch's optimizers, the Rust tokenizers, and a plain matmul of the same FLOPs. 12 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from tests.bench import growth, rows
from tests.bench.measure import HEADER, machine
from utils.device import keep_freed_memory, pick_number_format

OUT = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    parser.add_argument("--only", nargs="+", choices=[*rows.ROWS, *growth.CURVES], help="some of the measurements")
    parser.add_argument("--out", type=Path, help=f"folder for the results (default: {OUT}, with --only none)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()  # peers profit as well
    number_format, _ = pick_number_format(torch.device("cpu"))
    chosen = args.only or [*rows.ROWS, *growth.CURVES]
    lines, measured, curves = [machine(number_format), "", HEADER], [], {}
    print("\n".join(lines), flush=True)

    def show(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    for name, measure in rows.ROWS.items():
        if name in chosen:
            for row in measure(number_format):
                measured.append(row.to_dict())
                show(row.line())
    for name, measure in growth.CURVES.items():
        if name in chosen:
            curves[name] = measure(number_format)
            show("\n" + curves[name].table())
    out = args.out or (None if args.only else OUT)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "speed.md").write_text("\n".join(lines) + "\n")
        content = {"machine": lines[0], "rows": measured, "growth": {k: c.to_dict() for k, c in curves.items()}}
        (out / "speed.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
