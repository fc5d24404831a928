"""Checks of 01 · Tokenizer: unknown words, the quote rule, entropy, and one merge of byte-pair encoding."""

from __future__ import annotations

import math
from collections.abc import Callable

from utils.course.checks.verdict import check, close, expect
from utils.tokenizer import UNK, WordTokenizer


@check
def check_encode(answer: Callable[[str, dict[str, int]], list[int]]) -> str:
    """encode_words(text, vocabulary): one id for each word and sign, `<unk>`'s for what is not in the vocabulary."""
    tok = WordTokenizer.train(["lily lost her red ball . don't !"])
    vocabulary = {word: i for i, word in enumerate(tok.words)}
    try:
        ids = answer("lily lost her zorble .", dict(vocabulary))
    except KeyError as error:
        expect(
            False, f"the word {error} is not in the vocabulary and stops you:\nvocabulary.get(word, ...) has a default"
        )
    expect(isinstance(ids, list), f"a list of ids was asked for, your function returns {type(ids).__name__}")
    expect(all(isinstance(i, int) for i in ids), f"an id is a number, the unknown word too: yours are {ids}")
    expect(
        len(ids) == 5,
        f"5 words and signs went in, {len(ids)} ids came out:\nan unknown word must not vanish, it is <unk>",
    )
    expect(
        max(ids) < len(tok), f"the id {max(ids)} has no row in the embedding: the vocabulary is fixed once it is made"
    )
    expect(ids[3] == vocabulary[UNK], f"'zorble' must become {vocabulary[UNK]}, the id of <unk>; yours is {ids[3]}")
    expect(
        answer("red ball.", dict(vocabulary)) == tok.encode("red ball."),
        "'ball.' is two tokens, a word and a sign:\ntext.split() leaves them glued, and the glued one is unknown",
    )
    expect(
        answer("Lily LOST", dict(vocabulary)) == tok.encode("lily lost"),
        "'Lily' and 'lily' get different ids:\nthe vocabulary is in lower case, so the text must be too",
    )
    for text in ("Don't lose her ball!", "", "Red, red, RED balloon"):
        expect(answer(text, dict(vocabulary)) == tok.encode(text), f"{text!r} gives other ids than WordTokenizer")
    return "no text stops you, and each word or sign has its id: nothing vanishes without a trace"


@check
def check_quotes(answer: Callable[[list[str]], list[bool]]) -> str:
    """opening_quotes(tokens): True where a straight double quote opens a quotation, False everywhere else."""

    def sides(text: str) -> list[bool]:
        got = answer(text.split())
        expect(isinstance(got, list), f"a list of bools was asked for, your function returns {type(got).__name__}")
        expect(len(got) == len(text.split()), f"{len(text.split())} tokens went in, {len(got)} answers came out")
        return [bool(side) for side in got]

    def opens(text: str, *places: int) -> list[bool]:
        return [i in places for i in range(len(text.split()))]

    plain = 'lily said , " look ! "'
    words = [token != '"' for token in plain.split()]
    expect(not any(sides("lily lost her ball .")), "without any quote nothing opens, yet you say True somewhere")
    inside = any(side and word for side, word in zip(sides(plain), words, strict=True))
    expect(not inside, "a quote opens, the words inside the quotation do not:\nFalse for every token that is no quote")
    expect(sides(plain)[3], f"in {plain} the first quote opens, although a comma stands before it:\na sign is no clue")
    expect(not sides(plain)[6], f"in {plain} the second quote closes: it is the second of its pair")
    first = '" hello , " said mom .'
    expect(
        sides(first) == opens(first, 0), f"in {first} the second quote closes, although a word follows it:\ncount pairs"
    )
    two = '" hi " . <|endoftext|> she said , " yes " .'
    expect(sides(two) == opens(two, 0, 8), f"in {two} the 1st and 3rd quote open, the 2nd and 4th close")
    forgotten = '" oh no ! said tom . <|endoftext|> lily said , " yes ! "'
    expect(
        sides(forgotten) == opens(forgotten, 0, 11),
        "a quote forgotten in one story turns all quotes of the next inside out:\n<|endoftext|> starts afresh",
    )
    return "one bit of memory decides what no neighbour could, and a story's slip stays in that story"


@check
def check_entropy(answer: Callable[[list[int]], tuple[float, float]]) -> str:
    """entropy_and_perplexity(counts): of the distribution that the counts stand for, in nats, and exp of it."""
    got = answer([1, 1, 1, 1])
    expect(isinstance(got, tuple) and len(got) == 2, "two numbers were asked for: return entropy, perplexity")
    entropy = float(got[0])
    expect(entropy >= 0, f"your entropy is {entropy:.3f}: ln of a probability is negative, the sum needs a minus")
    expect(
        not close(entropy, 2.0),
        "four equal counts give 2.000: that is in bits;\nnats need the natural logarithm math.log",
    )
    expect(
        close(entropy, math.log(4)),
        f"four equal counts give ln 4 = 1.386 nats, yours is {entropy:.3f}:\ndo the probabilities n / total sum to 1?",
    )
    expect(
        close(got[1], 4),
        f"four equal counts have perplexity 4, yours is {float(got[1]):.3f}:\nnats need exp, not a power of 2",
    )
    skewed = float(answer([7, 1])[0])
    exact = -(7 / 8 * math.log(7 / 8) + 1 / 8 * math.log(1 / 8))
    expect(
        close(skewed, exact),
        f"counts 7 and 1 give {exact:.3f} nats, yours is {skewed:.3f}:\neach -ln p has the weight p, not an equal one",
    )
    try:
        with_zero = float(answer([7, 1, 0])[0])
    except (ValueError, ZeroDivisionError):
        with_zero = math.nan
    expect(close(with_zero, exact), "a word with count 0 breaks it: 0 ln 0 counts as 0, so leave such words out")
    return "perplexity 4 is a die with four sides: you can now read any loss as a number of words"


@check
def check_merge(answer: Callable[[list[int], tuple[int, int], int], list[int]]) -> str:
    """merge(ids, pair, new): every occurrence of the pair, from left to right, becomes the one id `new`."""
    given = [5, 1, 2, 6]
    ids = answer(given, (1, 2), 9)
    expect(isinstance(ids, list), f"a list of ids was asked for, your function returns {type(ids).__name__}")
    expect(given == [5, 1, 2, 6], "your function changes the list that it was given: build a new one")
    expect(
        ids[-1:] == [6], f"[5, 1, 2, 6] with (1, 2) -> 9 gives {ids}:\nthe last id has no right neighbour but must stay"
    )
    expect(ids == [5, 9, 6], f"[5, 1, 2, 6] with (1, 2) -> 9 must give [5, 9, 6], yours is {ids}")
    expect(answer([1, 2, 7, 1, 2], (1, 2), 9) == [9, 7, 9], "only the first of two pairs was merged: go on to the end")
    expect(answer([2, 1, 1, 3], (1, 2), 9) == [2, 1, 1, 3], "2, 1 is not the pair 1, 2: the order counts")
    expect(
        answer([1, 1, 1], (1, 1), 9) == [9, 1],
        "three 1s hold one pair (1, 1) and a rest:\na merged id is used up, skip 2",
    )
    expect(answer([], (1, 2), 9) == [], "an empty list stays empty")
    return "repeat it a few hundred times with the most frequent pair, and words appear that nobody listed"
