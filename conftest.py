"""How nbval compares what a notebook prints with what is stored."""

import tempfile

import pytest

from tests.notebooks import merge_streams
from tests.outputs import same, tolerance

try:
    from nbval.plugin import IPyNbCell
except ImportError:  # no notebook is run then
    IPyNbCell = None

WITHOUT_RUNS = "07_generation.ipynb"  # takes the reader's run of 06 where there is one; what is stored is without


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    """The kernel of a notebook starts with its first cell, and the folder of runs is that of its environment."""
    if not (IPyNbCell and isinstance(item, IPyNbCell) and item.path.name == WITHOUT_RUNS):
        return (yield)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as empty:
        patch.setenv("KIMI_RUNS", empty)
        return (yield)
