"""How a notebook starts several processes: real ones, as torchrun does, and pretended ones for exercises.

The real ones compute on the CPU, on a machine with a GPU as well: two processes would need two GPUs.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from utils.course.colab import HOME

PATIENCE = 300  # seconds that a launch may take
WAIT = 30.0  # seconds that a pretended process waits for the others


def launch(n: int, program: object, *arguments: object) -> str:
    """Run a program with its arguments as n processes; what they printed.

    program: a script, `-m` with the name of a module as first argument, or a function, which must import all that it
    uses and gets its arguments as text. It is `torchrun --nproc-per-node n --standalone`, with one thread for each
    process and no GPU. Raises RuntimeError with the end of what they printed where one of them fails.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as printed,
    ):
        if callable(program):
            program = as_file(program, Path(folder))
        status = start(n, (program, *arguments), printed).wait(PATIENCE)
        lines = read_lines(printed)
    if status:
        raise RuntimeError(f"the processes ended with status {status}:\n" + "\n".join(lines[-60:]))
    return "\n".join(lines)


def as_file(program: Callable, folder: Path) -> Path:
    """A function as a file that calls it with the arguments of the command line.

    What it prints is written at its end, in one go: lines of two processes would else run into each other.
    """
    source = textwrap.dedent(inspect.getsource(program))
    whole = "sys.stdout.reconfigure(line_buffering=False, write_through=False)"
    call = f"{program.__name__}(*sys.argv[1:])\nleave()"
    path = folder / f"{program.__name__}.py"
    path.write_text(f"import sys\n\nfrom utils.ranks import leave\n\n\n{source}\n\n{whole}\n{call}\n", encoding="utf-8")
    return path


def launch_and_kill(n: int, *arguments: object, rank: int, when: Callable[[], bool]) -> tuple[int, str]:
    """`launch`, and end the process of this rank without warning as soon as `when()` holds: (status, printed)."""
    with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as printed:
        torchrun = start(n, arguments, printed)
        while not when():
            if torchrun.poll() is not None:
                raise RuntimeError("the processes ended before one was killed:\n" + "\n".join(read_lines(printed)))
            time.sleep(0.02)
        os.kill(children(torchrun.pid)[rank], 9)
        return torchrun.wait(PATIENCE), "\n".join(read_lines(printed))


def start(n: int, arguments: tuple, printed) -> subprocess.Popen:
    """torchrun with n processes, whose output goes into a file."""
    first, *rest = map(str, arguments)
    # behind --, torchrun takes no option of ours for one of its own
    ours = ["-m", "--", *rest] if first == "-m" else ["--", first, *rest]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), "--standalone", *ours]
    settings = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOME), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env={**os.environ, **settings}, stdout=printed, stderr=subprocess.STDOUT)


def read_lines(printed) -> list[str]:
    """The lines of a file from its beginning, those that a progress bar wrote over left out."""
    printed.seek(0)
    return [line.rpartition("\r")[2] for line in printed.read().strip().split("\n")]


def children(parent: int) -> list[int]:
    """The processes that this one has started, the first one first."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in table.splitlines()]
    return sorted(pid for pid, its_parent in pairs if its_parent == parent)


def pretend(n: int, work: Callable[[int, Callable], Any], patience: float = WAIT) -> list:
    """What `work(rank, all_reduce)` returns in each of n pretended processes, which are threads of this one.

    all_reduce(tensor or number) waits until all have called it and gives each the sum. Raises TimeoutError where a
    process waits longer than `patience` seconds for others, and otherwise the first error of any.
    """
    given, results, errors = [None] * n, [None] * n, []
    meeting = threading.Barrier(n, timeout=patience)

    def run(rank: int) -> None:
        def all_reduce(value):
            given[rank] = torch.as_tensor(value).detach().clone()
            meeting.wait()
            total = sum(given[1:], start=given[0].clone())  # in the same order in each
            meeting.wait()  # nobody writes into the next one before all have read this one
            return total

        try:
            results[rank] = work(rank, all_reduce)
        except Exception as error:
            errors.append(error)
            meeting.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    broken = [error for error in errors if isinstance(error, threading.BrokenBarrierError)]
    if len(broken) < len(errors):
        raise next(error for error in errors if error not in broken)
    if broken:
        raise TimeoutError("a process waits in all_reduce for another that never comes there")
    return results
