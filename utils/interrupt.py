"""Signals as requests: the loop that is asked to stop finishes its step and saves, so that nothing is cut in half."""

from __future__ import annotations

import signal
import threading
import time

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopRequest:
    """While entered, Ctrl-C, a polite kill and a closed terminal only set `asked`.

    A second request is answered in words, a third ends at once, by KeyboardInterrupt. A signal that was ignored before,
    as SIGHUP under nohup, stays so.
    """

    ONE_REQUEST = 0.5  # seconds: a wrapper hands the signal on that the terminal has sent already

    def __init__(self):
        self.number: int | None = None  # of the first signal
        self.saving = False
        self._requests, self._asked_at = 0, 0.0
        self._before = {}

    @property
    def asked(self) -> bool:
        return self.number is not None

    @property
    def status(self) -> int:
        """The exit status by convention: 130 for Ctrl-C, 143 for a kill, 129 for a closed terminal."""
        return 128 + (self.number or signal.SIGINT)

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame) -> None:
        now = time.monotonic()
        if self._requests and now - self._asked_at < self.ONE_REQUEST:
            return
        self._requests, self._asked_at = self._requests + 1, now
        if self._requests == 1:
            self.number = number
        elif self._requests == 2:
            doing = "the checkpoint is being written" if self.saving else "this step and its checkpoint come first"
            print(f"\nstopping: {doing}; once more ends at once and leaves the checkpoint before")
        else:
            raise KeyboardInterrupt

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
