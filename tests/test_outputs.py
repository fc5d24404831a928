"""Numbers that a cell prints may differ a little from those that are stored, and nothing else may."""

import pytest

from tests.outputs import same, tolerance


@pytest.mark.parametrize(
    "new, stored, share, is_same",
    [
        ("loss 2.31, 4 heads", "loss 2.32, 4 heads", 0, True),
        ("loss 2.30, 4 heads", "loss 2.32, 4 heads", 0, False),
        ("loss 2.30, 4 heads", "loss 2.32, 4 heads", 0.01, True),
        ("474 words", "475 words", 0, False),
        ("1,000 words", "1,010 words", 0.05, True),
        ("1.0e-07", "1.1e-07", 0, True),
        ("1.0e-06", "1.1e-07", 0, False),
        ("  9.99 |", " 10.00 |", 0, True),
        ("-0.5", "0.5", 0.05, False),
        ("equal: True", "equal: False", 0.05, False),
        ("w2 3", "w3 3", 0.5, False),
        ("1 2", "1 2 3", 0.5, False),
        ("up to 6,618", "up to 14,908", 1.0, True),
        ("loss 2.39", "loss nan", 1.0, False),
    ],
)
def test_numbers_are_near_and_words_are_the_same(new, stored, share, is_same):
    assert same(new, stored, share) == is_same


def test_a_tag_says_how_near():
    assert tolerance(["exercise", "within-5%"]) == 0.05 and tolerance(["nbval-ignore-output"]) == 0.0
