"""Byte-pair encoding: the merges of the Rust trainer, the ids of two other encoders, and every text back as it was."""

import copy
import json
import os
import pickle
import random
import tracemalloc
from pathlib import Path

import pytest
import tiktoken.load
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.bpe import PATTERNS, BPETokenizer
from utils.checkpoint import load_model, save_checkpoint
from utils.config import KimiConfig
from utils.generation import generate, next_token_probabilities, stream
from utils.merges import BYTES, halves, join, learn
from utils.model import Kimi
from utils.panel.reading import Reading
from utils.presets import PRESETS
from utils.stories import PATH_VARIABLE, builtin_stories, load_stories
from utils.tokenizer import tokenizer_from_dict

EOS = "<|endoftext|>"
TEXTS = {
    "Chinese": "床前明月光，疑是地上霜。举头望明月，低头思故乡。床前明月光，2024年。",
    "Hindi": "एक बार की बात है, एक छोटी लड़की थी। उसकी एक लाल गेंद थी।",
    "Arabic": "كَانَ يَا مَا كَانَ، في قديمِ الزمان، بنتٌ صغيرة اسمها ليلى.",
    "emoji": "👩‍👩‍👧‍👦 said 👍🏽! 🇩🇪 ❤️‍🔥 and e\u0301 or é",
    "code": "def f(x):\n\tif x  >  1000000:\n        return {'a': x ** 2}  # don't\r\n\r\n\r\n",
    "signs": "I'LL   we'd --- ...!!!  \u3000 \x1c\x1f \x85 \u200b ŉ ſ'ſ İ ß ﬃ",
}
any_text = st.text(st.characters(exclude_categories=("Cs",)))


def real_or_builtin(n: int) -> list[str]:
    """Real stories where there are any: their words are far more varied."""
    return load_stories(n) if os.environ.get(PATH_VARIABLE) else builtin_stories(n)


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return real_or_builtin(5000)


@pytest.fixture(scope="module", params=PATTERNS)
def tok(request, stories) -> BPETokenizer:
    return BPETokenizer.train(stories[:1000] + 3 * list(TEXTS.values()), 2000, request.param)


def as_tiktoken(tok: BPETokenizer) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "ours", pat_str=PATTERNS[tok.pattern], mergeable_ranks=tok.ranks, special_tokens=tok.specials
    )


def random_texts(n: int) -> list[str]:
    """Signs with rules of their own, letters of many scripts and any code point, close together."""
    draw = random.Random(0)
    rules = " \n\t\r'  abcXYZ019.,!?'srevtlmd"

    def sign() -> str:
        kind = draw.random()
        if kind < 0.3:
            return draw.choice(rules)
        return chr(draw.randint(32, 0x2FFF) if kind < 0.6 else draw.choice([draw.randint(0, 0xD7FF), 0xFFFF]))

    texts = ["".join(sign() for _ in range(draw.randint(0, 60))) for _ in range(n // 2)]
    planes = ["".join(chr(draw.randint(0xE000, 0x10FFFF)) for _ in range(draw.randint(0, 30))) for _ in range(n // 2)]
    return texts + planes


# ---------------------------------------------------------------------------------------------- training


def rust_trainer(texts: list[str], vocab_size: int) -> tokenizers.Tokenizer:
    level = tokenizers.pre_tokenizers.ByteLevel
    peer = tokenizers.Tokenizer(tokenizers.models.BPE())
    peer.pre_tokenizer = level(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, initial_alphabet=level.alphabet(), show_progress=False
    )
    peer.train_from_iterator(texts, trainer)
    return peer


def printable(token: bytes) -> str:
    """The token as ByteLevel writes it: bytes that are no sign of their own have one from U+0100 on."""
    unprintable = [byte for byte in range(256) if not (0x21 <= byte < 0x7F or 0xA1 <= byte < 0xAD or byte >= 0xAE)]
    return "".join(chr(256 + unprintable.index(byte) if byte in unprintable else byte) for byte in token)


def test_merges_and_ids_are_those_of_the_rust_trainer_ties_included(stories):
    tok = BPETokenizer.train(stories, 4001)
    peer = rust_trainer(stories, 4000)
    vocabulary = peer.get_vocab()
    assert sorted(vocabulary, key=vocabulary.get) == [printable(token) for token in tok.ranks]
    texts = [*stories, *TEXTS.values(), *random_texts(2000)]
    assert [peer.encode(text).ids for text in texts] == [tok.encode(text) for text in texts]


def test_a_training_that_can_be_followed_by_hand():
    # a b: 5 times; then (a b) c: 3 times; then (a b) d: twice; "x y" once: no merge
    tokens = learn({b"abc": 3, b"abd": 2, b"xy": 1}, 300)
    assert tokens[256:] == [b"ab", b"abc", b"abd"]


def test_equal_counts_join_the_smaller_ids_and_neighbours_never_overlap():
    assert learn({b"zy": 2, b"ab": 2}, 257)[256:] == [b"ab"]
    assert learn({b"aaaaa": 2}, 300)[256:] == [b"aa", b"aaa", b"aaaaa"]


def test_no_token_crosses_a_pretoken_or_the_end_of_a_text(stories):
    tok = BPETokenizer.train([*stories[:300], "12345678 , " * 999], 1500, "kimi")
    cut = tok._pretokens.findall
    pretokens = {pretoken.encode() for text in stories[:300] for pretoken in cut(text)} | {b"123", b"456", b"78", b" ,"}
    assert all(any(token in pretoken for pretoken in pretokens) for token in list(tok.ranks)[256:])
    assert b"123" in tok.ranks and b"3456" not in tok.ranks and b"1234" not in tok.ranks
    assert len(BPETokenizer.train(["ab", "cd"] * 5, 300).encode("bc")) == 2


def test_the_size_is_kept_and_the_end_of_pairs_is_an_end(stories):
    assert len(BPETokenizer.train(stories[:200], 700)) == 700
    assert len(BPETokenizer.train(["abab ab"], 700)) == 258  # " ab" stands once, "ab" three times
    assert len(BPETokenizer.train([], 257)) == 257


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a text", 300), "texts is one str"),
        ((["a"], 256), "vocab_size is 256, it must be at least 257"),
        ((["a", 5], 300), "a text must be a str, not int"),
        ((["a"], 300, "gpt5"), "pattern is 'gpt5', it must be one of gpt2, kimi"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer.train(*arguments)


# ---------------------------------------------------------------------------------------------- encoding


def test_ids_are_tiktokens(tok, stories):
    peer = as_tiktoken(tok)
    for text in [*stories, *TEXTS.values(), *random_texts(2000)]:
        assert tok.encode(text) == peer.encode_ordinary(text), repr(text)


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_every_text_comes_back(tok, text):
    assert tok.decode(tok.encode(text)) == text
    assert "".join(tok.pieces(text)) in (text, "")


@settings(max_examples=300, deadline=None)
@given(data=st.binary())
def test_every_byte_comes_back(tok, data):
    assert tok.decode_bytes(tok.encode_bytes(data)) == data


def test_half_a_surrogate_pair_is_the_sign_for_no_character(tok):
    assert tok.decode(tok.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("letter", ["a", "猫", "\u0301", "-", " ", "7"])
def test_a_long_pretoken_takes_no_quadratic_time(tok, letter):
    # 200,000 signs in one pre-token: quadratic work would be 4e10 steps, which no test run survives
    assert tok.decode(tok.encode(letter * 200_000)) == letter * 200_000


def test_join_takes_the_lowest_rank_first_and_the_leftmost_of_equals():
    ranks = {byte: i for i, byte in enumerate(BYTES)} | {b"bc": 256, b"ab": 257, b"aa": 258}
    assert join(b"abc", ranks) == [b"a", b"bc"]
    assert join(b"aaa", ranks) == [b"aa", b"a"]
    assert join(b"", ranks) == []


def test_halves_are_the_pair_that_training_joined(tok):
    for token in list(tok.ranks)[256:]:
        first, second = halves(token, tok.ranks)
        assert first + second == token and max(tok.ranks[first], tok.ranks[second]) < tok.ranks[token]
    assert halves(b"a", tok.ranks) == [b"a"]


@pytest.mark.parametrize(
    ("pattern", "text", "pretokens"),
    [
        ("gpt2", "Don't  stop, it's 12345!", ["Don", "'t", " ", " stop", ",", " it", "'s", " 12345", "!"]),
        ("gpt2", "I'LL 猫x\n\n a", ["I", "'", "LL", " 猫x", "\n\n", " a"]),
        ("kimi", "Don't  stop, IT'S 12345!", ["Don't", " ", " stop", ",", " IT'S", " ", "123", "45", "!"]),
        ("kimi", "myName HTMLPage", ["my", "Name", " HTMLPage"]),
        ("kimi", "a猫b，猫 猫é", ["a", "猫", "b", "，", "猫", " ", "猫", "é"]),
        ("kimi", "};\r\n\r\n  x", ["};\r\n\r\n", " ", " x"]),
    ],
)
def test_how_a_text_is_cut(pattern, text, pretokens):
    tok = BPETokenizer.train([text] * 99, 500, pattern)  # so often that every pre-token becomes one token
    assert tok.pieces(text) == pretokens


# ---------------------------------------------------------------------------------------------- specials


def test_text_cannot_forge_a_special_unless_it_may(tok):
    text = f"The end.{EOS}Once {EOS}"
    ids = tok.encode(text)
    assert tok.eos_id not in ids and tok.decode(ids) == text
    allowed = tok.encode(text, specials=True)
    assert allowed.count(tok.eos_id) == 2 and allowed[-1] == tok.eos_id and tok.decode(allowed) == text
    assert allowed == as_tiktoken(tok).encode(text, allowed_special="all")


def test_the_longest_of_overlapping_specials_is_read():
    tok = BPETokenizer({byte: i for i, byte in enumerate(BYTES)}, "gpt2", {EOS: 256, EOS + EOS: 257})
    assert tok.encode(f"{EOS}{EOS}{EOS}a", specials=True) == [257, 256, *tok.encode("a")]


def test_ids_of_specials_may_leave_gaps_and_an_id_without_a_token_is_refused():
    tok = BPETokenizer({byte: i for i, byte in enumerate(BYTES)}, "kimi", {"[EOS]": 300})
    assert (len(tok), tok.eos_id, tok.decode([300])) == (301, 300, "[EOS]")
    with pytest.raises(ValueError, match="id 256 is no token, it must be one of the 257 up to 300"):
        tok.decode([256])


@pytest.mark.parametrize(
    ("ranks", "specials", "message"),
    [
        ({b"a": 0}, None, "no token for the byte"),
        ({byte: i for i, byte in enumerate(BYTES)}, {EOS: 3}, "must differ"),
        ({byte: i for i, byte in enumerate(BYTES)}, {EOS: -3}, "must differ and be 0 or more"),
        ({byte: i for i, byte in enumerate(BYTES)}, {}, "specials must be names"),
        (dict.fromkeys(BYTES, 7), None, "must differ"),
    ],
)
def test_ranks_that_do_not_fit_together_are_refused(ranks, specials, message):
    with pytest.raises(ValueError, match=message):
        BPETokenizer(ranks, "gpt2", specials)


# ---------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("specials", [False, True])
def test_a_stream_gives_the_ids_of_the_whole(tok, size, specials):
    text = "".join(TEXTS.values()) + f"  {EOS}\n\n{EOS}{EOS}   we'll  don't{EOS} \n" + "".join(random_texts(60))
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(tok.encode_stream(chunks, specials)) == tok.encode(text, specials)


@pytest.mark.parametrize("size", [1, 3, 6, 100])
def test_a_stream_waits_for_the_longer_of_two_specials(size):
    tok = BPETokenizer({byte: i for i, byte in enumerate(BYTES)}, "gpt2", {"<a>": 256, "<a><b>": 257})
    text = "x<a><b>y<a>z<a><a><b>"
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(tok.encode_stream(chunks, specials=True)) == tok.encode(text, specials=True)
    assert tok.encode(text, specials=True).count(257) == 2


def test_a_stream_of_a_file_needs_little_memory(tok, tmp_path: Path):
    file = tmp_path / "long.txt"
    file.write_text("Once upon a time there was a cat.\n" * 30_000, encoding="utf-8")  # 1 MB
    with open(file, encoding="utf-8") as lines:
        tracemalloc.start()
        n = sum(1 for _ in tok.encode_stream(lines))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert n > 200_000 and peak < 200_000


def test_text_appears_when_its_last_byte_is_there(tok):
    ids = tok.encode_bytes("é👍!".encode())
    detokenizer = BPETokenizer({byte: i for i, byte in enumerate(BYTES)}).detokenizer()
    single = [BYTES.index(bytes([byte])) for byte in "é👍!".encode()]
    seen = [(detokenizer.push(i), detokenizer.waiting) for i in single]
    assert seen == [("", 1), ("é", 0), ("", 1), ("", 2), ("", 3), ("👍", 0), ("!", 0)]
    assert detokenizer.flush() == "" and tok.decode(ids) == "é👍!"


def test_waiting_tokens_are_told_and_given_up_one_by_one():
    detokenizer = BPETokenizer({byte: i for i, byte in enumerate(BYTES)}).detokenizer()
    for byte in "👍".encode()[:3]:
        detokenizer.push(BYTES.index(bytes([byte])))
    assert detokenizer.waiting == 3
    assert detokenizer.rest() == ["\ufffd", "", ""] and detokenizer.waiting == 0
    assert detokenizer.push(BYTES.index(b"a")) == "a"


def test_a_detokenizer_continues_a_text_and_does_not_repeat_it(tok):
    ids = tok.encode("Once upon a time, there was a cat.")
    detokenizer = tok.detokenizer(after=ids[:4])
    assert "".join(detokenizer.push(i) for i in ids[4:]) + detokenizer.flush() == tok.decode(ids[4:])


# ---------------------------------------------------------------------------------------------- files


def test_saved_pickled_and_copied_it_is_the_same(tok, tmp_path: Path):
    tok.save(tmp_path / "tok.json")
    loaded = BPETokenizer.load(tmp_path / "tok.json")
    for other in (loaded, pickle.loads(pickle.dumps(tok)), copy.deepcopy(tok)):
        assert other.to_dict() == tok.to_dict() and len(other) == len(tok)
        assert all(other.encode(text) == tok.encode(text) for text in TEXTS.values())


def test_a_changed_rank_in_a_saved_tokenizer_is_seen(tok, tmp_path: Path):
    tok.save(tmp_path / "tok.json")
    changed = json.loads((tmp_path / "tok.json").read_text())
    changed["pattern"] = "gpt2" if changed["pattern"] == "kimi" else "kimi"
    (tmp_path / "tok.json").write_text(json.dumps(changed))
    with pytest.raises(ValueError, match=r"tok\.json is damaged: its values are not those that were written"):
        BPETokenizer.load(tmp_path / "tok.json")


def test_a_file_of_ranks_is_tiktokens(tok, tmp_path: Path):
    file = tmp_path / "ours.tiktoken"
    tok.save_ranks(file)
    assert tiktoken.load.load_tiktoken_bpe(str(file)) == tok.ranks
    assert file.read_bytes().startswith(b"IQ== 0\n")  # as every published one
    assert BPETokenizer.load_ranks(file, tok.pattern).to_dict() == tok.to_dict()


@pytest.mark.parametrize("line", ["IQ==", "IQ== x", "I?Q== 1", "IQ== 1 2", "é 1"])
def test_a_broken_file_of_ranks_names_its_line(tok, tmp_path: Path, line):
    file = tmp_path / "broken.tiktoken"
    file.write_text("IQ== 0\n" + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"line 2: .* is not a token in base64 and its rank"):
        BPETokenizer.load_ranks(file)


STATE = '{"type": "BPETokenizer", "version": 1, "pattern": "gpt2", "specials": {"a": 1}, "ranks": '


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"type": "WordTokenizer"}', '{"type": "BPETokenizer", "version": 2}', "[" * 100_000]
    + [STATE + ranks + "}" for ranks in ("3", '{"YQ==": "b"}', "{}", '{"é": 1}', '{"YQ==": 1.5}')]
    + [STATE.replace('"gpt2"', "[]") + '{"YQ==": 1}}'],
)
def test_another_file_is_refused_in_one_sentence(tmp_path: Path, content):
    (tmp_path / "tok.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"tok.json is not a saved BPETokenizer"):
        BPETokenizer.load(tmp_path / "tok.json")


# ---------------------------------------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def byte_model():
    """An untrained model over single bytes and one reserved special: most of what it tells is no UTF-8."""
    tok = BPETokenizer({byte: i for i, byte in enumerate(BYTES)}, "kimi", {EOS: 256, "<reserved>": 258})
    model = Kimi(KimiConfig.small("k2", len(tok), **PRESETS["k2"]["smoke"].model))
    model.tokenizer = tok
    return model.eval()


@pytest.mark.parametrize("prompt", ["Once upon a time ", "  \n", "", "猫 said"])
def test_a_story_continues_the_prompt_as_it_was_typed(byte_model, prompt):
    told = generate(byte_model, prompt, 60, seed=3)
    assert told.startswith(prompt) and len(told) > len(prompt)
    assert "".join(stream(byte_model, prompt, 60, seed=3)) == told
    reading = Reading(byte_model, prompt, seed=3)
    assert len(list(reading.tell(25))) == 25 and len(list(reading.tell(35))) == 35
    assert reading.text == told and len(reading.words) == len(byte_model.tokenizer.encode(prompt)) + 60
    assert json.loads(json.dumps(reading.to_dict()))["text"] == told


def test_ids_that_stand_for_nothing_are_never_told(byte_model):
    assert byte_model.tokenizer.never_told == [257, 258]
    p = next_token_probabilities(byte_model, "a", temperature=2.0)
    assert p[257] == p[258] == 0 and p[256] > 0 and (p[:256] > 0).all()


def test_a_checkpoint_keeps_it(byte_model, tmp_path: Path):
    save_checkpoint(tmp_path, byte_model, step=0)
    loaded, _ = load_model(tmp_path)
    assert loaded.tokenizer.to_dict() == byte_model.tokenizer.to_dict()
    assert generate(loaded, "a", 20, seed=1) == generate(byte_model, "a", 20, seed=1)


@pytest.mark.parametrize("state", [None, {}, {"type": []}, {"type": "Tokenizer"}, {"type": "BPETokenizer"}])
def test_what_is_no_tokenizer_is_refused(state):
    with pytest.raises(ValueError, match=r"a tokenizer's type is|its version is"):
        tokenizer_from_dict(state)
