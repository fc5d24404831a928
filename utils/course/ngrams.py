"""How far counting gets: the losses of models that only count short sequences, as numbers to beat.

`NGram` is the one to read, `ngram_losses` the fast one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np


class NGram:
    """A model that counts sequences of `order` tokens; order 0 is the even guess."""

    def __init__(self, tokens: Sequence[int], order: int, vocab_size: int):
        self.order = order
        self.vocab_size = vocab_size
        self.shorter = NGram(tokens, order - 1, vocab_size) if order > 0 else None
        shifted = [tokens[i:] for i in range(order)]
        self.count = Counter(zip(*shifted, strict=False))  # c(h, w): every sequence of that length
        self.total = Counter()  # c(h): how often the history h was seen
        self.kinds = Counter()  # m(h): how many different tokens followed it
        for sequence, n in self.count.items():
            history = sequence[:-1]
            self.total[history] += n
            self.kinds[history] += 1

    def p(self, history: Sequence[int], token: int) -> float:
        """The probability of `token` after `history`, the order - 1 tokens before it or more."""
        if self.order == 0:
            return 1 / self.vocab_size
        history = tuple(history[len(history) - self.order + 1 :])
        guess = self.shorter.p(history[1:], token)
        if self.total[history] == 0:
            return guess
        kinds = self.kinds[history]
        return (self.count[(*history, token)] + kinds * guess) / (self.total[history] + kinds)


def ngram_losses(train: np.ndarray, val: np.ndarray, vocab_size: int, longest: int = 3) -> list[float]:
    """Mean nats per token of `val` but its first, for sequences of 1, 2, ... `longest` tokens counted in `train`.

    train, val: (n,) token ids. p(w | h) = (c(h, w) + T(h) p(w | h')) / (c(h) + T(h)), with c the count, T(h) the
    number of different words seen after the history h, h' without its first word, and 1 / vocab_size at the end of
    that chain (Witten and Bell, IEEE Transactions on Information Theory 37, 1991). Needs some 100 bytes a token.
    """
    tokens, n = np.concatenate([train, val]).astype(np.int64), len(train)
    history = np.zeros(len(tokens), np.int64)  # (n,) which sequence stands before each token; one for all at first
    p = np.full(len(val), 1 / vocab_size)  # (n_val,)
    losses = []
    for order in range(1, longest + 1):
        if order > 1:  # one word further back
            earlier = np.concatenate([np.full(order - 1, vocab_size), tokens[: 1 - order]])  # (n,) vocab_size: none
            history = _numbered(history * (vocab_size + 1) + earlier)
        sequence = _numbered(history * vocab_size + tokens)  # (n,)
        seen_with = np.bincount(sequence[:n], minlength=sequence.max() + 1)  # c(h, w)
        seen = np.bincount(history[:n], minlength=history.max() + 1)  # c(h)
        _, first = np.unique(sequence[:n], return_index=True)
        kinds = np.bincount(history[:n][first], minlength=len(seen))  # T(h)
        h, hw = history[n:], sequence[n:]
        p = np.where(seen[h] > 0, (seen_with[hw] + kinds[h] * p) / np.maximum(1, seen[h] + kinds[h]), p)
        losses.append(float(-np.log(p[1:]).mean()))
    return losses


def _numbered(keys: np.ndarray) -> np.ndarray:
    """The same distinctions with numbers 0, 1, ...: so that the next key does not outgrow 64 bits."""
    return np.unique(keys, return_inverse=True)[1].reshape(-1)
