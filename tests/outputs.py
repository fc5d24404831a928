"""Whether what a cell prints is what was stored, where numbers may differ a little.

A number may differ by one in its last written digit, since other machines add in another order. A tag `within-5%` on
the cell allows so much more, for what comes out of training. Whole numbers without such a tag must be the same. A run
that is made to diverge ends elsewhere on each processor: of a cell `within-100%` the words and its asserts hold.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TAG = re.compile(r"within-(\d+)%")
NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,_]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")


def tolerance(tags: Sequence[str]) -> float:
    """The share by which the numbers of a cell with these tags may differ."""
    return max((int(found[1]) / 100 for found in map(TAG.fullmatch, tags) if found), default=0.0)


def same(new: str, stored: str, share: float = 0.0) -> bool:
    """Whether two texts are equal but for numbers that are near enough."""
    if new == stored:
        return True
    texts = [" ".join(NUMBER.sub("#", text).split()) for text in (new, stored)]  # columns move with their numbers
    if texts[0] != texts[1]:
        return False
    return all(near(a, b, share) for a, b in zip(NUMBER.findall(new), NUMBER.findall(stored), strict=True))


def near(new: str, stored: str, share: float = 0.0) -> bool:
    """Whether two written numbers differ by one in the last digit, or by `share` of the larger."""
    a, b = (float(text.replace(",", "").replace("_", "").replace("−", "-")) for text in (new, stored))
    mantissa, _, exponent = stored.partition("e")
    decimals = len(mantissa.partition(".")[2])
    digit = 10.0 ** (int(exponent or 0) - decimals) if decimals else 0.0
    return abs(a - b) <= max(1.01 * digit, share * max(abs(a), abs(b)))
