"""Checks of 01 · Tokenizer: unknown words, the quote rule, a merge, the merges of a word, and entropy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import index

from utils.course.checks.verdict import Mistake, check, close, expect
from utils.merges import join, learn
from utils.tokenizer import UNK, WordTokenizer, split_words


def our_encode_text(text: str, vocabulary: dict[str, int]) -> list[int]:
    return [vocabulary.get(word, vocabulary[UNK]) for word in split_words(text)]


def _whole_numbers(ids: Iterable) -> list[int]:
    """The ids as a list of int, whatever holds them: a list, an array, a tensor."""
    ids = list(ids)
    try:
        return [index(i) for i in ids]
    except TypeError:
        raise Mistake(f"an id is a number, the unknown word too: yours are {ids}") from None


@check(ours=our_encode_text)
def check_encode_text(answer: Callable[[str, dict[str, int]], list[int]]) -> str:
    """encode_text(text, vocabulary): one id for each token, `<unk>`'s for what is not in the vocabulary."""
    tok = WordTokenizer.train(["lily lost her red ball . don't !"])
    vocabulary = {word: i for i, word in enumerate(tok.words)}
    try:
        ids = answer("lily lost her zorble .", dict(vocabulary))
    except KeyError as error:
        expect(
            False, f"the word {error} is not in the vocabulary and stops you:\nvocabulary.get(word, ...) has a default"
        )
    expect(ids is not None, "your function returns None: does it end in `return`?")
    ids = _whole_numbers(ids)
    expect(
        len(ids) == 5,
        f"5 tokens went in, {len(ids)} ids came out:\nan unknown word must not vanish, it is <unk>",
    )
    expect(
        max(ids) < len(tok), f"the id {max(ids)} has no row in the embedding:\nthe vocabulary is fixed once it is made"
    )
    expect(ids[3] == vocabulary[UNK], f"'zorble' must become {vocabulary[UNK]}, the id of <unk>; yours is {ids[3]}")
    expect(
        _whole_numbers(answer("red ball.", dict(vocabulary))) == tok.encode("red ball."),
        "'ball.' is two tokens, a word and a full stop:\ntext.split() leaves them glued, and the glued one is unknown",
    )
    expect(
        _whole_numbers(answer("Lily LOST", dict(vocabulary))) == tok.encode("lily lost"),
        "'Lily' and 'lily' get different ids:\nthe vocabulary is in lower case, so the text must be too",
    )
    two_stories = "red ball.<|endoftext|>Lily"
    expect(
        _whole_numbers(answer(two_stories, dict(vocabulary))) == tok.encode(two_stories),
        "<|endoftext|> must stay one token, with its own id 1:\nsplit_words knows the specials, a pattern does not",
    )
    for text in ("Don't lose her ball!", "", "Red, red, RED balloon"):
        ids = _whole_numbers(answer(text, dict(vocabulary)))
        expect(ids == tok.encode(text), f"{text!r} gives other ids than WordTokenizer: {ids}")
    return "no text stops you, and each token has its id: nothing vanishes without a trace"


def our_opening_quotes(tokens: list[str]) -> list[bool]:
    sides, is_open = [], False
    for token in tokens:
        sides.append(token == '"' and not is_open)
        if token == '"':
            is_open = not is_open
        elif token == "<|endoftext|>":
            is_open = False
    return sides


@check(ours=our_opening_quotes)
def check_opening_quotes(answer: Callable[[list[str]], list[bool]]) -> str:
    """opening_quotes(tokens): True where a straight double quote opens a quotation, False everywhere else."""

    def sides(text: str) -> list[bool]:
        got = answer(text.split())
        expect(got is not None, "your function returns None: does it end in `return`?")
        got = list(got)
        expect(len(got) == len(text.split()), f"{len(text.split())} tokens went in, {len(got)} answers came out")
        return [bool(side) for side in got]

    def opens(text: str, *places: int) -> list[bool]:
        return [i in places for i in range(len(text.split()))]

    plain = 'lily said , " look ! "'
    words = [token != '"' for token in plain.split()]
    expect(not any(sides("lily lost her ball .")), "without any quote nothing opens, yet you say True somewhere")
    inside = any(side and word for side, word in zip(sides(plain), words, strict=True))
    expect(not inside, "a quote opens, the words inside the quotation do not:\nFalse for every token that is no quote")
    expect(
        sides(plain)[3], f"in {plain} the first quote opens, although a comma stands before it:\nthe comma is no clue"
    )
    expect(not sides(plain)[6], f"in {plain} the second quote closes:\nit is the second of its pair")
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
    return "the memory of one open quotation decides, and a slip in one story stays in that story"


def our_merge_pair(pieces: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged, i = [], 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged


def _pieces(text: str) -> list[bytes]:
    """The pieces of a text that has a bar between them: h|er."""
    return [piece.encode() for piece in text.split("|")] if text else []


@check(ours=our_merge_pair)
def check_merge_pair(answer: Callable[[list[bytes], tuple[bytes, bytes]], list[bytes]]) -> str:
    """merge_pair(pieces, pair): every occurrence of the two neighbours, from left to right, becomes one piece."""

    def gives(pieces: str, first: str, second: str) -> list[bytes]:
        given = _pieces(pieces)
        merged = answer(given, (first.encode(), second.encode()))
        expect(merged is not None, "your function returns None: does it end in `return`?")
        expect(given == _pieces(pieces), "your function changes the list that it was given: build a new one")
        merged = list(merged)
        odd = next((piece for piece in merged if not isinstance(piece, bytes)), b"")
        expect(isinstance(odd, bytes), f"a piece is bytes, yours is {odd!r:.40}:\njoin the two with +, b'e' + b'r'")
        return merged

    ids = gives("h|e|r|e", "e", "r")
    expect(ids[-1:] == [b"e"], f"h e r e with (e, r) gives {ids}:\nthe last piece has no right neighbour but must stay")
    expect(ids == _pieces("h|er|e"), f"h e r e with (e, r) must give h er e, yours is {ids}")
    expect(gives("h|e|r|h|e|r", "e", "r") == _pieces("h|er|h|er"), "only the first of two pairs was merged: go on")
    expect(gives("r|e|e|d", "e", "r") == _pieces("r|e|e|d"), "r, e is not the pair e, r: the order counts")
    expect(
        gives("l|l|l", "l", "l") == _pieces("ll|l"),
        "l l l holds one pair (l, l) and a rest:\na merged piece is used up, so go on behind it",
    )
    expect(
        gives("h|er|e|r", "e", "r") == _pieces("h|er|er"),
        "h er e r with (e, r) must give h er er: compare whole pieces,\nnot the text that they make together",
    )
    expect(gives("th|e|r", "h", "e") == _pieces("th|e|r"), "th e r holds no pair (h, e): the piece is th, not h")
    expect(gives("", "e", "r") == [], "an empty list stays empty")
    return "repeat it with the most frequent pair, and words appear that nobody listed"


@check(ours=join)
def check_encode_word(answer: Callable[[bytes, dict[bytes, int]], list[bytes]]) -> str:
    """encode_word(word, rank): the pieces of a word, its merges replayed in the order in which they were learned."""
    counts = {b" lost": 5, b" her": 9, b" here": 2, b" red": 6, b" there": 4, b" hero": 3, b" ballad": 1, b" ball": 4}
    rank = {piece: i for i, piece in enumerate(learn(counts, 280))}

    def gives(word: bytes, rank: dict[bytes, int]) -> list[bytes]:
        before = dict(rank)
        pieces = answer(word, rank)
        expect(rank == before, "your function changes `rank`: the list of pieces is fixed once it is learned")
        expect(pieces is not None, "your function returns None: does it end in `return`?")
        pieces = list(pieces)
        numbers = all(isinstance(piece, int) for piece in pieces) and bool(pieces)
        expect(not numbers, f"pieces were asked for, yours are numbers: {pieces}\na slice word[i : i + 1] is bytes")
        joined = b"".join(pieces)
        expect(joined == word, f"the pieces of {word} give {joined} together: nothing may be lost or added")
        unknown = [piece for piece in pieces if piece not in rank]
        expect(not unknown, f"{unknown[:1]} is no piece of the list: only what is in `rank` may be joined")
        return pieces

    expect(
        gives(b"zq", rank) == [b"z", b"q"], "no two neighbours of b'zq' make a piece, so its bytes must come out singly"
    )
    word = b" her"
    expect(gives(word, rank) != [b" ", b"h", b"er"], "after one merge others become possible: go on until none is left")
    expect(gives(word, rank) == [b" her"], f"b' her' is a piece itself, yours is {gives(word, rank)}: go on merging")
    expect(
        gives(b"lll", {**rank, b"ll": 300}) == [b"ll", b"l"],
        "b'lll' with the piece ll is ll and l:\nof equal merges the left one comes first",
    )
    small = {piece: rank[piece] for piece in rank if len(piece) == 1}
    order = {**small, b"bc": 300, b"ab": 301, b"bcd": 302, b"abcd": 303}
    expect(
        gives(b"abcde", order) == [b"abcd", b"e"],
        "b'abcde', where bc was learned before ab, is abcd and e:\nthe pair of lowest rank is first, not the leftmost",
    )
    trap = {**small, b"cd": 300, b"ab": 301, b"abc": 302}
    expect(
        gives(b"abcd", trap) == [b"ab", b"cd"],
        "b'abcd', where cd was learned first, is ab and cd:\nthe longest piece from the left is not what merging gives",
    )
    for word in (b" herself", b" ballads", b" theredlost", b"rerereder", b"", b"x", "é月".encode()):
        pieces, ours = gives(word, rank), join(word, rank)
        expect(pieces == ours, f"{word} must give\n{ours}, yours is\n{pieces}"[:230])
    return "the same pieces as the published algorithm, for any word in the world"


def our_entropy_and_perplexity(counts: list[int]) -> tuple[float, float]:
    total = sum(counts)
    entropy = -sum(n / total * math.log(n / total) for n in counts if n > 0)
    return entropy, math.exp(entropy)


@check(ours=our_entropy_and_perplexity)
def check_entropy(answer: Callable[[list[int]], tuple[float, float]]) -> str:
    """entropy_and_perplexity(counts): of the distribution that the counts stand for, in nats, and exp of it."""
    got = answer([1, 1, 1, 1])
    pair = hasattr(got, "__len__") and len(got) == 2
    expect(pair, "two numbers were asked for: return entropy, perplexity")
    entropy = float(got[0])
    expect(entropy >= 0, f"your entropy is {entropy:.3f}:\nln of a probability is negative, the sum needs a minus")
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
    expect(close(with_zero, exact), "a word with count 0 breaks it:\n0 ln 0 counts as 0, so leave such words out")
    return "perplexity 4 means: as unsure as between four equal tokens. You can read any loss like that"
