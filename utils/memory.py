"""Whether a run fits into the memory of its device, found out before it starts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from utils.checkpoint import shapes_of
from utils.config import KimiConfig, TrainConfig
from utils.cost import FP32, kept_bytes, plan
from utils.model import Kimi

GIGA = 1e9
SHORT = 256  # tokens of a window that is run to see what it keeps
# Of what the forward pass keeps, the most that a step holds, with gradients on their way and the allocator's gaps:
# measured 1.7 to 2.1 on a CPU, 1.04 to 1.08 on an H100 (docs/measured.md).
BACKWARD = {"cpu": 2.1, "cuda": 1.1}
CGROUP_LIMIT, CGROUP_USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a program may still take on a device; None where nobody says it."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, of freed tensors
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
        with contextlib.suppress(OSError, ValueError):  # a container may be allowed less than the machine has
            free = min(free, int(CGROUP_LIMIT.read_text()) - int(CGROUP_USED.read_text()))
        return free
    return None


def refuse_too_large(config: KimiConfig, device: torch.device) -> None:
    """Raise MemoryError, in one sentence, where not even the weights of a model can be trained; it is not made yet."""
    free, n = free_bytes(device), sum(tensor.numel() for tensor in shapes_of(config).values())
    needed = 3 * FP32 * n  # weights, gradients and one average
    if free is not None and needed > free:
        raise MemoryError(f"a model of {n:,} parameters takes {needed / GIGA:,.1f} GB with its gradients and Muon's "
                          f"average; {free / GIGA:.1f} GB are free: take a smaller model")  # fmt: skip


def refuse_too_much(model: Kimi, config: TrainConfig, number_format: str, n_ranks: int = 1) -> None:
    """Raise MemoryError, in one sentence, where a run will not fit beside its model, which is there already.

    n_ranks: processes that share its windows, and the memory of a CPU.
    """
    free = free_bytes(model.device)
    if free is None:
        return
    if model.device.type == "cpu":
        free //= n_ranks
    weights = sum(p.nbytes for p in model.parameters())
    held = plan(model, config).bytes - weights  # gradients and optimizer
    always, per_window = activations(model, config.block_size, number_format)
    if held + always + config.batch_size // n_ranks * per_window > free:
        raise MemoryError(_sentence(config, held + always, per_window, free, n_ranks))


def activations(model: Kimi, block_size: int, number_format: str) -> tuple[int, int]:
    """Bytes of a step in any case, and for each window, besides gradients and optimizer.

    What the forward pass keeps is measured on one and two short windows, and BACKWARD of it is taken.
    A window's share grows with its length, and in attention with the square: a T + b T^2 goes through two of them.
    """
    if block_size <= 2 * SHORT:
        return _measured(model, block_size, number_format)
    (always, one), (_, two) = (_measured(model, n * SHORT, number_format) for n in (1, 2))
    square, n = (two - 2 * one) / 2, block_size / SHORT
    return always, int((one - square) * n + square * n**2)


def _measured(model: Kimi, block_size: int, number_format: str) -> tuple[int, int]:
    one, two = (kept_bytes(model, n, block_size, number_format) for n in (1, 2))
    return max(0, 2 * one - two), int(BACKWARD[model.device.type] * (two - one))


def _sentence(config: TrainConfig, always: int, per_window: int, free: int, n_ranks: int) -> str:
    windows, fits = config.batch_size // n_ranks, (free - always) // max(1, per_window) * n_ranks
    way_out = f"a batch_size of {fits} fits" if fits > 0 else "not even a batch_size of 1 fits: take a smaller model"
    each = f" in each of {n_ranks} processes" if n_ranks > 1 else ""
    needed = f"training takes {(always + windows * per_window) / GIGA:.1f} GB{each}"
    parts = f"{always / GIGA:.1f} of them for gradients, optimizer and what any batch needs"
    rest = f"the rest for {windows} windows of {config.block_size} tokens"
    return f"{needed}, {parts}, {rest}; {free / GIGA:.1f} GB are free: {way_out}"


@contextlib.contextmanager
def told_out_of_memory(model: Kimi, config: TrainConfig) -> Iterator[None]:
    """In it, a device that is full is one sentence, a MemoryError."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it plainly
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        full = f"the memory of {model.device} is full with {config.batch_size} windows of {config.block_size} tokens"
        smaller = f"batch_size {config.batch_size // 2} with accumulation {2 * config.accumulation}"
        way_out = f"{smaller} computes the same with about half of it"
        if config.batch_size == 1:
            way_out = "take a smaller block_size or a smaller model"
        raise MemoryError(f"{full}: {way_out}; the last checkpoint is kept") from error
