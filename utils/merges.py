"""Byte-pair encoding's two halves: `learn` which neighbours to join, and `join` the neighbours in one pre-token."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise

# The ids of the 256 bytes, in GPT-2's order, which every published file of ranks has kept: signs that can be printed
# come first, so that '!' is 0.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
N_PRINTABLE = len(_PRINTABLE)
BYTES = [bytes([b]) for b in [*_PRINTABLE, *sorted(set(range(256)) - set(_PRINTABLE))]]


def learn(counts: Mapping[bytes, int], n_tokens: int) -> list[bytes]:
    """The tokens of byte-pair encoding, at most `n_tokens`: the 256 bytes, then the most frequent pair, over and over.

    counts: how often each pre-token occurs in the training texts. It stops early where no pair is left that occurs
    twice. Of pairs that are equally frequent, the one with the smaller ids is joined.

    The work for one merge is proportional to the pre-tokens that hold the pair, not to the text: counts are kept up to
    date by differences. The heap may hold counts from before they fell; such an entry goes back with its new count.
    """
    tokens, id_of_byte = list(BYTES), {token[0]: i for i, token in enumerate(BYTES)}
    words = [[id_of_byte[b] for b in pretoken] for pretoken in counts]
    times = list(counts.values())
    pairs: Counter[tuple[int, int]] = Counter()
    where = defaultdict(set)  # the words that hold a pair, or held it once
    for place, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += times[place]
            where[pair].add(place)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    while heap and len(tokens) < n_tokens:
        n, pair = heapq.heappop(heap)
        if -n != pairs[pair]:  # out of date
            heapq.heappush(heap, (-pairs[pair], pair))
            continue
        if -n < 2:
            break
        change: Counter[tuple[int, int]] = Counter()
        for place in where.pop(pair):
            old = words[place]
            new = words[place] = _replace(old, pair, len(tokens))
            for neighbours in pairwise(old):
                change[neighbours] -= times[place]
            for neighbours in pairwise(new):
                change[neighbours] += times[place]
                where[neighbours].add(place)
        tokens.append(tokens[pair[0]] + tokens[pair[1]])
        for neighbours, difference in change.items():
            pairs[neighbours] += difference
            if difference > 0:
                heapq.heappush(heap, (-pairs[neighbours], neighbours))
    return tokens


def _replace(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """`word` with `new` in the place of each `pair`, from left to right."""
    first, second = pair
    out, i = [], 0
    while i < len(word):
        if word[i] == first and i + 1 < len(word) and word[i + 1] == second:
            out.append(new)
            i += 2
        else:
            out.append(word[i])
            i += 1
    return out


def join(pretoken: bytes, ranks: Mapping[bytes, int], below: float = math.inf) -> list[bytes]:
    """The tokens of one pre-token: of all neighbours whose joint bytes are a token, those of lowest rank are joined.

    It goes on until no two neighbours make a token whose rank is `below`. The heap holds candidates with their place;
    one is out of date when another merge has taken a part of it. O(n log n) for n bytes.
    """
    parts = [pretoken[i : i + 1] for i in range(len(pretoken))]  # b"" once joined to the part before
    after, before = list(range(1, len(parts) + 1)), list(range(-1, len(parts) - 1))
    heap = []

    def offer(left: int, right: int) -> None:
        if left >= 0 and right < len(parts) and ranks.get(parts[left] + parts[right], below) < below:
            heapq.heappush(heap, (ranks[parts[left] + parts[right]], left))

    for i in range(len(parts)):
        offer(i, i + 1)
    while heap:
        rank, i = heapq.heappop(heap)
        j = after[i]
        if not parts[i] or j == len(parts) or ranks.get(parts[i] + parts[j]) != rank:
            continue
        parts[i], parts[j] = parts[i] + parts[j], b""
        after[i] = after[j]
        if after[j] < len(parts):
            before[after[j]] = i
        offer(before[i], i)
        offer(i, after[i])
    return [part for part in parts if part]


def halves(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The two tokens that training joined to `token`, which a file of ranks does not say; a byte is one alone."""
    return join(token, ranks, below=ranks[token])
