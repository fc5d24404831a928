"""Speed as ratios from one run: python -m tests.bench

Each row times ours and its peer in turn (A B A B ...), leaves out the first pair, and gives medians and the median of
the pairwise ratios.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch

from tests.helpers import every_expert_on_every_token
from utils.config import KimiConfig
from utils.model import Kimi
from utils.moe import Experts, SoftmaxRouter


def seconds(action: Callable[[], None]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(name: str, ours: Callable[[], None], peer: Callable[[], None], pairs: int) -> None:
    """Print one row of the table."""
    times = [(seconds(ours), seconds(peer)) for _ in range(pairs + 1)][1:]
    mine, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(b / a for a, b in times)
    print(f"| {name} | {mine * 1000:,.0f} ms | {theirs * 1000:,.0f} ms | {ratio:.2f} x |", flush=True)


def dispatch(pairs: int) -> None:
    """Forward and backward of one layer of 8 experts, top-2, on 2,048 tokens."""
    router, experts = SoftmaxRouter(512, 8, 2), Experts(8, 512, 1024)
    x = torch.randn(2048, 512)

    def run(form) -> None:
        experts.zero_grad()
        form(x, *router(x)).square().mean().backward()

    compare(
        "8 experts top-2 against every expert on every token, fp32, forward and backward",
        lambda: run(experts),
        lambda: run(lambda *given: every_expert_on_every_token(experts, *given)),
        pairs,
    )


@torch.inference_mode()
def cache(pairs: int) -> None:
    """256 tokens of the published nano size, greedy, one story."""
    model = Kimi(KimiConfig.nano(8000)).eval()

    def tell(with_cache: bool) -> None:
        ids = new = torch.zeros(1, 1, dtype=torch.long)  # (B, T)
        kept = model.new_cache()
        for _ in range(255):
            logits = model(new, cache=kept) if with_cache else model(ids)
            new = logits[:, -1:].argmax(-1)  # (B, 1)
            ids = torch.cat([ids, new], dim=1)

    compare("256 tokens with the cache against recomputing, nano", lambda: tell(True), lambda: tell(False), pairs)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    torch.set_num_threads(parser.parse_args().threads)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"{time.strftime('%Y-%m-%d')}, {machine}\n")
    print("| | ours | peer | ratio |\n|---|---|---|---|")
    dispatch(pairs=9)
    cache(pairs=3)


if __name__ == "__main__":
    main()
