"""What a run can do without: its progress bar, its figure, a closed terminal. Their failures end no run."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TextIO, TypeVar

from tqdm.auto import tqdm

Thing = TypeVar("Thing")
Result = TypeVar("Result")


class Accessories:
    """Runs what may fail, and remembers what did: each is a warning once, and again at the end."""

    def __init__(self):
        self.failures: dict[str, str] = {}

    def attempt(self, name: str, action: Callable[[], Result], otherwise: Result | None = None) -> Result | None:
        """What `action` returns, `otherwise` where it fails, whatever the reason."""
        try:
            return action()
        except Exception as error:
            self.failed(name, error)
            return otherwise

    def failed(self, name: str, error: Exception) -> None:
        first = name not in self.failures
        self.failures[name] = f"{name}: {str(error).partition(chr(10))[0] or type(error).__name__}"
        if first:
            warnings.warn(f"training goes on without {self.failures[name]}", stacklevel=2)

    def mended(self, name: str) -> None:
        """What failed before has worked."""
        self.failures.pop(name, None)

    def remind(self) -> None:
        """Say again at the end what failed."""
        for line in self.failures.values():
            print(f"it was trained without {line}")


class Patient:
    """A stream that is written to as long as it takes anything: a closed pipe or terminal is no reason to stop."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: closed
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.stream.flush()

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """In it, printing does not fail."""
    with contextlib.redirect_stdout(Patient(sys.stdout)), contextlib.redirect_stderr(Patient(sys.stderr)):
        yield


Progress = Callable[[Iterable, str, int], Iterable]  # (what a long stage goes through, its name, how many at most)


def silent(things: Iterable[Thing], stage: str, most: int) -> Iterable[Thing]:
    """The progress that nobody sees: hands the things on as they are."""
    return things


def progress_bars(wanted: bool = True) -> Progress:
    """A progress that draws a bar on stderr for each stage, and removes it when the stage is over."""
    how = dict(leave=False, mininterval=1.0, disable=not wanted)
    return partial(tqdm, file=Patient(sys.stderr), **how)  # a closed terminal takes no bar, and needs none
