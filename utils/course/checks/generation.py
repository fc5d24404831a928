"""Checks of chapter 7, choosing a word: a dart, top-p, min-p, a penalty on odds. `telling` has the others."""

from __future__ import annotations

import math

import torch

from utils.course.checks.verdict import check, close, expect, expect_tensor

# Two rows in no order: one unsure, one sure.
P = torch.tensor([[0.10, 0.45, 0.05, 0.21, 0.19], [0.02, 0.01, 0.90, 0.03, 0.04]])  # (B, V)


def _kept(p: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    kept = p * keep
    return kept / kept.sum(dim=-1, keepdim=True)


def _nucleus(p: torch.Tensor, reach: float) -> torch.Tensor:
    """Which words the likelier ones leave room for: their sum, without the word itself, is below `reach`."""
    likelier = p[:, None, :] > p[:, :, None]  # (B, V, V): is word j likelier than word i?
    return (likelier * p[:, None, :]).sum(dim=-1) < reach


def _told_cases(answer, cases, keep_of, mistakes, what: str) -> None:
    """Compare answer(P, setting) with the reference; mistakes(p, setting) are wrong results and their names."""
    for setting in cases:
        p = P.clone()
        kept = expect_tensor(answer(p, setting), P.shape)
        case = f"with {what} {setting}"
        expect(torch.equal(p, P), "you changed the probabilities that were given to you: make a new tensor.")
        right = _kept(P, keep_of(P, setting))
        for wrong, mistake in mistakes(P, setting):
            same = not wrong.isnan().all() and close(kept.nan_to_num(), wrong.nan_to_num())
            expect(close(kept, right) or not same, f"{case} {mistake}")
        expect(not kept.isnan().any(), f"{case} a row is nan: no word was kept, and 0 / 0 followed.\nCompare with >=.")
        expect(close(kept, right), f"{case} row 0 must be {_rounded(right[0])},\nyours is {_rounded(kept[0])}.")


def _rounded(row: torch.Tensor) -> list[float]:
    return [round(number, 3) for number in row.tolist()]


def throw_darts(p: torch.Tensor, dart: torch.Tensor) -> torch.Tensor:
    """Our answer to `check_throw`."""
    edges = p.cumsum(dim=-1)  # (B, V) where each word ends
    edges = edges / edges[:, -1:]  # rounding may leave the last one just below 1
    return (dart[:, None] >= edges).sum(dim=-1)  # (B,)


@check(ours=throw_darts)
def check_throw(answer) -> str:
    """answer(p (B, V), dart (B,)): the word under each dart, when a row's words lie end to end from 0 to 1."""

    def thrown(rows: list[list[float]], darts: list[float]) -> list[int]:
        p, dart = torch.tensor(rows), torch.tensor(darts)
        words = answer(p, dart)
        expect(words is not None, "your function returns None: does it end in `return`?")
        words = torch.as_tensor(words)
        expect(words.shape == dart.shape, f"the shape must be {tuple(dart.shape)}, one word for each row, yours is "
               f"{tuple(words.shape)}")  # fmt: skip
        return [round(word) for word in words.tolist()]

    row = [0.1, 0.2, 0.4, 0.3]
    rows, darts, right = [row] * 5, [0.05, 0.2, 0.5, 0.65, 0.95], [0, 1, 2, 2, 3]
    words = thrown(rows, darts)
    expect(words != [2] * 5, "every dart hits the likeliest word: that is greedy. Use the dart.")
    expect(words != [word - 1 for word in right], "each answer is one word too low: a word lies between the edge "
           "before it and its own.")  # fmt: skip
    expect(words != [word + 1 for word in right], "each answer is one word too high: count only the words that end "
           "before the dart.")  # fmt: skip
    expect(words == right, f"with p = {row} the darts {darts} hit\nthe words {right}, yours are {words}.")
    two = thrown([[0.9, 0.1, 0.0, 0.0], [0.0, 0.0, 0.1, 0.9]], [0.5, 0.5])
    expect(two == [0, 3], f"each row has its own line from 0 to 1: sum along the last dimension.\nThe darts 0.5 and "
           f"0.5 hit the words 0 and 3, yours are {two}.")  # fmt: skip
    (zero,) = thrown([[0.0, 0.5, 0.5]], [0.0])
    expect(zero == 1, f"a dart at exactly 0 hits word {zero}, which has the probability 0: a word that was cut off\n"
           "would be told. It belongs to the first word that ends after the dart.")  # fmt: skip
    (last,) = thrown([[0.5, 0.499999, 0.0]], [0.9999997])
    expect(last == 1, f"where rounding leaves the last edge just below 1, a dart beyond it hits word {last};\nthe "
           "last word that has a probability is 1. Divide the edges by their last one.")  # fmt: skip
    return "every word is hit as often as its probability says, and a cut word never."


def nucleus(p: torch.Tensor, reach: float) -> torch.Tensor:
    """Our answer to `check_top_p`."""
    ordered, index = p.sort(dim=-1, descending=True)  # (B, V)
    reached_before = ordered.cumsum(dim=-1) - ordered  # by the likelier ones
    kept = torch.zeros_like(p).scatter(-1, index, ordered * (reached_before < reach))
    return kept / kept.sum(dim=-1, keepdim=True)


@check(ours=nucleus)
def check_top_p(answer) -> str:
    """answer(p (B, V), reach): the fewest likeliest words of each row that reach `reach` together, renormalised."""

    def mistakes(p, reach):
        ordered = p.sort(dim=-1, descending=True)
        inside = ordered.values.cumsum(-1) - ordered.values < reach
        short = _nucleus(p, reach) & (torch.where(p[:, None] >= p[:, :, None], p[:, None], 0).sum(-1) <= reach)
        return (
            (p * _nucleus(p, reach), "what is kept does not sum to 1: divide each row by its sum."),
            (_kept(ordered.values, inside), "the words are out of place: scatter them back from sorted order."),
            (ordered.values * inside, "the words are out of place: scatter them back from sorted order,\nthen divide."),
            (_kept(p, short), "the word that crosses the line is missing: it belongs to the nucleus.\n"
             "A word stays if the likelier ones alone have not reached it."),
            (_kept(p, p.cumsum(-1) - p < reach), "you sum in the order of the vocabulary. Sort first: the likeliest "
             "come first."),
            (_kept(p, p >= 1 - reach), "you compare single probabilities. It is their sum, from the likeliest\n"
             "down, that must reach the line."),
            (_kept(p, _nucleus(p[:1], reach)), "row 1 keeps the words of row 0: each row has its own order."),
        )  # fmt: skip

    _told_cases(answer, (0.8, 0.6, 0.2), _nucleus, mistakes, "reach")
    return "the nucleus is wide where the model is unsure and one word where it is sure."


def above_share(p: torch.Tensor, share: float) -> torch.Tensor:
    """Our answer to `check_min_p`."""
    kept = p * (p >= share * p.amax(dim=-1, keepdim=True))
    return kept / kept.sum(dim=-1, keepdim=True)


@check(ours=above_share)
def check_min_p(answer) -> str:
    """answer(p (B, V), share): the words of each row that have `share` of its likeliest word or more, renormalised."""

    def keep_of(p, share):
        return p >= share * p.amax(dim=-1, keepdim=True)

    def mistakes(p, share):
        return (
            (p * keep_of(p, share), "what is kept does not sum to 1: divide each row by its sum."),
            (_kept(p, p >= share), "the bar stands at `share` itself. It moves with the likeliest word:\n"
             "share * p.max of the row."),
            (_kept(p, p >= share * p.max()), "the bar of row 0 comes from row 1: take each row's largest, dim=-1."),
            (_kept(p, p >= (1 - share) * p.amax(-1, keepdim=True)), "`share` is turned around: a larger share must "
             "keep fewer words, yours keeps more."),
        )  # fmt: skip

    _told_cases(answer, (0.2, 0.1, 1.0), keep_of, mistakes, "share")
    return "one number, and it cuts more where the model is sure."


def divide_odds(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Our answer to `check_penalised`."""
    return logits - math.log(penalty) * seen


def _odds_one_by_one(p: torch.Tensor, seen: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """p / (1 - p) of each used word divided by itself; the others as they were, or sharing what is left."""
    odds = p / (1 - p) / penalty
    lowered = seen * odds / (1 + odds)
    rest = ~seen * p
    left = 1 - lowered.sum(dim=-1, keepdim=True)
    return lowered + rest, lowered + rest * left / rest.sum(dim=-1, keepdim=True)


@check(ours=divide_odds)
def check_penalised(answer) -> str:
    """answer(logits (B, V), seen (B, V) bool, penalty) -> logits whose softmax has the odds of seen words divided."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [-3.0, 0.5, -0.5, 4.0]])  # (B, V)
    seen = torch.tensor([[True, False, False, True], [False, False, True, True]])
    p = logits.softmax(dim=-1)
    for penalty in (2.0, 1.2):
        given = logits.clone()
        new = expect_tensor(answer(given, seen, penalty), logits.shape)
        expect(torch.equal(given, logits), "you changed the logits that were given to you: make a new tensor.")
        q = new.softmax(dim=-1)
        divided = torch.where(seen, logits / penalty, logits)
        expect(not torch.equal(new, logits), "nothing has changed: the seen words must become less likely.")
        expect(
            not close(new, divided),
            "the sign trap: a negative logit, divided, comes closer to 0, and its word becomes\nlikelier. Look at the "
            "last word of row 0.",
        )
        expect(
            not close(new, torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)),
            "the signs are mended, but add 5 to all logits and your answer changes, though they mean\n"
            "the same probabilities. Subtract, do not multiply.",
        )
        expect(not close(new, logits - math.log(penalty) * ~seen), "you lower the words that were NOT seen.")
        for shift, mistake in (
            (penalty, "you subtract the penalty itself: that divides the odds by e^penalty.\nSubtract its logarithm."),
            (-math.log(penalty), "the sign: your seen words became likelier."),
        ):
            expect(not close(q, (logits - shift * seen).softmax(-1)), mistake)
        expect(
            not any(close(q, alone / alone.sum(dim=-1, keepdim=True)) for alone in _odds_one_by_one(p, seen, penalty)),
            "you divided p / (1 - p) of each used word, but with two of them 1 - p holds the other\n"
            "used one. The odds against every UNUSED word are meant: in logits, one subtraction.",
        )
        expect(
            not close(new, logits - math.log(penalty)),
            "all logits went down by the same amount, and softmax does not notice: only the\nseen ones must.",
        )
        expect(
            close(q, (logits - math.log(penalty) * seen).softmax(dim=-1)),
            f"with penalty {penalty} row 0 must become {_rounded((logits - math.log(penalty) * seen).softmax(-1)[0])},"
            f"\nyours is {_rounded(q[0])} (it was {_rounded(p[0])}).",
        )
    return "a ratio of odds has no sign, so there is no trap to fall into."
