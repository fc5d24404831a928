"""The command line: python -m utils train | plan | generate | evaluate | export | convert | restore."""

from __future__ import annotations

import os
import sys

STOPPED, PIPE_CLOSED = 130, 141  # exit statuses by convention: 128 and the number of the signal


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 cannot be done, 128 and more stopped by a signal."""
    try:
        from utils.commands import run_command  # here: Ctrl-C while torch is imported is no traceback either

        return run_command(arguments)
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:  # whoever read this has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what Python writes at its end goes nowhere
        return PIPE_CLOSED


if __name__ == "__main__":
    status = main()
    ranks = sys.modules.get("utils.ranks")  # a stop may have come before it was imported
    if ranks and ranks.is_launched():
        ranks.leave(status)
    sys.exit(status)
