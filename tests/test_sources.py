"""Texts from files of every kind a person has: read as they are, or one sentence that says why not and what helps."""

import gzip
import json
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from utils.grammar import builtin_stories
from utils.sources.folders import find_files
from utils.sources.shapes import items, shape_of
from utils.stories import NoValidationSplit, load_stories

END = "<|endoftext|>"
TEXTS = ["One.\n\nTwo lines.", "Ünï — “quotes” 🙂", "Last one."]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """No test of this module may use the reader's own data or the real hub."""
    monkeypatch.delenv("TINYSTORIES_PATH", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def parquet(path: Path, columns: dict) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=1000)
    return path


def written(path: Path, texts: list[str], column: str = "text") -> Path:
    """`texts` in the form that the file's ending tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": 1, column: text} for text in texts]
    kind = path.name.partition(".")[2].removesuffix(".gz").removesuffix(".zst")
    if kind == "parquet":
        return parquet(path, {"id": list(range(len(texts))), column: texts})
    if kind in ("csv", "tsv"):
        comma = "," if kind == "csv" else "\t"
        quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
        content = f"id{comma}{column}\n" + "".join(f"{i}{comma}{text}\n" for i, text in enumerate(quoted))
    elif kind == "json":
        content = json.dumps(rows)
    elif kind in ("jsonl", "ndjson"):
        content = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        content = f"\n{END}\n".join(texts)
    data = content.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        data = pyarrow.compress(data, codec="zstd", asbytes=True)
    path.write_bytes(data)
    return path


KINDS = ["txt", "md", "csv", "tsv", "json", "jsonl", "ndjson", "parquet"]
PACKED = [f"{kind}.{how}" for kind in KINDS[:-1] for how in ("gz", "zst")]


# ------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize("ending", [*KINDS, *PACKED, "text", "TXT"])
def test_files_of_every_kind(tmp_path, ending, capsys, monkeypatch):
    path = written(tmp_path / f"mine.{ending}", TEXTS)
    stories = load_stories(source=path)
    assert stories == TEXTS and stories.source == str(path)
    assert load_stories(2, source=str(path)) == TEXTS[:2]
    capsys.readouterr()
    monkeypatch.setenv("TINYSTORIES_PATH", str(path))
    assert load_stories(2) == TEXTS[:2]
    assert capsys.readouterr().out.startswith(f"stories: 2 from {path} (train: ")
    assert load_stories(1, source="builtin") != TEXTS[:1]  # an explicit source comes first


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_the_column_is_the_usual_or_the_only_one_or_the_one_asked_for(tmp_path, ending, capsys):
    path = written(tmp_path / f"mine.{ending}", TEXTS, column="tale")
    assert load_stories(source=path) == TEXTS
    assert "'tale'" in capsys.readouterr().out
    assert load_stories(source=path, text_column="tale") == TEXTS
    with pytest.raises(ValueError, match=r"has no column of text 'story', it must be one of 'tale'"):
        load_stories(source=path, text_column="story")


def test_of_several_columns_the_usual_one_is_read_and_otherwise_it_asks(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("title,story,id\nThe cat,Once.,1\nThe dog,Twice.,2\n")
    assert load_stories(source=path) == ["Once.", "Twice."]
    assert load_stories(source=path, text_column="title") == ["The cat", "The dog"]
    path.write_text("title,tale,id\nThe cat,Once.,1\n")
    with pytest.raises(ValueError, match=r"several columns of text \('title', 'tale'\): say which with --text-column"):
        load_stories(source=path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"no column of text \(none\)"):
        load_stories(source=path)


@pytest.mark.parametrize(
    "value",
    [TEXTS, [{"story": text} for text in TEXTS], {"version": 1, "data": TEXTS}, {"story": TEXTS}],
    ids=["strings", "objects", "in a field", "as a column"],
)
def test_json_of_every_form(tmp_path, value):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert load_stories(source=path) == TEXTS


def test_json_of_one_object_and_lines_that_are_called_json(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"text": "one", "n": 1}')
    assert load_stories(source=path) == ["one"]
    path.write_text('{"text": "one"}\n{"text": "two"}\n')
    assert load_stories(source=path) == ["one", "two"]
    path.write_text('"one"\n"two"\n')
    assert load_stories(source=path) == ["one", "two"]


def test_a_cell_may_hold_lines_and_be_empty(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text('text,n\n"one\n\ntwo ""quoted""",1\n"",2\n  ,3\nthree,4\nthree,5\n')
    assert load_stories(source=path) == ['one\n\ntwo "quoted"', "three", "three"]
    assert "(train: CSV, column 'text', 2 empty left out, 1 repeated)" in capsys.readouterr().out
    parquet(tmp_path / "a.parquet", {"text": ["one", None, ""]})
    assert load_stories(source=tmp_path / "a.parquet") == ["one"]


# ----------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize("ending", ["txt", "csv", "json", "jsonl"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le mark", "utf-16-be mark"])
def test_a_byte_order_mark_is_believed(tmp_path, ending, encoding):
    path = written(tmp_path / f"a.{ending}", TEXTS)
    name, mark = (encoding.removesuffix(" mark"), "\ufeff") if encoding.endswith("mark") else (encoding, "")
    path.write_bytes((mark + path.read_text(encoding="utf-8")).encode(name))
    assert load_stories(source=path) == TEXTS


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_another_encoding_is_read_when_asked_for_and_named_when_not(tmp_path, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(f"one\ncafé, “naïve”\n{END}\nGrüße".replace("“", '"').replace("”", '"').encode(encoding))
    assert load_stories(source=path, encoding=encoding) == ['one\ncafé, "naïve"', "Grüße"]
    with pytest.raises(ValueError, match=r"a\.txt, line 2: .*not UTF-8, and looks like cp1252: .*--encoding cp1252"):
        load_stories(source=path)


def test_utf16_without_a_mark_is_named(tmp_path):
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "a.txt").write_bytes("Once upon a time, ünï.".encode(encoding))
        with pytest.raises(ValueError, match=f"looks like {encoding}"):
            load_stories(source=tmp_path / "a.txt")
        assert load_stories(source=tmp_path / "a.txt", encoding=encoding) == ["Once upon a time, ünï."]


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "zip", ""])
def test_an_encoding_that_is_none_is_refused(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("text")
    if encoding:
        with pytest.raises(ValueError, match=f"encoding is '{encoding}'"):
            load_stories(source=tmp_path / "a.txt", encoding=encoding)
    else:
        assert load_stories(source=tmp_path / "a.txt", encoding=encoding) == ["text"]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_line_ends_of_other_systems_are_line_ends(tmp_path, end):
    (tmp_path / "a.txt").write_bytes(f"one{end}line{end}{END}{end}two{end}".encode())
    assert load_stories(source=tmp_path / "a.txt") == ["one\nline", "two"]


# ----------------------------------------------------------------------------------- shapes of a text

NOVEL = "CHAPTER I\n\n" + "It was a dark night, and the rain\nfell on the roofs of the town.\n\n" * 50
PLAY = "FIRST CITIZEN:\nSpeak, speak.\n\nALL:\nResolved.\n\n" * 50
NAMES = "emma\nolivia\nava\nmary ann\n" * 10
TALES = "\n\n".join(builtin_stories(10)) + "\n"
JOKES = "Why did the hen cross the road? To get to the other side.\nKnock knock! Who is there?\n" * 12
VERSE = "The fox ran far,\nThe moon hung low,\nA silver star\nFell in the snow\n" * 8
CODE = "def f(x):\n    if x == 1:\n        return x\n\n\ndef g(x):\n    return f(x)\n" * 8
LIST = "- one thing to do today\n- another thing that must not be forgotten\n" * 12


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (f"one\n{END}\ntwo\n", END), (f"one{END}two", END), (NOVEL, "none"), (PLAY, "none"), (NAMES, "line"),
        (TALES, "blank-line"), (JOKES, "line"), (VERSE, "none"), (CODE, "none"), (LIST, "none"),
        ("床前明月光\n" * 5, "none"),        ("one line", "none"), ("a\nb\n", "none"), ("", "none"),
    ],
)  # fmt: skip
def test_the_shape_of_a_text_is_seen(text, shape):
    assert shape_of(text.splitlines(keepends=True)) == shape


def test_paragraphs_of_markdown_are_no_items():
    lines = [line + "\n" for line in f"# Tales\n\n{TALES}".split("\n")]
    assert shape_of(lines, prose=False) == "none" and shape_of(TALES.splitlines(keepends=True)) == "blank-line"
    assert shape_of(TALES.splitlines(keepends=True), prose=False) == "none"


@pytest.mark.parametrize(
    ("split_on", "expected"),
    [
        ("none", ["a b\n\nc\n---\nd\n\n\ne"]),
        ("blank-line", ["a b", "c\n---\nd", "e"]),
        ("line", ["a b", "c", "---", "d", "e"]),
        ("---", ["a b\n\nc", "d\n\n\ne"]),
    ],
)
def test_what_stands_between_items_can_be_said(tmp_path, split_on, expected):
    (tmp_path / "a.txt").write_text("a b\n\nc\n---\nd\n\n\ne\n")
    assert load_stories(source=tmp_path / "a.txt", split_on=split_on) == expected


def test_a_mark_counts_wherever_in_a_line_it_stands(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_bytes(f"\ufeff one{END}two\r\nlines {END}\n \n{END}{END} three\n{END}\n".encode())
    assert load_stories(source=path) == ["one", "two\nlines", "three"]
    assert "2 empty left out" in capsys.readouterr().out
    path.write_text(f"one\n{END}\ntwo\n{END}\n")
    load_stories(source=path)
    assert "empty" not in capsys.readouterr().out  # nothing follows the last mark


def test_only_as_much_is_read_as_needed(tmp_path):
    def endless():
        yield from (f"story {i}\n{END}\n" for i in range(20_000))
        pytest.fail("read to the end")

    _, texts = items(endless(), None)
    assert next(texts) == "story 0\n"
    path = written(tmp_path / "a.jsonl", ["story"] * 100_000)
    with open(path, "ab") as file:
        file.write(b"\xff broken\n")
    assert load_stories(3, source=path) == ["story"] * 3
    with pytest.raises(ValueError, match="UTF-8"):
        load_stories(10**6, source=path)


# ------------------------------------------------------------------------------------------- folders


def test_later_files_are_not_opened(tmp_path):
    written(tmp_path / "data" / "train-0.parquet", TEXTS)
    (tmp_path / "data" / "train-1.parquet").write_bytes(b"broken")
    assert load_stories(3, source=tmp_path) == TEXTS


def test_a_folder_with_splits(tmp_path, capsys):
    written(tmp_path / "data" / "train-00000-of-00002.parquet", TEXTS[:1])
    written(tmp_path / "data" / "train-00001-of-00002.jsonl", TEXTS[1:2])
    written(tmp_path / "more" / "Valid.txt", TEXTS[2:])
    written(tmp_path / "notes.txt", ["not a story"])
    (tmp_path / "letter.docx").write_bytes(b"PK\x03\x04")
    (tmp_path / "README.md").write_text("text")
    assert load_stories(source=tmp_path) == TEXTS[:2]
    assert capsys.readouterr().out.rstrip().endswith("; 2 files left out: letter.docx, notes.txt")
    assert load_stories(source=tmp_path, split="validation") == TEXTS[2:]


def test_folders_tell_a_split_too(tmp_path):
    written(tmp_path / "train" / "a.txt", TEXTS[:2])
    written(tmp_path / "validation" / "a.txt", TEXTS[2:])
    assert load_stories(source=tmp_path) == TEXTS[:2]
    assert load_stories(source=tmp_path, split="validation") == TEXTS[2:]


@pytest.mark.parametrize("name", ["the_little_train.txt", "the_invalid_king.txt", "developers.txt"])
def test_a_train_in_a_tale_is_no_split(tmp_path, name):
    for file in ("the_fox.txt", name):
        written(tmp_path / file, [file])
    assert sorted(load_stories(source=tmp_path)) == sorted(["the_fox.txt", name])
    with pytest.raises(NoValidationSplit):
        load_stories(source=tmp_path, split="validation")


def test_what_editors_and_systems_leave_is_no_text(tmp_path):
    written(tmp_path / "a.txt", TEXTS)
    for file in (".a.txt", "~$a.txt", "__MACOSX/a.txt", ".ipynb_checkpoints/a-checkpoint.txt", "LICENSE.txt"):
        written(tmp_path / file, ["hidden"])
    assert load_stories(source=tmp_path) == TEXTS


def test_a_glob_names_files_of_any_ending(tmp_path):
    for name in ("a.py", "b/c.py", "b/d.txt"):
        written(tmp_path / name, [f"# {name}"])
    assert load_stories(source=str(tmp_path / "**" / "*.py")) == ["# a.py", "# b/c.py"]
    with pytest.raises(FileNotFoundError, match=r"no file has a name like .*\*\.java"):
        load_stories(source=str(tmp_path / "*.java"))
    written(tmp_path / "validation" / "e.py", ["# e"])  # whoever names a folder means its files, whatever it is called
    assert load_stories(source=str(tmp_path / "validation" / "*.py")) == ["# e"]
    written(tmp_path / "a[1].txt", ["brackets"])
    assert load_stories(source=tmp_path / "a[1].txt") == ["brackets"]


def test_several_sources_follow_each_other(tmp_path, capsys):
    paths = [written(tmp_path / f"{i}.txt", TEXTS[i : i + 1]) for i in range(3)]
    stories = load_stories(source=[*paths, "builtin"], n=5)
    assert stories[:3] == TEXTS and stories[3:] == builtin_stories(2)
    assert stories.source == [*map(str, paths), "builtin"]
    assert capsys.readouterr().out.count("stories: ") == 4
    assert load_stories(2, source=paths) == TEXTS[:2]


def test_sources_without_a_validation_split(tmp_path):
    file = written(tmp_path / "b.txt", TEXTS[1:])
    written(tmp_path / "a.txt", TEXTS[:1])
    assert load_stories(source=tmp_path) == TEXTS  # no name tells a split: all files are training, sorted
    for source in (file, tmp_path):
        with pytest.raises(NoValidationSplit, match=re.escape(str(source))):
            load_stories(source=source, split="validation")
    assert issubclass(NoValidationSplit, ValueError)


def test_a_folder_with_validation_only(tmp_path):
    written(tmp_path / "valid.txt", TEXTS)
    with pytest.raises(ValueError, match="validation texts only"):
        load_stories(source=tmp_path)


# -------------------------------------------------------------------------------------- what is broken

BAD_FILES = {
    "empty.txt": (b"", "no text"),
    "blank.txt": (f" \n{END}\n{END}".encode(), "no text"),
    "empty.jsonl": (b"\n", "no text"),
    "empty.json": (b"[]", "no text"),
    "nothing.json": (b"", "line 1: broken JSON"),
    "number.json": (b"3", "holds a int"),
    "latin.txt": ("one\ntwo\ncaf\xe9".encode("latin-1"), "line 3.*UTF-8"),
    "cut.jsonl": (b'{"text": "one"}\n{"text": "tw', "line 2: broken JSON"),
    "cut.json": (b'["one", "tw', "line 1: broken JSON"),
    "deep.jsonl": (b"[" * 100_000, "line 1.*"),
    "deep.json": (b"[" * 100_000, "nested too deep"),
    "list.jsonl": (b'{"text": "one"}\n\n["text"]\n', "line 3: has no string 'text'"),
    "fields.jsonl": (b'{"tale": "one", "name": "a"}\n', "'tale', 'name'.*--text-column"),
    "number.jsonl": (b'{"text": 1}\n', "no column of text"),
    "late.jsonl": (b'{"text": "a"}\n{"text": 1}\n', "line 2: has no string 'text'"),
    "bytes.parquet": (b"PAR1 nothing else", "not a whole parquet file"),
    "empty.parquet": (b"", "not a whole parquet file"),
    "empty.csv": (b"", "not a table"),
    "ragged.csv": (b"text,n\none,1\ntwo\n", "not a table"),
    "packed.txt.gz": (b"no gzip", "not a whole compressed file"),
    "cut.txt.gz": (gzip.compress(b"one" * 1000)[:-9], "not a whole compressed file"),
    "packed.txt.zst": (b"no zstd", "not a whole compressed file"),
    "a.pdf": (b"%PDF-1.7 ...", "is a PDF file, not a text"),
    "a.docx": (b"PK\x03\x04...", "a zip archive or an office document, not a text"),
    "a.npy": (b"\x93NUMPY" + bytes(range(256)), "not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_one_sentence_with_their_name(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load_stories(source=tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_bad_parquet_files(tmp_path):
    whole = parquet(tmp_path / "whole.parquet", {"text": builtin_stories(3000)}).read_bytes()
    cases = {"cut": whole[:-100], "hole": whole[:5000] + bytes(len(whole) - 10_000) + whole[-5000:]}
    for name, content in cases.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.parquet") as caught:
            load_stories(source=tmp_path / f"{name}.parquet")
        assert "\n" not in str(caught.value)


def test_missing_path_and_empty_folder(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_stories(source=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no file that ends in one of \.txt, .*by a glob"):
        load_stories(source=tmp_path)
    monkeypatch.setenv("TINYSTORIES_PATH", str(tmp_path / "gone.txt"))
    with pytest.raises(FileNotFoundError, match=r"gone\.txt"):  # never a silent fall-back
        load_stories()


def test_every_file_of_a_folder_belongs_somewhere(tmp_path):
    for name in ("train.txt", "valid.csv", "test.txt", "other.md", "x.bin"):
        (tmp_path / name).write_bytes(b"text")
    files = find_files(tmp_path)
    assert sorted(file.name for part in files for file in part) == sorted(path.name for path in tmp_path.iterdir())
    assert [file.name for file in files.left_out] == ["x.bin", "other.md", "test.txt"]
