"""Which device computes, and in which number format.

bf16 keeps fp32's range and halves the traffic; GPUs have it from compute capability 8.0 on. A T4 (7.5) says that it
supports bf16 but emulates it, so there the format is fp16, whose small range needs a gradient scaler. On a CPU the
faster of fp32 and bf16 is taken, measured, since only CPUs with bf16 instructions gain from it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import time
from collections.abc import Iterator

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device() -> torch.device:
    """CUDA where there is one, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_number_format(device: torch.device, wanted: str = "auto") -> tuple[str, str]:
    """The number format for `device` and the reason in words. Raises ValueError for fp16 on a CPU."""
    if wanted == "fp16" and device.type == "cpu":
        raise ValueError("number_format is 'fp16', on a CPU it must be auto, fp32 or bf16")
    if wanted != "auto":
        return wanted, "as asked"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name = "bf16" if major >= 8 else "fp16"
        return name, f"compute capability {major}.{minor}, native bf16 begins at 8.0"
    if device.type == "cpu":
        ratio = _seconds(torch.float32) / _seconds(torch.bfloat16)
        name = "bf16" if ratio > 1.5 else "fp32"  # below that, casting costs what the matmul gains
        return name, f"a bf16 matmul is {ratio:.1f} x as fast as fp32 here"
    return "fp32", f"{device.type} trains in full precision"


@functools.cache  # a process does not change its mind
def _seconds(dtype: torch.dtype) -> float:
    """Best time of three to eight matmuls of the laptop model's size on the CPU.

    Eight where they are fast. The first one prepares its kernel, and any may be held up by other work, so none of them
    decides alone; a format that the processor lacks takes half a second for each.
    """
    x, w = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
    times = []
    while len(times) < 3 or (len(times) < 8 and sum(times) < 0.2):
        start = time.perf_counter()
        x @ w
        times.append(time.perf_counter() - start)
    return min(times)


def autocast(device: torch.device, number_format: str) -> torch.autocast:
    """Context in which matmuls run in `number_format` while the weights stay fp32."""
    return torch.autocast(device.type, DTYPES[number_format], enabled=number_format != "fp32")


def rng_state(device: torch.device) -> torch.Tensor | None:
    """The state of the device's own global generator; None for a CPU, whose generator torch.get_rng_state reads."""
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


def set_rng_state(device: torch.device, state: torch.Tensor | None) -> None:
    """Put back what `rng_state` read; nothing where there is no state, or the device has no generator of its own."""
    if state is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state.cpu(), device)
    elif state is not None and device.type == "mps":
        torch.mps.set_rng_state(state.cpu())


@contextlib.contextmanager
def fork_rng(device: torch.device) -> Iterator[None]:
    """What is drawn inside leaves the global random numbers outside as they were, on the CPU and on `device`.

    (torch.random.fork_rng knows no MPS.)
    """
    cpu_state, device_state = torch.get_rng_state(), rng_state(device)
    try:
        yield
    finally:
        torch.set_rng_state(cpu_state)
        set_rng_state(device, device_state)


def full_precision(device: torch.device) -> contextlib.AbstractContextManager:
    """Context in which autocast changes nothing. (The meta device has no autocast, and refuses to switch it off.)"""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The number format of a matmul with x: autocast's where it is on, else that of x."""
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where the C library can (glibc, so Linux); else do nothing.

    A training step on a CPU asks for the same hundreds of megabytes as the one before. By default glibc hands large
    blocks back to the system when they are freed, and every step then waits for the system to clear its pages anew:
    measured, 8 to 15 % of a step. For the rest of the process, its memory does not shrink any more.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold, largest = -1, -3, 2**31 - 1  # malloc.h
        if mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25):  # old ones refuse more than 32 MB
            mallopt(trim_threshold, largest)
