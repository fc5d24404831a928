"""Ctrl-C as a request: the loop that is asked to stop finishes its step first, so that nothing is cut in half."""

from __future__ import annotations

import signal
import threading


class StopRequest:
    """While entered, the first Ctrl-C (or polite kill) only sets `asked`; a second one stops at once."""

    def __init__(self):
        self.asked = False
        self.previous = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self.previous = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _ask(self, number, frame) -> None:
        if self.asked:  # asked twice: at once
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
