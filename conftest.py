"""How the whole suite runs: side by side, long things first, and with nbval comparing numbers as `outputs` says."""

import os
import tempfile

import pytest

from tests.notebooks import merge_streams
from tests.outputs import same, tolerance
from utils.course.colab import RUNS_VARIABLE

try:
    from nbval.plugin import IPyNbCell
except ImportError:  # no notebook is run then
    IPyNbCell = None

# Inherited by the processes that run side by side: one thread each, and none that waits in a busy loop.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

RUNS = tempfile.TemporaryDirectory(prefix="kimi-runs-")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list) -> None:
    """Keep a notebook's or module's tests in one process; notebooks, the longest, begin."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))
    items.sort(key=lambda item: not _is_notebook(_group(item)))  # stable: else as collected


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item) -> None:
    """A notebook's runs are its own here, never the reader's: nbval finds what was trained on Colab's versions."""
    os.environ[RUNS_VARIABLE] = os.path.join(RUNS.name, _group(item))


def _is_notebook(group: str) -> bool:
    return group[:2].isdigit()


def _group(item) -> str:
    """The notebook that a test runs (06 finds with nbval what it trained on Colab's versions), else the module."""
    if item.path.suffix == ".ipynb":
        return item.path.stem
    lesson = getattr(item, "callspec", None) and item.callspec.params.get("lesson")
    return lesson.name if lesson and item.path.stem == "test_colab" else item.path.stem


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
