"""A long job behind a button, that another button stops, in every kind of notebook.

Where a job runs depends on the kernel. ipykernel 7 and newer (JupyterLab, VS Code): in a thread, so that the kernel
stays free and hears Stop. ipykernel 6 (Colab): in the callback itself, since Colab does not show what a
widget changes after its callback has ended (googlecolab/colabtools#3373); clicks then wait in the kernel's queue, and
the job looks for them between two steps. Interrupt stops it there as well.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator

import ipywidgets as widgets
import torch

from utils.interrupt import StopRequest


class Runner:
    """Runs one job at a time. A job is a generator: after each `yield` it can be stopped.

    stop_button stops it. What comes from `starters` (buttons, text fields) while a job runs starts nothing.
    """

    def __init__(self, stop_button: widgets.Button, starters: list[widgets.Widget]):
        self.stop_button, self.starters = stop_button, starters
        self.busy = False
        self._asked = threading.Event()
        self._late = {}  # by starter, what came while a job ran and the kernel has yet to hand out
        self._kernel = _kernel()
        self._waits_in_queue = hasattr(self._kernel, "msg_queue") and hasattr(self._kernel, "shell_stream")
        stop_button.on_click(lambda _: self.stop())

    def on_click(self, button: widgets.Button, action: Callable[[], None]) -> None:
        """Call `action` when a starter is clicked and no job runs."""
        button.on_click(lambda _: self._begin(button, action))

    def on_enter(self, field: widgets.Text, action: Callable[[], None]) -> None:
        """Call `action` when Enter is pressed in a starter and no job runs."""

        def received(_field, content: dict, _buffers) -> None:
            if content.get("event") == "submit":
                self._begin(field, action)

        field.on_msg(received)

    def _begin(self, starter: widgets.Widget, action: Callable[[], None]) -> None:
        if self._late.get(starter, 0):
            self._late[starter] -= 1
        elif not self.busy:
            action()

    def start(self, job: Generator, finish: Callable[[bool, Exception | None], None]) -> None:
        """Run the job to its end, then call finish(was it stopped, what went wrong). Nothing where one runs already."""
        if self.busy:
            return
        self.busy = True
        self._asked.clear()
        if self._kernel is None or self._waits_in_queue:
            self._run(job, finish)
        else:
            threading.Thread(target=self._run_beside, args=(job, finish), daemon=True).start()

    def stop(self) -> None:
        """Let the job end after its present step."""
        self._asked.set()

    def _run_beside(self, job: Generator, finish: Callable[[bool, Exception | None], None]) -> None:
        """In a thread, with one thread for torch: OpenMP gives every thread that computes helpers of its own, and when
        there are more of them than cores, they sleep between two matmuls: telling a story took twice as long."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            self._run(job, finish)
        finally:
            torch.set_num_threads(threads)

    def _run(self, job: Generator, finish: Callable[[bool, Exception | None], None]) -> None:
        stopped, error = False, None
        try:
            with StopRequest() as interrupt:  # in the main thread, Interrupt waits for the end of a step
                for _ in job:
                    if self._asked.is_set() or interrupt.asked or self._stop_waits():
                        stopped = True
                        break
        except KeyboardInterrupt:  # a second one does not
            stopped = True
        except Exception as caught:  # told to the reader by whoever shows the job
            error = caught
        finally:
            job.close()
            if self._waits_in_queue:
                self._late = {starter: self._waiting(starter) for starter in self.starters}
            self.busy = False
        finish(stopped, error)

    def _stop_waits(self) -> bool:
        return self._waits_in_queue and self._waiting(self.stop_button) > 0

    def _waiting(self, widget: widgets.Widget) -> int:
        """How many clicks on a button, or Enters in a field, stand in the queue of an ipykernel 6; they stay there."""
        self._kernel.shell_stream.flush()
        return sum(_is_from(widget, item) for item in list(self._kernel.msg_queue._queue))


def _kernel() -> object | None:
    """The kernel that this process is, None outside of a notebook."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    return getattr(get_ipython(), "kernel", None)


def _is_from(widget: widgets.Widget, item: tuple) -> bool:
    """Whether an entry of ipykernel 6's queue, (..., arguments), is a click on the widget or an Enter in it."""
    frames = [bytes(getattr(frame, "buffer", frame)) for frame in item[-1][0]] if item[-1] else []
    if b"<IDS|MSG>" not in frames:
        return False
    try:
        content = json.loads(frames[frames.index(b"<IDS|MSG>") + 5])
    except (IndexError, ValueError):
        return False
    if content.get("comm_id") != widget.comm.comm_id:  # what others send can be of any form
        return False
    return content.get("data", {}).get("content", {}).get("event") in ("click", "submit")
