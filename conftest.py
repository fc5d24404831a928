"""How the whole suite runs: side by side, long things first, and with nbval comparing numbers as `outputs` says."""

import os
import re
import tempfile
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.notebooks import merge_streams
from tests.outputs import same, tolerance
from utils.course.colab import RUNS_VARIABLE
from utils.stories import PATH_VARIABLE

try:
    from nbval.plugin import IPyNbCell
except ImportError:  # no notebook is run then
    IPyNbCell = None

# Inherited by the processes that run side by side: one thread each, and none that waits in a busy loop.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

STORIES = os.environ.get(PATH_VARIABLE)
RUNS = tempfile.TemporaryDirectory(prefix="kimi-runs-")


LONGEST = "test_parallel"  # of the modules: it starts dozens of processes


def pytest_collection_modifyitems(items: list) -> None:
    """What takes longest, the notebooks, begins, then the longest module: at the end one process would wait for it."""
    parts = {item.nodeid: _part(item.nodeid) for item in items}
    items.sort(
        key=lambda item: (not parts[item.nodeid][0].isdigit(), parts[item.nodeid] != LONGEST)
    )  # else as collected


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return InParts(config, log)


class InParts(LoadScopeScheduling):
    """The tests of a notebook, or of a module, stay in one process and in order."""

    def _split_scope(self, nodeid: str) -> str:
        return _part(nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """A notebook's runs are its own here, never the reader's: nbval finds what was trained on Colab's versions.

    It reads the stories that come with the course, on every machine: real ones would train for minutes.
    """
    os.environ[RUNS_VARIABLE] = os.path.join(RUNS.name, _part(item.nodeid))
    if item.path.suffix == ".ipynb":
        os.environ[PATH_VARIABLE] = "builtin"
    elif STORIES is not None:
        os.environ[PATH_VARIABLE] = STORIES
    else:
        os.environ.pop(PATH_VARIABLE, None)


def _part(nodeid: str) -> str:
    """The notebook that a test runs, such as 02_attention, else the module that it stands in."""
    notebook = re.match(r"notebooks/(\w+)\.ipynb|tests/test_colab\.py::test_it_runs_alone\w*\[(\w+)\]", nodeid)
    return notebook[1] or notebook[2] if notebook else Path(nodeid.partition("::")[0]).stem


def compare_outputs(cell, test: list, ref: list, skip_compare=None) -> bool:
    """nbval's comparison, where numbers may differ a little (see `outputs`)."""
    share = tolerance(cell.cell.metadata.get("tags", []))
    new, stored = merge_streams(test), merge_streams(ref)
    for one, other in zip(new, stored, strict=False):
        for place, kept in ((one, other), (one.get("data", {}), other.get("data", {}))):
            for name in ("text", "text/plain", "text/html"):
                if name in place and name in kept and same(place[name], kept[name], share):
                    place[name] = kept[name]
    return compare_exactly(cell, new, stored, skip_compare)


if IPyNbCell:
    compare_exactly, IPyNbCell.compare_outputs = IPyNbCell.compare_outputs, compare_outputs
