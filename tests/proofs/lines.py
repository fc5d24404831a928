"""Runs command lines, each in a process of its own that begins with everything imported.

On standard input: a line of JSON for each, a list of words. The answer is a line of JSON: [status, what was said on
standard error, seconds]; the status is null where it did not end within LIMIT_SECONDS. Unix only, for it forks.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
import traceback

import utils.commands
import utils.plots  # noqa: F401
from utils.__main__ import main

LIMIT_SECONDS = 60  # a run of a few steps, told a story, on a busy machine


def run(line: list[str]) -> tuple[int | None, str, float]:
    """What one command line ends with."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            run_here(line, output.fileno(), errors.fileno())
        status = None
        while status is None and time.monotonic() - started < LIMIT_SECONDS:
            ended, code = os.waitpid(child, os.WNOHANG)
            status = os.waitstatus_to_exitcode(code) if ended else time.sleep(0.01)
        if status is None:
            os.kill(child, 9)
            os.waitpid(child, 0)
        seconds = time.monotonic() - started
        errors.seek(0)
        return status, errors.read().decode(errors="replace"), seconds


def run_here(line: list[str], output: int, errors: int) -> None:
    """In the new process: run the line as `python -m utils` does, and end."""
    status = 1
    try:
        for source, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (errors, 2)):
            os.dup2(source, target)
        sys.argv = ["python -m utils", *line]
        status = main(line)
    except SystemExit as ended:
        status = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    for asked in sys.stdin:
        answer = run(json.loads(asked))
        sys.__stdout__.write(json.dumps(answer) + "\n")
        sys.__stdout__.flush()
