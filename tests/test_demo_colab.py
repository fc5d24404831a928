"""The story demo in a kernel with Colab's versions, driven by the messages that a browser sends."""

import subprocess
import time

import pytest
from jupyter_client import KernelManager

from tests.test_demo_browser import CODE
from utils.course.colab import HOME

IDS = "print(*[w.comm.comm_id for w in (demo.generate, demo.stop, demo.status, demo.columns[0].text)])"


class Panel:
    """The demo as a front end sees it: clicks go to the kernel, changes of widgets come back."""

    def __init__(self, client):
        self.client = client
        self.run(CODE.rpartition("\n")[0])
        self.generate, self.stop, self.status, _ = self.run(IDS).split()
        self.state, self.late, self.statuses, self.pictures = {}, [], [], 0

    def run(self, code: str) -> str:
        printed = []
        reply = self.client.execute_interactive(
            code, timeout=120, output_hook=lambda m: printed.append(m["content"].get("text", ""))
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(printed)

    def click(self, button: str) -> None:
        data = {"method": "custom", "content": {"event": "click"}}
        message = self.client.session.msg("comm_msg", {"comm_id": button, "data": data})
        self.client.shell_channel.send(message)

    def watch(self, until) -> None:
        """Take messages until `until()`; note those that Colab would not show, for their request is over."""
        end = time.monotonic() + 60
        while not until():
            assert time.monotonic() < end, self.statuses
            message = self.client.get_iopub_msg(timeout=60)
            parent = message["parent_header"].get("msg_id")
            if message["msg_type"] == "status":
                self.state[parent] = message["content"]["execution_state"]
            elif message["msg_type"] == "comm_msg":
                changed = message["content"]["data"].get("state", {})
                if self.state.get(parent) == "idle":
                    self.late.append(changed)
                if message["content"]["comm_id"] == self.status:
                    self.statuses.append(changed["value"])
                elif "story" in str(changed.get("value", "")):
                    self.pictures += 1

    def is_over(self) -> bool:
        return bool(self.statuses) and self.statuses[-1].startswith(("stopped", "done", "the end", "<div"))


@pytest.fixture
def panel(jupyter_path, repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(jupyter_path))
        manager = KernelManager(kernel_name="colab")
        manager.start_kernel(cwd=str(repository))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        panel = Panel(client)
        panel.manager = manager
        yield panel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_it_streams_and_stops_and_everything_is_shown(panel):
    panel.click(panel.generate)
    panel.watch(until=lambda: panel.pictures >= 5)
    panel.click(panel.generate)  # an impatient reader
    panel.click(panel.stop)
    panel.watch(until=panel.is_over)
    assert panel.statuses[-1].startswith("stopped")
    assert not panel.late
    panel.run("pass")  # everything that waited has been handled
    panel.statuses.clear()
    panel.run("demo.clear.click()")
    assert panel.run("print(demo.runner.busy, len(demo.columns))").split() == ["False", "0"]  # no second run began


def test_interrupt_stops_it_too(panel):
    panel.click(panel.generate)
    panel.watch(until=lambda: panel.pictures >= 5)
    panel.manager.interrupt_kernel()
    panel.watch(until=panel.is_over)
    assert panel.statuses[-1].startswith("stopped")
    panel.statuses.clear()
    panel.click(panel.generate)  # and the next one runs
    panel.watch(until=lambda: panel.pictures >= 10)
    panel.click(panel.stop)
    panel.watch(until=panel.is_over)
    assert panel.statuses[-1].startswith("stopped")


def test_the_tests_of_the_panel_pass_with_colabs_widgets(jupyter_path):
    """ipywidgets 7.7.1; everywhere else they run with the newest."""
    ours = [f"tests/test_{name}.py" for name in ("demo", "runner", "explore")]
    command = [jupyter_path / "venv/bin/python", "-m", "pytest", "-q", "-p", "no:nbval", "-o", "addopts=", *ours]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
