"""The quick part of each proof; the whole of it is a command, python -m tests.proofs NAME."""

import pytest

from tests.proofs import damage, disk, folders, harmful, kills, options, pairs

QUICK = {  # how often in the suite
    "damage": (damage.prove, 150),
    "harmful": (harmful.prove, 1),
    "disk": (disk.prove, 1),
    "folders": (folders.prove, 20),
    "kills": (kills.prove, 2),
    "pairs": (pairs.prove, 2),
    "options": (options.prove, 12),
}


@pytest.mark.parametrize("name", QUICK)
def test_nothing_happens_that_must_not(name, tmp_path):
    prove, n = QUICK[name]
    found = prove(tmp_path, n, seed=100)
    assert not found.problems, found
