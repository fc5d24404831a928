"""Texts one after another: those of load_stories, as often as one asks, and no more read than one takes."""

import gzip
import json
from pathlib import Path

import pytest

from utils.corpus import Corpus, first_texts, usual_source
from utils.sources.read import How
from utils.stories import NoValidationSplit, load_stories

TEXTS = ["One.\n\nTwo lines.", "Ünï — “quotes” 🙂", "Last one."]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    monkeypatch.delenv("TINYSTORIES_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def folder(tmp_path):
    """Files of several kinds, some of them for validation."""
    (tmp_path / "data" / "validation").mkdir(parents=True)
    (tmp_path / "data" / "train.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    (tmp_path / "data" / "train.jsonl.gz").write_bytes(
        gzip.compress(b'{"text": " a "}\n{"text": " "}\n{"text": "b"}\n')
    )
    (tmp_path / "data" / "validation" / "more.json").write_text(json.dumps(["c", "d"]))
    return tmp_path / "data"


@pytest.mark.parametrize("n", [1, 4, 100])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_corpus_is_what_load_stories_loads(folder, n, split):
    for source in ("builtin", folder, str(folder / "**" / "*.*"), [folder, "builtin"]):
        stories, corpus = load_stories(n, split, source), Corpus(n, split, source)
        assert list(corpus) == list(corpus) == stories and len(stories) <= n
        assert Corpus(n, split, corpus.source).identity() == corpus.identity()
        if not isinstance(source, list) or n == 100:  # load_stories names only what it came to
            assert corpus.source == stories.source


def test_a_corpus_is_the_same_from_any_folder_and_by_any_link(folder, monkeypatch):
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    named = [Corpus(9, "train", source) for source in (folder, "data", Path("link"), "./data/../link", ["data"])]
    assert [corpus.identity() for corpus in named[1:]] == [named[0].identity()] * 4
    assert {corpus.source for corpus in named} == {str(folder)}


def test_what_files_do_not_say_is_said(tmp_path):
    (tmp_path / "a.csv").write_bytes("title,tale\nA,café\nB,thé\n".encode("cp1252"))
    how = dict(text_column="tale", encoding="cp1252")
    assert list(Corpus(9, "train", tmp_path / "a.csv", How(**how))) == ["café", "thé"]
    (tmp_path / "a.txt").write_text("a\n--\nb\n")
    assert list(Corpus(9, "train", tmp_path / "a.txt", How(split_on="--"))) == ["a", "b"]


def test_a_source_without_validation_says_so_before_anything_is_read(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"broken")
    with pytest.raises(NoValidationSplit):
        Corpus(9, "validation", ["builtin", tmp_path / "a.parquet"])
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Corpus(9, "train", tmp_path / "b.txt")
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        Corpus(9, "train", "hub")


def test_no_more_is_read_than_taken(tmp_path):
    (tmp_path / "a.jsonl").write_text('"story"\n' * 2000)
    (tmp_path / "b.jsonl").write_text("{broken")
    corpus = Corpus(2000, "train", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"])
    assert list(corpus) == ["story"] * 2000
    with pytest.raises(ValueError, match="broken JSON"):
        list(Corpus(2001, "train", corpus.source))


@pytest.mark.parametrize(
    ("most", "characters", "expected"),
    [
        (9, 99, ("abc", True)),
        (3, 99, ("abc", True)),
        (2, 99, ("ab", False)),
        (9, 2, ("ab", False)),
        (9, 0, ("a", False)),
    ],
)
def test_the_first_texts_are_as_many_as_fit(most, characters, expected):
    taken, are_all = first_texts(iter("abc"), most, characters)
    assert ("".join(taken), are_all) == expected


def test_where_nobody_names_a_source_it_is_that_of_load_stories(monkeypatch, capsys):
    assert usual_source() == ("builtin", load_stories(1).problem) == ("builtin", "no network")
    assert capsys.readouterr().out.startswith("stories: no network, so built-in stories (HF_HUB_OFFLINE is set)\n")
    monkeypatch.setattr("utils.corpus.hub_problem", lambda: None)
    assert usual_source() == ("hub", None)
    monkeypatch.setenv("TINYSTORIES_PATH", "/some/folder")
    assert usual_source() == ("/some/folder", None)
