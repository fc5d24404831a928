"""The quick part of each proof; the whole of it is a command, python -m tests.proofs NAME."""

import pytest

from tests.proofs.__main__ import PROOFS


@pytest.mark.parametrize("name", [name for name, (_, _, quick) in PROOFS.items() if quick])
def test_nothing_happens_that_must_not(name, tmp_path):
    prove, _, quick = PROOFS[name]
    found = prove(tmp_path, quick, seed=100)
    assert not found.problems, found
