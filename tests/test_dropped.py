"""What words leave out of a text: all of it is said, and every bit is paid."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.detokenizer import texts_of
from utils.dropped import CHARACTERS, FORMS, Counts, Dropped
from utils.stories import builtin_stories
from utils.tokenizer import WordTokenizer

TRAIN = builtin_stories(300, seed=3)
TOK = WordTokenizer.train(TRAIN)
DROPPED = Dropped(TOK, TRAIN)
TRICKY = ['Lily said, "', "lily", "ZORBLE", "iPhone", "\n\n", "  ", ".", " was", "İstanbul", "é", "<unk>", "don't"]
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.lists(st.sampled_from(TRICKY)).map(
    "".join
)


def restored(text: str) -> str:
    """The text again, from its ids and from what `Dropped` says of it, in this order, and nothing else."""
    ids = TOK.encode(text)
    said = [(counts, symbol) for counts, _, symbol, _ in DROPPED._symbols(text)]

    def spell() -> str:
        word = ""
        while (letter := said.pop(0)[1]) != "":
            word += letter
        return word

    out = []
    for i, told in zip(ids, texts_of(TOK.detokenizer(), ids), strict=True):
        guess, space = told.lstrip(), said.pop(0)[1]
        out.append(spell() if space == "spelled" else space)
        if i == TOK.unk_id:
            out.append(spell())
        elif said and said[0][0] is DROPPED._forms:
            form = said.pop(0)[1]
            out.append(spell() if form == "spelled" else FORMS[form](guess))
        else:
            out.append(guess)
    rest = said.pop(0)[1]
    return "".join(out) + (spell() if rest == "spelled" else rest)


@settings(max_examples=100, deadline=None)
@given(ANY_TEXT)
def test_ids_and_what_is_said_beside_them_are_the_whole_text(text):
    assert restored(text) == text
    assert 0 <= DROPPED.bits(text) < math.inf


@pytest.mark.parametrize("text", [f"Lily ran.{' ' * 500}", f"Then.{chr(10) * 500}", " " * 500])
def test_white_space_of_any_length_has_a_price(text):
    assert restored(text) == text
    assert DROPPED.bits(text[:400]) < DROPPED.bits(text) < math.inf


def test_the_probabilities_of_all_that_can_come_next_sum_to_one():
    counts = Counts()
    for word in ("ab", "ac", "b"):
        counts.add(((), word[:1]), word)
    words = ["ab", "ac", "b", "new"]
    for contexts in ((), ((),), ((), "a"), ((), "a", "never seen")):
        p = [counts.p(contexts, word, 0.1) for word in words[:3]] + [7 * counts.p(contexts, "new", 0.1)]  # 7 are new
        assert sum(p) == pytest.approx(1), contexts


def test_counts_are_smoothed_as_witten_and_bell_did():
    counts = Counts()
    for letter in "aab":
        counts.add(((),), letter)
    # three seen, two different: the p of something new is 2 / (3 + 2)
    assert counts.p(((),), "a", 0.01) == pytest.approx((2 + 2 * 0.01) / 5)
    assert counts.p(((),), "z", 0.01) == pytest.approx(2 * 0.01 / 5)


def test_a_text_as_decode_writes_it_costs_next_to_nothing():
    told = TOK.decode(TOK.encode(builtin_stories(1, seed=9)[0]))
    per_byte = DROPPED.bits(told) / len(told.encode())
    assert per_byte < 0.02
    for unusual in (told.upper(), told.replace(" ", "\n"), told.lower(), told.replace(" the ", "  the ")):
        assert DROPPED.bits(unusual) > 5 * DROPPED.bits(told)


def test_an_unknown_word_costs_its_letters_and_a_likely_one_fewer_bits():
    lily, zorble, unseen = (DROPPED.bits(f"Then {word} was happy.") for word in ("Lily", "zorble", "ぬるぽがっ"))
    assert lily < zorble - 5 < unseen
    assert zorble < 6 * math.log2(CHARACTERS) < unseen


def test_a_line_end_is_cheaper_where_the_training_texts_have_them():
    lines = [story.replace(". ", ".\n") for story in TRAIN]
    expects = Dropped(WordTokenizer.train(lines), lines)
    story = builtin_stories(1, seed=9)[0].replace(". ", ".\n")
    assert expects.bits(story) < DROPPED.bits(story) / 4
