"""What a GPU makes of the parts that have a way of their own there: python -m tests.bench.gpu

Newton-Schulz over all matrices of k2 in its `colab` size, by number format; a token of generation with and without the
recorded CUDA graph; a training step. Medians of 20, after 5 to warm up. Prints Markdown.
"""

from __future__ import annotations

import statistics
import time
from itertools import islice

import torch

from utils.config import KimiConfig
from utils.cost import plan, weight_bytes
from utils.decoding import Decoder
from utils.device import autocast
from utils.fast.newton_schulz import orthogonalise
from utils.generation import Sampling, sample
from utils.memory import activations
from utils.model import Kimi
from utils.muonclip import muon_parameters
from utils.presets import PRESETS
from utils.record import Record
from utils.training import make_optimizer

GPU = torch.device("cuda")
VOCABULARY = 6_000


def milliseconds(action, n: int = 20, warm_up: int = 5) -> float:
    """Median time of `action`, the GPU's work included."""
    times = []
    for _ in range(warm_up + n):
        torch.cuda.synchronize()
        started = time.perf_counter()
        action()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[warm_up:])


def newton_schulz(model: Kimi) -> None:
    """Its time in each number format, and how far the result is from that in fp64."""
    matrices = [torch.randn_like(p) * 1e-4 for p in muon_parameters(model)[0]]
    exact = torch.cat([m.flatten() for m in orthogonalise([m.double() for m in matrices])])
    for dtype in (None, torch.bfloat16, torch.float16):
        found = torch.cat([m.flatten() for m in orthogonalise(matrices, dtype)])
        error = ((found - exact).norm() / exact.norm()).item()
        spent = milliseconds(lambda dtype=dtype: orthogonalise(matrices, dtype))
        print(f"| Newton-Schulz in {dtype or 'torch.float32'} | {spent:.2f} ms | {error:.1e} from fp64 |", flush=True)


def training_step(architecture: str, number_format: str) -> None:
    preset = PRESETS[architecture]["colab"]
    config = preset.training
    model = Kimi(KimiConfig.small(architecture, VOCABULARY, **preset.model), seed=0).to(GPU)
    optimizer = make_optimizer(model, config, number_format)
    x = torch.randint(VOCABULARY, (config.batch_size, config.block_size), device=GPU)  # (B, T)

    def forward_backward(record: Record) -> None:
        with autocast(GPU, number_format):
            loss = model.loss(x, x, record) + model.config.balance_coef * (
                record.balance_loss() if model.config.balance_coef else 0.0
            )
        loss.backward()

    def step() -> None:
        record = Record()
        forward_backward(record)
        optimizer.step(record)
        optimizer.zero_grad()
        model.end_step_(record)

    always, per_window = activations(model, config.block_size, number_format)
    expected = plan(model, config).bytes + always + config.batch_size * per_window
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() - weight_bytes(model)
    whole, passes = milliseconds(step), milliseconds(lambda: forward_backward(Record()))
    used = (torch.cuda.max_memory_allocated() - before) / 1e9
    print(
        f"| {architecture}, memory in {number_format} | {used:.2f} GB | {expected / 1e9:.2f} GB computed before, "
        f"windows {config.batch_size * per_window / 1e9:.2f}, always {always / 1e9:.2f} |"
    )
    print(f"| {architecture}, a step in {number_format} | {whole:.1f} ms | forward and backward {passes:.1f} ms |",
          flush=True)  # fmt: skip


def generation(architecture: str) -> None:
    preset = PRESETS[architecture]["colab"]
    model = Kimi(KimiConfig.small(architecture, VOCABULARY, **preset.model), seed=0).to(GPU)
    for number_format in ("fp32", "bf16"):
        for graph in (True, False):
            decoder = Decoder(model, number_format)
            if not graph:
                restart = decoder.restart
                decoder.restart = lambda restart=restart, decoder=decoder: (
                    restart(), setattr(decoder, "_repeated", None), setattr(decoder, "cache", decoder.model.new_cache())
                )  # fmt: skip
            steps = sample(decoder, torch.tensor([[1, 2, 3]]), Sampling(), torch.Generator().manual_seed(0))
            spent = milliseconds(lambda steps=steps: next(islice(steps, 0, 1)), n=100)
            how = "graph" if graph else "kernel by kernel"
            print(f"| {architecture}, a token of generation in {number_format} | {spent:.2f} ms | {how} |", flush=True)


def main() -> None:
    print(f"{time.strftime('%Y-%m-%d')}, {torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| what | median | |\n|---|---|---|")
    for architecture in PRESETS:
        for number_format in ("bf16", "fp16", "fp32"):
            training_step(architecture, number_format)
        generation(architecture)
    newton_schulz(Kimi(KimiConfig.small("k2", VOCABULARY, **PRESETS["k2"]["colab"].model), seed=0).to(GPU))


if __name__ == "__main__":
    main()
