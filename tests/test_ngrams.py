"""Counting models: equal to the formula applied to one word at a time, and to the entropy where that is known."""

import math
from collections import Counter

import numpy as np
import pytest

from utils.course.ngrams import NGram, ngram_losses


def counted_one_by_one(train, val, vocab_size, order):
    counts = [Counter(tuple(train[i - k : i + 1]) for i in range(k, len(train))) for k in range(order)]

    def p(history, word):
        if len(history) == order:
            return p(history[1:], word)
        after = {s[-1]: c for s, c in counts[len(history)].items() if s[:-1] == history}
        lower = p(history[1:], word) if history else 1 / vocab_size
        seen, kinds = sum(after.values()), len(after)
        return (after.get(word, 0) + kinds * lower) / (seen + kinds) if seen else lower

    text = [*train, *val]
    places = range(len(train) + 1, len(text))
    return sum(-math.log(p(tuple(text[i - order + 1 : i]), text[i])) for i in places) / len(places)


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_formula_applied_to_one_word_at_a_time(seed):
    text = np.random.default_rng(seed).integers(0, 5, 220).astype(np.uint16)
    train, val = text[:160], text[160:]
    losses = ngram_losses(train, val, 7, longest=4)
    expected = [counted_one_by_one(train.tolist(), val.tolist(), 7, order) for order in (1, 2, 3, 4)]
    assert losses == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("order", range(5))
def test_the_one_to_read_gives_what_the_fast_one_gives_and_all_its_chances_sum_to_1(order):
    text = np.random.default_rng(order).integers(0, 5, 220).tolist()
    train = text[:160]
    model = NGram(train, order, 7)
    costs = [-math.log(model.p(text[max(0, t - 5) : t], text[t])) for t in range(161, 220)]
    expected = ngram_losses(np.array(train), np.array(text[160:]), 7, longest=4)[order - 1] if order else math.log(7)
    assert np.mean(costs) == pytest.approx(expected, abs=1e-9)
    for history in ([0, 1, 2, 3], [4, 4, 4, 4], [6, 6, 6, 6]):
        assert sum(model.p(history, token) for token in range(7)) == pytest.approx(1)


def test_even_chance_costs_ln_v_and_a_fixed_order_next_to_nothing():
    even = np.random.default_rng(0).integers(0, 8, 40_000)
    assert ngram_losses(even[:30_000], even[30_000:], 8) == pytest.approx([math.log(8)] * 3, abs=0.02)
    cycle = np.tile(np.arange(8), 2000)
    unigram, bigram, _ = ngram_losses(cycle[:12_000], cycle[12_000:], 8)
    assert unigram == pytest.approx(math.log(8), abs=0.01) and bigram < 0.01


def test_words_never_counted_still_have_a_chance():
    losses = ngram_losses(np.array([0, 1, 0, 1]), np.array([2, 3, 2]), 4)
    assert all(math.isfinite(loss) and loss > math.log(4) for loss in losses[:1])
