"""The processes of one run: which of them this one is, and what they tell each other.

A process that runs alone is the first of one, and everything here gives back what it got. How processes find each other
is torchrun's business.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from utils.record import Record

LAST_WORDS = 1  # seconds in which a process that ends may say why, before those who miss it say that it has gone


class RankLost(RuntimeError):
    """Another process of the run has ended, and this one cannot go on without it."""


class AlreadyTold(RuntimeError):
    """What went wrong was said by another process."""


class Ranks:
    """The processes of a run, counted from 0; those of torch.distributed, or this one alone."""

    def __init__(self):
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """Of n things those that belong to this process. Raises ValueError where they cannot be shared out evenly."""
        if n % self.size:
            raise ValueError(f"batch_size is {n}, on {self.size} processes it must be a multiple of {self.size}")
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, on each of them."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, on each of them."""
        return self.sum(values) / self.size

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in some process. On a GPU too it passes through the CPU: no wait."""
        return self._reduced(torch.tensor(flags, dtype=torch.int32), dist.ReduceOp.MAX).bool().tolist()

    def of_first(self, number: int) -> int:
        """The number that the first process has, on each of them."""
        return self.sum(torch.tensor(int(number) if self.is_first else 0)).item()  # a bool would be of another size

    def join_(self, record: Record) -> None:
        """Let the record of a step say what the forwards of all processes left behind: loads, largest logits."""
        if self.size == 1:
            return
        layers = [record.layers[i] for i in sorted(record.layers)]
        for name, how in (("load", dist.ReduceOp.SUM), ("max_logits", dist.ReduceOp.MAX)):
            noted = [layer for layer in layers if getattr(layer, name) is not None]
            if noted:
                together = self._reduced(torch.stack([getattr(layer, name) for layer in noted]), how)
                for layer, values in zip(noted, together, strict=True):
                    setattr(layer, name, values)

    def _reduced(self, values: torch.Tensor, how: dist.ReduceOp) -> torch.Tensor:
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values, how)
        return values

    def reseed(self, seed: int, step: int) -> None:
        """Give each process its own chance for this step, from seed, step and rank alone; alone it keeps what it has.

        So dropout differs from process to process, and a run that goes on draws what it would have drawn.
        """
        if self.size > 1:
            torch.manual_seed(hash((seed, step, self.rank)) % 2**63)  # of whole numbers, so the same everywhere

    @contextlib.contextmanager
    def first_first(self) -> Iterator[None]:
        """What stands in it is done by the first process, then by the others, who find what it left on the disk."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def wait(self) -> None:
        """For all others to come here. It passes through the CPU: NCCL's own barrier would have to guess a GPU."""
        self.any(False)


def is_launched() -> bool:
    """Whether torchrun, or something that does as it does, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """In it the processes that torchrun has started know each other, and the first alone prints.

    device: of this process; what is on the CPU goes by gloo, what is on a GPU by NCCL. An error of one ends them all.
    The first that has something to say raises it, the others `AlreadyTold`; a process that has only lost another,
    RankLost. Without torchrun a process is alone. They know each other for the rest of their time: `leave` ends it.
    """
    if not is_launched():
        yield Ranks()
        return
    store, rank, size = next(rendezvous("env://"))
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)))
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)
    # torchrun asks those that are left to end as soon as one has: what happened must be said before
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        ranks = Ranks()
        with _silent(rank > 0):
            yield ranks
        ranks.wait()
    except Exception as error:
        if is_lost(error):
            time.sleep(LAST_WORDS)
            error = RankLost("another process of this run has ended")
        if store.add("told", 1) > 1:
            raise AlreadyTold from error
        raise error from None
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(status: int = 0) -> NoReturn:
    """End this process, one of several, with an exit status, and at once: neither torch nor Python clears up.

    gloo frees what was sent in threads of its own, a little after we have it, and needs Python for it. Where Python is
    being taken down meanwhile, torch aborts; where DDP, as the last that knows the other processes, is freed, it holds
    Python and waits for those threads, and they for Python.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(status)


@contextlib.contextmanager
def _silent(wanted: bool) -> Iterator[None]:
    """In it nothing is printed, and no warning shown."""
    if not wanted:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def is_lost(error: Exception) -> bool:
    """Whether torch raised it because another process does not answer."""
    told = isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL"))
    return told or isinstance(error, dist.DistError)


@contextlib.contextmanager
def told_lost(what_is_left: Callable[[], str]) -> Iterator[None]:
    """In it, another process that ended is one sentence, a RankLost."""
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        time.sleep(LAST_WORDS)
        raise RankLost(f"another process of this run has ended; {what_is_left()}") from error
