"""Stories as tokens: nothing leaks between the splits, and every draw can be repeated."""

import numpy as np
import pandas
import pytest
import torch

from utils.data import TokenData, split_stories, split_text, split_texts
from utils.tokenizer import WordTokenizer

STORIES = [f"story{i} has word{i} and a cat." for i in range(50)]


@pytest.fixture
def tok():
    return WordTokenizer.train(STORIES)


def test_stories_are_split_whole_and_none_is_in_both_parts():
    train, val = split_stories(STORIES, 0.1)
    assert (len(train), len(val)) == (45, 5)
    assert sorted(train + val) == sorted(STORIES)
    assert split_stories(STORIES, 0.1) == (train, val)
    assert split_stories(STORIES, 0.1, seed=1) != (train, val)


def test_copies_of_a_story_lie_on_one_side():
    train, val = split_stories(STORIES[:20] * 3, 0.3)
    assert not set(train) & set(val) and len(train) == 42 and len(val) == 18
    assert split_stories(STORIES * 2, 0.1)[1] == split_stories(STORIES, 0.1)[1] * 2


@pytest.mark.parametrize("text", ["a line\n" * 100, "word " * 100, "猫" * 100, "a" * 20])
def test_the_last_part_of_one_text_validates(text):
    (train,), (val,) = split_text(text)
    assert text.strip().startswith(train) and text.strip().endswith(val)
    assert (train + val).replace(" ", "").replace("\n", "") == text.replace(" ", "").replace("\n", "")
    assert len(train) > 5 * len(val)


def test_every_story_ends_in_end_of_text_and_lies_in_one_split(tok):
    data = TokenData.from_stories(STORIES, tok, val_fraction=0.2)
    told = {}
    for split in ("train", "val"):
        ids = data.split(split)
        assert ids[-1] == tok.eos_id
        pieces = np.split(ids, np.flatnonzero(ids == tok.eos_id) + 1)[:-1]
        told[split] = [tok.decode(piece[:-1].tolist()).lower() for piece in pieces]
    assert (told["train"], told["val"]) == split_stories(STORIES, 0.2)


def test_the_vocabulary_can_come_from_the_training_stories_alone():
    """Fault of the original notebook: its vocabulary was built from training and validation text."""
    train, val = split_stories(STORIES)
    tok = WordTokenizer.train(train)
    data = TokenData.from_stories(STORIES, tok)  # draws the same split
    assert tok.unk_id not in data.split("train")
    assert (data.split("val") == tok.unk_id).sum() == 2 * len(val)  # storyN and wordN, kept as unknown


def test_given_validation_stories_are_the_validation_split(tok):
    data = TokenData.from_stories(STORIES[:10], tok, validation=STORIES[40:42])
    assert (data.split("val") == tok.eos_id).sum() == 2
    assert data.n_bytes == {s: sum(map(len, t)) for s, t in (("train", STORIES[:10]), ("val", STORIES[40:42]))}


def test_one_text_is_not_a_list_of_its_letters(tok):
    text = "story1 has a cat. " * 40
    for take in (
        lambda: TokenData.from_stories(text, tok),
        lambda: TokenData.from_stories(STORIES, tok, validation=text),
        lambda: TokenData.from_stories(text, tok, validation=STORIES),
        lambda: split_stories(text),
        lambda: split_texts(text),
    ):
        with pytest.raises(ValueError, match="stories is one str, it must be an iterable of them: put it in a list"):
            take()


@pytest.mark.parametrize(
    "form",
    [
        tuple,
        np.array,
        lambda stories: (story for story in stories),
        lambda stories: dict.fromkeys(stories).keys(),
        lambda stories: pandas.Series(["", *stories])[lambda column: column != ""],  # numbered from 1
    ],
    ids=["tuple", "array", "generator", "keys", "filtered column"],
)
def test_stories_come_in_any_iterable(tok, form):
    (train, val), expected = split_stories(STORIES), TokenData.from_stories(STORIES, tok)
    for data in (
        TokenData.from_stories(form(STORIES), tok),
        TokenData.from_stories(form(train), tok, validation=form(val)),
    ):
        assert data.fingerprint() == expected.fingerprint() and data.n_bytes == expected.n_bytes
    assert split_stories(form(STORIES)) == split_stories(STORIES)
    assert WordTokenizer.train(form(STORIES)).words == tok.words


def test_two_bytes_a_token_where_the_vocabulary_fits(tok):
    assert TokenData.from_stories(STORIES, tok).tokens.dtype == np.uint16
    many = WordTokenizer.train([" ".join(f"w{i}" for i in range(70_000))])
    data = TokenData.from_stories(["w0 w69999", "w1"], many)
    assert data.tokens.max() == max(many.encode("w69999"))


def test_a_batch_is_windows_of_the_split_and_their_successors(tok):
    data = TokenData.from_stories(STORIES, tok)
    x, y = data.batch("val", 64, 7, torch.Generator().manual_seed(0))
    assert x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (64, 7)
    ids = data.split("val").tolist()
    windows = {tuple(ids[i : i + 8]) for i in range(len(ids) - 7)}
    drawn = {(*row, last) for row, last in zip(map(tuple, x.tolist()), y[:, -1].tolist(), strict=True)}
    assert drawn <= windows and torch.equal(x[:, 1:], y[:, :-1])
    assert len(drawn) > len(windows) / 2  # the first and the last window can be drawn too
    tight, _ = data.batch("val", 4, len(ids) - 1, torch.Generator())
    assert tight.tolist() == [ids[:-1]] * 4


def test_the_place_in_the_data_can_be_saved_and_restored(tok):
    data, generator = TokenData.from_stories(STORIES, tok), torch.Generator().manual_seed(5)
    data.batch("train", 4, 8, generator)
    place = generator.get_state()
    expected = data.batch("train", 4, 8, generator)
    torch.rand(3)  # nothing else has a say
    restored = torch.Generator()
    restored.set_state(place)
    assert all(torch.equal(a, b) for a, b in zip(data.batch("train", 4, 8, restored), expected, strict=True))


def test_the_fingerprint_knows_tokens_and_split(tok):
    prints = {
        TokenData.from_stories(stories, tok, validation=val).fingerprint()
        for stories, val in ((STORIES[:5], STORIES[5:7]), (STORIES[:6], STORIES[6:7]), (STORIES[1:6], STORIES[6:7]))
    }
    assert len(prints) == 3


@pytest.mark.parametrize("of", [1, 2, 3, 6])
def test_processes_share_a_batch(of):
    """Together they read the windows of one process, in its order, and their chance goes on alike."""
    data, alone = TokenData(np.arange(1000, dtype=np.uint16), 900, {}), torch.Generator().manual_seed(0)
    generators = [torch.Generator().manual_seed(0) for _ in range(of)]
    for _ in range(2):
        whole = data.batch("train", 12, 8, alone)
        n = 12 // of
        parts = [data.batch("train", 12, 8, g, slice(i * n, (i + 1) * n)) for i, g in enumerate(generators)]
        assert all(len(x) == len(y) == n for x, y in parts)
        assert all(torch.equal(torch.cat(both), one) for both, one in zip(zip(*parts, strict=True), whole, strict=True))


def test_a_fingerprint_that_is_known_is_not_computed():
    tokens = np.arange(10)
    assert TokenData(tokens, 5, {}, "known").fingerprint() == "known" != TokenData(tokens, 5, {}).fingerprint()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d, t: d.batch("test", 1, 4, torch.Generator()), "split is 'test', it must be one of train, val"),
        (lambda d, t: d.batch("val", 1, 999, torch.Generator()), "a block of 999 needs at least 1000"),
        (lambda d, t: TokenData.from_stories(["one"], t), "the text 'one' cannot be split"),
        (lambda d, t: split_stories(["one", "one"]), "1 story cannot be split"),
        (lambda d, t: TokenData.from_stories(STORIES, t, val_fraction=1.5), "val_fraction is 1.5"),
        (lambda d, t: TokenData.from_stories(STORIES, t, validation=[]), "no stories for the val split"),
    ],
)
def test_bad_input_is_named(tok, call, message):
    with pytest.raises(ValueError, match=message):
        call(TokenData.from_stories(STORIES, tok), tok)
