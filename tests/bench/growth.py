"""How cost grows, as `python -m tests.bench` measures it: experts, block size, position, batch."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

from tests.bench.measure import child, seconds, shown
from tests.bench.rows import our_step
from tests.bench.shapes import shape, tokens
from utils.decoding import Decoder
from utils.model import Kimi


@dataclass(frozen=True)
class Curve:
    """One figure at several sizes, each measured in turn with the others."""

    title: str
    sizes: list[str]
    values: list[float]
    unit: str

    def table(self) -> str:
        cells = " | ".join(map(shown, self.values))
        head = f"| | {' | '.join(self.sizes)} |\n|---|{'---|' * len(self.sizes)}"
        return f"{self.title}\n\n{head}\n| {self.unit} | {cells} |"

    def to_dict(self) -> dict:
        return asdict(self)


def medians(actions: list[Callable[[], object]], rounds: int, warm_up: int = 2) -> list[float]:
    """Median seconds of each action, all in turn in each round."""
    times = [[seconds(action) for action in actions] for _ in range(warm_up + rounds)][warm_up:]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def experts(number_format: str) -> Curve:
    """Training tokens/s of the laptop model, without optimizer, with more and more experts, two for each token."""
    sizes, x, y = [4, 8, 16, 32, 64], *tokens(64, 128)
    steps = [our_step(Kimi(shape("laptop", n_experts=n)), x, y, number_format) for n in sizes]
    rates = [x.numel() / t for t in medians(steps, 7)]
    return Curve("Training against the number of experts, top-2 (laptop, 64 x 128, forward and backward)",
                 [f"{n} experts" for n in sizes], rates, "tokens/s")  # fmt: skip


def block(number_format: str) -> Curve:
    """Training step of the laptop model on 4,096 tokens in windows of different lengths."""
    sizes = [64, 128, 256, 512, 1024]
    steps = []
    for length in sizes:
        x, y = tokens(4096 // length, length)
        steps.append(our_step(Kimi(shape("laptop", block_size=length)), x, y, number_format))
    times = [1000 * t for t in medians(steps, 7)]
    return Curve("Training step against block size (laptop, 4,096 tokens, forward and backward)",
                 [f"T = {n}" for n in sizes], times, "ms")  # fmt: skip


def position(number_format: str) -> Curve:
    """Time of one token in generation, late in the block."""
    ends = [64, 256, 512, 1024]
    decoder = Decoder(Kimi(shape("k2", block_size=ends[-1])))
    x, _ = tokens(1, ends[-1])
    times = []
    for end in ends:

        def read(end=end) -> None:
            decoder.restart()
            decoder(x[:, : end - 32])

        def tell(end=end) -> None:
            for i in range(end - 32, end):
                decoder(x[:, i : i + 1])

        rounds = []
        for _ in range(5):
            read()
            rounds.append(seconds(tell))
        times.append(1000 * statistics.median(rounds[1:]) / 32)
    return Curve(f"Generation against position (k2 with a block of 1,024, one story, {decoder.number_format})",
                 [f"{end - 32} to {end}" for end in ends], times, "ms a token")  # fmt: skip


def batch(number_format: str) -> Curve:
    """Peak memory of a training step of k2 without optimizer."""
    sizes = [2, 4, 8, 16, 32]
    peaks = [child("tests.bench.peak", "ours", number_format, str(n)) / 2**20 for n in sizes]
    return Curve("Peak memory of training against batch (k2, T = 256, weights and gradients included)",
                 [f"batch {n}" for n in sizes], peaks, "MB")  # fmt: skip


CURVES = {"experts": experts, "block": block, "position": position, "batch": batch}
