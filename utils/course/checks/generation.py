"""Checks of chapter 7: top-p, min-p, a penalty on odds, and a rule that stops a stream of text."""

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


@check
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


@check
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


@check
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
            not close(new, logits - math.log(penalty)),
            "all logits went down by the same amount, and softmax does not notice: only the\nseen ones must.",
        )
        expect(
            close(q, (logits - math.log(penalty) * seen).softmax(dim=-1)),
            f"with penalty {penalty} row 0 must become {_rounded((logits - math.log(penalty) * seen).softmax(-1)[0])},"
            f"\nyours is {_rounded(q[0])} (it was {_rounded(p[0])}).",
        )
    return "a ratio of odds has no sign, so there is no trap to fall into."


STORY = ["Tom ran", " home.", " The", " end", ". Then", " more", " and", " more"]


@check
def check_until(answer) -> str:
    """answer(pieces, stop): pieces of the text before `stop`, as early as possible, and nothing asked for after it."""
    asked = []

    def pieces(texts):
        for text in texts:
            asked.append(text)
            yield text

    result = answer(pieces(STORY), "The end.")
    expect(result is not None, "your function returns None: it must yield pieces.")
    expect(
        not asked, "you read the stream before anybody asked for a piece: use `yield`, so that it stays\na generator."
    )
    first = next(iter(result))
    expect(
        len(asked) <= 3,
        f"{len(asked)} pieces were read before the first was shown: that is no stream any more.\n"
        "Show what can no longer belong to the stop text.",
    )
    text = first + "".join(result)
    before = "Tom ran home. "
    expect(text != "".join(STORY), 'the stop text came in three pieces, " The", " end" and ". Then", and was missed:\n'
           "look for it in what is joined, not in one piece.")  # fmt: skip
    expect("The end." not in text, "the stop text itself is shown: cut before it.")
    expect(
        not (text.startswith(before) and len(text) > len(before) and "more" not in text),
        f"{text[len(before) :]!r} was shown before the stop text was complete. Hold back the last\n"
        "len(stop) - 1 characters: they may be its beginning.",
    )
    expect("more" not in text, "you go on after the stop text: return there.")
    expect(text == before, f"the text must be {before!r}, yours is {text!r}.")
    expect(asked[-1] == ". Then", f"you read {len(asked)} pieces, 5 were enough: return when the stop text is there.")
    rest = "".join(answer(pieces(["no", " stop", " text"]), "The end."))
    expect(
        rest == "no stop text",
        f"a story without the stop text must be told whole: yours ends {rest[-12:]!r}.\n"
        "After the loop, show what you held back.",
    )
    one = "".join(answer(pieces(["x", "a.", "b"]), "."))
    expect(one == "xa", f"the stop text '.' and the pieces 'x', 'a.', 'b' must give 'xa', yours is {one!r}.")
    return "it shows early, stops at once, and computes no word that nobody will read."
