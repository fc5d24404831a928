"""A job behind a button: it runs, it stops when told, and it ends cleanly, whatever the kernel."""

import itertools
import threading
from types import SimpleNamespace

import ipywidgets as widgets
import pytest
import zmq
from jupyter_client.session import Session
from tornado.queues import Queue

from utils.panel.runner import Runner

SECONDS = 30  # to wait for what comes at once: a limit, no delay


class QueueKernel:
    """An ipykernel 6, as far as it matters: messages come from a stream into a queue and are handed out one by one."""

    def __init__(self):
        self.msg_queue, self._count, self._session = Queue(), itertools.count(), Session(key=b"secret")
        self.shell_stream, self._on_the_way = SimpleNamespace(flush=self._flush), []

    def _flush(self):
        for entry in self._on_the_way:
            self.msg_queue.put_nowait(entry)
        self._on_the_way.clear()

    def hand_out(self):
        """The kernel is free again."""
        self._flush()
        while self.msg_queue.qsize():
            _, handle, arguments = self.msg_queue.get_nowait()
            handle(*arguments)

    def arrive(self, *arguments, handle=lambda *_: None):
        self._on_the_way.append((next(self._count), handle, arguments))

    def message(self, kind, content):
        return [zmq.Frame(f) for f in self._session.serialize(self._session.msg(kind, content), ident=[b"page"])]

    def custom(self, widget, content):
        return self.message(
            "comm_msg", {"comm_id": widget.comm.comm_id, "data": {"method": "custom", "content": content}}
        )

    def click(self, button):
        self.arrive(self.custom(button, {"event": "click"}), handle=lambda _: button.click())


def make_runner(monkeypatch, kernel=None) -> Runner:
    shell = None if kernel is None else SimpleNamespace(kernel=kernel)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    return Runner(widgets.Button(), [widgets.Button(), widgets.Button()])


@pytest.fixture
def runner(monkeypatch):
    """Outside of a notebook."""
    return make_runner(monkeypatch)


@pytest.fixture
def kernel():
    return QueueKernel()


@pytest.fixture
def queue_runner(monkeypatch, kernel):
    return make_runner(monkeypatch, kernel)


class Job:
    """Five steps. `happened` says what was done in which order; `during` is called in the third step."""

    def __init__(self, during=lambda: None):
        self.during, self.happened = during, []

    def steps(self):
        try:
            for step in range(5):
                self.happened.append(step)
                if step == 2:
                    self.during()
                yield
        finally:
            self.happened.append("closed")

    def finish(self, stopped, error):
        self.happened.append((stopped, error))

    def run(self, runner):
        runner.start(self.steps(), self.finish)
        return self.happened


TO_ITS_END = [0, 1, 2, 3, 4, "closed", (False, None)]
STOPPED = [0, 1, 2, "closed", (True, None)]  # after its present step; closed before it is told


def fail(error):
    raise error


# Outside of a notebook


def test_a_job_runs_to_its_end_before_start_returns(runner):
    threads = []
    assert Job(lambda: threads.append(threading.current_thread())).run(runner) == TO_ITS_END
    assert threads == [threading.current_thread()]


def test_a_plain_ipython_is_no_notebook(monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace())
    assert Job().run(Runner(widgets.Button(), [])) == TO_ITS_END


def test_stop_ends_a_job_after_its_present_step(runner):
    assert Job(runner.stop).run(runner) == STOPPED
    assert Job(runner.stop_button.click).run(runner) == STOPPED


def test_a_stop_while_nothing_runs_means_nothing(runner):
    runner.stop()
    assert Job().run(runner) == TO_ITS_END
    assert Job(runner.stop).run(runner) == STOPPED
    assert Job().run(runner) == TO_ITS_END


def test_what_goes_wrong_in_a_job_is_told_and_the_next_job_runs(runner):
    error = RuntimeError("no memory")
    assert Job(lambda: fail(error)).run(runner) == [0, 1, 2, "closed", (False, error)]
    assert Job().run(runner) == TO_ITS_END


def test_an_interrupt_stops(runner):
    assert Job(lambda: fail(KeyboardInterrupt())).run(runner) == STOPPED
    assert Job().run(runner) == TO_ITS_END


def test_it_is_busy_while_a_job_runs_and_no_longer_when_the_end_is_told(runner):
    busy = []
    job = Job(lambda: busy.append(runner.busy))
    runner.start(job.steps(), lambda *_: busy.append(runner.busy))
    assert busy == [True, False] and not runner.busy


def test_a_second_job_does_not_start_beside_the_first(runner):
    second = Job()
    assert Job(lambda: second.run(runner)).run(runner) == TO_ITS_END
    assert second.happened == []


def test_a_start_button_starts_when_nothing_runs(runner):
    clicks = []
    button = runner.starters[0]
    runner.on_click(button, lambda: clicks.append("started"))
    Job(button.click).run(runner)
    assert clicks == []
    button.click()
    button.click()
    assert clicks == ["started"] * 2


# Beside a kernel that stays free: ipykernel 7


@pytest.fixture
def thread_runner(monkeypatch):
    return make_runner(monkeypatch, kernel=object())


class Waiting(Job):
    """Its third step waits for a permit, its finish is an event."""

    def __init__(self):
        super().__init__(self._wait)
        self.reached, self.permit, self.finished = threading.Event(), threading.Event(), threading.Event()

    def _wait(self):
        self.reached.set()
        assert self.permit.wait(SECONDS)

    def finish(self, stopped, error):
        super().finish(stopped, error)
        self.finished.set()


@pytest.mark.parametrize("stops", [True, False])
def test_beside_a_free_kernel_start_returns_at_once_and_stop_is_heard(thread_runner, stops):
    job, second = Waiting(), Job()
    job.run(thread_runner)  # returns while the job waits
    assert job.reached.wait(SECONDS) and thread_runner.busy and not job.finished.is_set()
    assert second.run(thread_runner) == []
    if stops:
        thread_runner.stop_button.click()
    job.permit.set()
    assert job.finished.wait(SECONDS)
    assert job.happened == (STOPPED if stops else TO_ITS_END) and not thread_runner.busy


def test_in_a_thread_as_well_errors_are_told_and_the_next_job_runs(thread_runner):
    for during, expected in ((lambda: fail(ValueError("wrong")), "wrong"), (lambda: None, "None")):
        finished, told = threading.Event(), []
        thread_runner.start(Job(during).steps(), lambda *what: (told.extend(what), finished.set()))  # noqa: B023
        assert finished.wait(SECONDS)
        assert told[0] is False and str(told[1]) == expected


# In the callback of a button: ipykernel 6


def test_in_a_callback_a_job_runs_to_its_end_before_start_returns(queue_runner):
    """In the same thread: Colab shows what a widget changes while the callback is at work, and nothing afterwards."""
    threads = []
    assert Job(lambda: threads.append(threading.current_thread())).run(queue_runner) == TO_ITS_END
    assert threads == [threading.current_thread()]


@pytest.mark.parametrize("others_before", [0, 3])
def test_a_stop_click_that_waits_in_the_queue_stops(queue_runner, kernel, others_before):
    def click():
        for _ in range(others_before):
            kernel.arrive(kernel.message("execute_request", {"code": "1"}))
        kernel.click(queue_runner.stop_button)

    assert Job(click).run(queue_runner) == STOPPED


def test_a_stop_click_that_was_seen_waiting_does_not_stop_the_next_job(queue_runner, kernel):
    Job(lambda: kernel.click(queue_runner.stop_button)).run(queue_runner)
    kernel.hand_out()
    assert Job().run(queue_runner) == TO_ITS_END


def test_what_arrives_beside_a_stop_click_stays_in_the_queue(queue_runner, kernel):
    handled = []

    def arrive():
        kernel.arrive(handle=lambda: handled.append("first"))
        kernel.click(queue_runner.stop_button)
        kernel.arrive(handle=lambda: handled.append("second"))

    queue_runner.stop_button.on_click(lambda _: handled.append("stop"))
    Job(arrive).run(queue_runner)
    assert handled == []
    kernel.hand_out()
    assert handled == ["first", "stop", "second"]


def cut_after_the_delimiter(kernel, stop):
    frames = kernel.custom(stop, {"event": "click"})
    return frames[: [bytes(frame) for frame in frames].index(b"<IDS|MSG>") + 2]


@pytest.mark.parametrize(
    "other",
    [
        lambda kernel, _: [kernel.custom(widgets.Button(), {"event": "click"})],
        lambda kernel, stop: [kernel.custom(stop, {"event": "hover"})],
        lambda kernel, _: [kernel.custom(widgets.Text(), "click")],
        lambda kernel, _: [kernel.custom(widgets.Text(), None)],
        lambda kernel, stop: [kernel.message("comm_msg", {"comm_id": stop.comm.comm_id, "data": {"method": "update"}})],
        lambda kernel, stop: [kernel.message("comm_close", {"comm_id": stop.comm.comm_id})],
        lambda kernel, _: [kernel.message("comm_msg", {"comm_id": "", "data": None})],
        lambda kernel, _: [kernel.message("execute_request", {"code": "stop.click()"})],
        lambda kernel, stop: [cut_after_the_delimiter(kernel, stop)],
        lambda kernel, stop: [[*kernel.custom(stop, {"event": "click"})[:-1], zmq.Frame(b"{'no': json")]],
        lambda kernel, _: [[zmq.Frame(b"no message")]],
        lambda kernel, _: [],  # what the kernel itself has to do has no arguments
    ],
)
def test_other_messages_in_the_queue_do_not_stop(queue_runner, kernel, other):
    arguments = other(kernel, queue_runner.stop_button)
    assert Job(lambda: kernel.arrive(*arguments)).run(queue_runner) == TO_ITS_END


def test_start_clicks_that_came_during_a_job_start_nothing_and_later_ones_do(queue_runner, kernel):
    started = []
    first, second = queue_runner.starters
    for button in (first, second):
        queue_runner.on_click(button, lambda button=button: started.append(button))

    def click():
        for button in (first, second, first):
            kernel.click(button)

    for _ in range(2):
        Job(click).run(queue_runner)
        kernel.hand_out()
        assert started == []
    kernel.click(second)
    kernel.click(first)
    kernel.hand_out()
    assert started == [second, first]


def test_in_a_callback_an_interrupt_stops_and_errors_are_told(queue_runner):
    error = RuntimeError("no memory")
    assert Job(lambda: fail(KeyboardInterrupt())).run(queue_runner) == STOPPED
    assert Job(lambda: fail(error)).run(queue_runner) == [0, 1, 2, "closed", (False, error)]
    assert Job().run(queue_runner) == TO_ITS_END
