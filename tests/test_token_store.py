"""Tokens on disk: the very ones that memory would hold, whatever happened while they were written."""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import tiny_model
from utils import token_store, token_workers
from utils.config import TrainConfig
from utils.corpus import Corpus
from utils.data import TokenData
from utils.grammar import builtin_stories
from utils.sources.read import NOT_TEXT
from utils.stories import load_stories
from utils.token_store import TokenStore
from utils.token_workers import HELD_OUT, Workers, held_out
from utils.tokenizer import BPETokenizer, WordTokenizer
from utils.training import train

ROOT = Path(__file__).resolve().parents[1]
ODD = [
    "e",
    "<|endoftext|> <unk>",
    "Ünï — “quotes” 🙂",
    "猫が好き",
    "half \ud800 of a pair",
    "İstanbul",
    "a\n\nb",
    "x" * 5000,
]
STORIES = [story for i, told in enumerate(builtin_stories(300)) for story in (told, f"{i} {ODD[i % len(ODD)]}")]
TOKENIZERS = {
    "word": WordTokenizer.train(STORIES[:100]),
    "bpe": BPETokenizer.train(STORIES[:100], 400, "kimi"),
    "many words": WordTokenizer.train([*STORIES[:100], " ".join(f"w{i}" for i in range(66_000))]),
}
TOK = TOKENIZERS["word"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(token_store, "BLOCK_CHARACTERS", 3000)
    monkeypatch.setattr(token_store, "BLOCK_TEXTS", 7)


def source(path: Path, stories=STORIES) -> Path:
    """A file of these stories; JSON can say half of a surrogate pair."""
    path.write_text("".join(json.dumps(story) + "\n" for story in stories))
    return path


def corpora(path: Path, n=10**9) -> tuple[Corpus, None]:
    return Corpus(n, "train", path), None


def store_of(home: Path, corpus: Corpus, tok=TOK) -> TokenStore:
    return TokenStore(home, [corpus.identity(), None], tok)


def in_memory(tok=TOK, stories=STORIES) -> TokenData:
    """What the store has to hold, by the way that existed before it."""
    stories = [NOT_TEXT.sub("", story) for story in stories]
    parts = {part: [s for s in stories if held_out(s) == part] for part in (False, True)}
    return TokenData.from_stories(parts[False], tok, validation=parts[True])


def same(stored: TokenData, memory: TokenData) -> bool:
    return (
        np.array_equal(stored.tokens, memory.tokens)
        and stored.tokens.dtype == memory.tokens.dtype
        and stored.n_train == memory.n_train
        and stored.n_bytes == memory.n_bytes
        and stored.fingerprint() == memory.fingerprint()
    )


# --------------------------------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("n_workers", [1, 3])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_store_holds_what_memory_would(tmp_path, tokenizer, n_workers):
    tok = TOKENIZERS[tokenizer]
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    data = store_of(tmp_path, corpus, tok).fill(corpus, None, n_workers)
    assert isinstance(data.tokens, np.memmap) and same(data, in_memory(tok))
    assert data.tokens.dtype == (np.int32 if tokenizer == "many words" else np.uint16)
    assert same(store_of(tmp_path, corpus, tok).open(), data)
    left = {file.name for file in store_of(tmp_path, corpus, tok).folder.iterdir()}
    assert left - {"lock"} == {"tokens.bin", "store.json"}


@pytest.mark.parametrize("n_workers", [1, 2])
def test_validation_stories_of_the_source_are_the_validation_split(tmp_path, n_workers):
    train_texts, val_texts = Corpus(90, "train", "builtin"), Corpus(20, "validation", "builtin")
    data = store_of(tmp_path, train_texts).fill(train_texts, val_texts, n_workers)
    told = [load_stories(n, split, "builtin") for n, split in ((90, "train"), (20, "validation"))]
    assert same(data, TokenData.from_stories(told[0], TOK, validation=told[1]))


def test_a_run_on_a_store_has_the_losses_of_one_in_memory(tmp_path):
    config = TrainConfig(steps=4, batch_size=2, block_size=16, eval_interval=2, eval_batches=1, number_format="fp32")
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    stored = store_of(tmp_path, corpus).fill(corpus, None, 1)
    one, other = (train(tiny_model(len(TOK)), data, config, tmp_path / str(i)) for i, data in
                  enumerate((stored, in_memory())))  # fmt: skip
    assert one.losses == other.losses and [r["val_loss"] for r in one.rows] == [r["val_loss"] for r in other.rows]
    # each goes on with the data of the other, for they are the same
    longer = TrainConfig(**{**vars(config), "steps": 6})
    again = [train(tiny_model(len(TOK)), data, longer, tmp_path / str(i), resume=True) for i, data in
             enumerate((in_memory(), stored))]  # fmt: skip
    assert again[0].losses == again[1].losses and again[0].losses[:4] == one.losses


def test_copies_of_a_text_lie_on_one_side_and_one_in_a_hundred_validates(tmp_path):
    texts = builtin_stories(20_000, 5)
    share = sum(map(held_out, texts)) / len(texts)
    assert abs(share * HELD_OUT - 1) < 0.3  # four standard deviations of a draw
    twice = [text for text in texts[:1500] for _ in range(2)]
    corpus, _ = corpora(source(tmp_path / "a.jsonl", twice))
    data = store_of(tmp_path, corpus).fill(corpus, None, 1)
    told = [{tuple(one) for one in np.split(ids, np.flatnonzero(ids == TOK.eos_id) + 1)[:-1]} for ids in
            (data.split("train"), data.split("val"))]  # fmt: skip
    assert told[1] and not told[0] & told[1]


# ------------------------------------------------------------------------------------------- going on

STOPPED = """
import os, signal, sys
from utils import token_store
from utils.corpus import Corpus
from utils.token_store import TokenStore
from utils.tokenizer import WordTokenizer

home, path, tok, block, moment = sys.argv[1:]
token_store.BLOCK_CHARACTERS, token_store.BLOCK_TEXTS = 3000, 7
corpus, seen = Corpus(10**9, "train", path), []

def dying(name):
    call = getattr(TokenStore, name)
    def wrapped(store, *arguments):
        seen.append(name)
        if seen.count(name) == int(block) and name == moment:
            print(*[process.pid for process in token_store.WORKERS.processes], flush=True)
            if name == "_say":  # tokens of the block are in the files, and nothing says so
                os.kill(os.getpid(), signal.SIGKILL)
            call(store, *arguments)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(store, *arguments)
    setattr(TokenStore, name, wrapped)

class Watched(token_store.Workers):
    def __enter__(self):
        token_store.WORKERS = self
        return super().__enter__()

token_store.Workers = Watched
dying("_say"), dying("_append")
TokenStore(home, [corpus.identity(), None], WordTokenizer.load(tok)).fill(corpus, None, 2)
"""


def killed(tmp_path, path, block, moment) -> list[int]:
    """Tokenise in another process, which is killed at a block; the process ids of its workers."""
    TOK.save(tmp_path / "tok.json")
    command = [sys.executable, "-c", STOPPED, str(tmp_path), str(path), str(tmp_path / "tok.json"), str(block), moment]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    return list(map(int, done.stdout.splitlines()[-1].split()))


def is_running(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat")
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
@pytest.mark.parametrize("moment", ["_say", "_append"])
def test_a_killed_writer_is_gone_on_with_to_the_same_bytes(tmp_path, moment, monkeypatch):
    path = source(tmp_path / "a.jsonl")
    corpus, _ = corpora(path)
    n_blocks = len(list(token_store._blocks(corpus)))
    rng = random.Random(moment)
    first, second = rng.randrange(2, n_blocks // 2), rng.randrange(2, n_blocks // 3)
    workers = killed(tmp_path, path, first, moment)
    store = store_of(tmp_path, corpus)
    assert store.open() is None and (store.folder / "tokens.bin").stat().st_size > 0
    workers += killed(tmp_path, path, second, moment)
    assert len(workers) == 4
    for _ in range(300):  # they see that their parent has gone
        if not any(map(is_running, workers)):
            break
        threading.Event().wait(0.1)
    assert not any(map(is_running, workers))
    encoded, encode = [], token_workers.encode
    monkeypatch.setattr(token_workers, "encode", lambda tok, texts: encoded.extend(texts) or encode(tok, texts))
    assert same(store.fill(corpus, None, 1), in_memory())
    n_done = first + second - (2 if moment == "_say" else 0)
    done = [len(block) for block in token_store._blocks(corpus)][:n_done]
    assert len(encoded) == len(STORIES) - sum(done)  # at most the block in work was made again


def test_ctrl_c_keeps_what_is_made(tmp_path, monkeypatch, capsys):
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    append, calls = TokenStore._append, []

    def interrupted(store, *arguments):
        calls.append(append(store, *arguments))
        if len(calls) == 9:
            raise KeyboardInterrupt

    monkeypatch.setattr(TokenStore, "_append", interrupted)
    store = store_of(tmp_path, corpus)
    with pytest.raises(KeyboardInterrupt):
        store.fill(corpus, None, 2)
    assert "stopped: the tokens made so far are kept" in capsys.readouterr().out
    assert store.open() is None
    monkeypatch.undo()
    assert same(store.fill(corpus, None, 1), in_memory())
    assert "tokens: goes on after " in capsys.readouterr().out


@pytest.mark.parametrize("split", ["tokens.bin", "val.bin"])
def test_a_part_that_was_altered_meanwhile_is_not_gone_on_with(tmp_path, monkeypatch, split):
    corpus, _ = corpora(source(tmp_path / "a.jsonl", builtin_stories(600)))
    store, finish = store_of(tmp_path, corpus), TokenStore._finish
    monkeypatch.setattr(TokenStore, "_finish", lambda *_: pytest.fail("stopped before the end"))
    with pytest.raises(pytest.fail.Exception):
        store.fill(corpus, None, 1)
    monkeypatch.setattr(TokenStore, "_finish", finish)
    change(store.folder / split, 5)
    assert same(store.fill(corpus, None, 1), in_memory(stories=builtin_stories(600)))


@pytest.mark.parametrize("moment", ["before it is said", "after"])
def test_stopped_while_the_validation_tokens_are_joined(tmp_path, monkeypatch, moment):
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    store, say = store_of(tmp_path, corpus), TokenStore._say

    def stop(self, state):
        if moment == "after" or not state["fingerprint"]:
            say(self, state)
        if state["fingerprint"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(TokenStore, "_say", stop)
    with pytest.raises(KeyboardInterrupt):
        store.fill(corpus, None, 1)
    monkeypatch.undo()
    assert (store.folder / "val.bin").exists() and (store.open() is None) == (moment != "after")
    assert same(store.fill(corpus, None, 1), in_memory())


def test_who_comes_second_waits_and_writes_nothing(tmp_path, monkeypatch):
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    write, writers = TokenStore._write, []
    monkeypatch.setattr(TokenStore, "_write", lambda store, *a: writers.append(store) or write(store, *a))
    found = {}
    threads = [threading.Thread(target=lambda i=i: found.update({i: store_of(tmp_path, corpus).fill(corpus, None, 1)}))
               for i in range(4)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(writers) == 1 and len(found) == 4 and all(same(data, in_memory()) for data in found.values())


# --------------------------------------------------------------------------------- never another's tokens


def change(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


DAMAGES = {
    "a bit of a token": lambda folder: change(folder / "tokens.bin", 999),
    "its end cut off": lambda folder: os.truncate(folder / "tokens.bin", 1000),
    "something behind it": lambda folder: (folder / "tokens.bin").open("ab").write(b"\0\0"),
    "no tokens": lambda folder: (folder / "tokens.bin").unlink(),
    "another number": lambda folder: (folder / "store.json").write_text(
        (folder / "store.json").read_text().replace('"n_bytes": {"train": ', '"n_bytes": {"train": 1')
    ),
    "no JSON": lambda folder: os.truncate(folder / "store.json", 50),
    "a list": lambda folder: (folder / "store.json").write_text("[]"),
    "another object": lambda folder: (folder / "store.json").write_text('{"fingerprint": "yes"}'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_store_is_made_again(tmp_path, damage):
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    store = store_of(tmp_path, corpus)
    store.fill(corpus, None, 1)
    before = (store.folder / "store.json").read_bytes()
    DAMAGES[damage](store.folder)
    if damage == "another number":
        assert (store.folder / "store.json").read_bytes() != before
    assert store.open() is None
    assert same(store.fill(corpus, None, 1), in_memory())


def test_other_texts_or_another_tokenizer_are_another_store(tmp_path):
    path = source(tmp_path / "a.jsonl")
    (tmp_path / "b.txt").write_text("a b\n\nc d\n")
    table = tmp_path / "c.csv"
    table.write_text("text,story\na b,c d\n")
    how = {name: token_store.Corpus(5, "train", table, load_how(**options)) for name, options in
           {"": {}, "column": dict(text_column="story"), "encoding": dict(encoding="latin-1")}.items()}  # fmt: skip
    corpuses = [
        *how.values(), Corpus(5, "train", path), Corpus(6, "train", path), Corpus(5, "train", [path, table]),
        Corpus(5, "train", "builtin"), Corpus(5, "validation", "builtin"), Corpus(6, "train", "builtin"),
        Corpus(5, "train", tmp_path / "b.txt"), Corpus(5, "train", tmp_path / "b.txt", load_how(split_on="line")),
    ]  # fmt: skip
    folders = {store_of(tmp_path, corpus).folder for corpus in corpuses}
    folders |= {store_of(tmp_path, corpuses[0], tok).folder for tok in TOKENIZERS.values()}
    assert len(folders) == len(corpuses) + len(TOKENIZERS) - 1
    assert store_of(tmp_path, Corpus(5, "train", path)).folder == store_of(tmp_path, Corpus(5, "train", path)).folder
    before = store_of(tmp_path, Corpus(5, "train", path)).folder
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert store_of(tmp_path, Corpus(5, "train", path)).folder != before


def load_how(**options):
    from utils.sources.read import How

    return How(**options)


def test_another_grammar_is_another_source(monkeypatch):
    before = Corpus(5, "train", "builtin").identity()
    monkeypatch.setattr("utils.corpus.builtin_stories", lambda n, seed: ["another"])
    assert Corpus(5, "train", "builtin").identity() != before


def test_files_that_change_meanwhile_are_refused(tmp_path, monkeypatch):
    path = source(tmp_path / "a.jsonl")
    corpus, _ = corpora(path)
    append = TokenStore._append
    monkeypatch.setattr(TokenStore, "_append", lambda store, *a: append(store, *a) or os.utime(path, (1, 1)))
    store = store_of(tmp_path, corpus)
    with pytest.raises(ValueError, match="the files changed while they were tokenised"):
        store.fill(corpus, None, 1)
    assert store.open() is None


# ------------------------------------------------------------------------------------------- what fails


def test_a_full_disk_is_one_sentence_and_then_it_goes_on(tmp_path, monkeypatch):
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    write, calls = token_store.write_text, []

    def full(path, text):
        calls.append(write(path, text))
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(token_store, "write_text", full)
    store = store_of(tmp_path, corpus)
    with pytest.raises(
        OSError, match=rf"tokens cannot be written to {store.folder} \(No space left on device\): --tok"
    ):
        store.fill(corpus, None, 2)
    assert store.open() is None
    assert same(store.fill(corpus, None, 1), in_memory())


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path):
    (tmp_path / "tokens").write_text("a file")
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    with pytest.raises(
        OSError, match=r"tokens cannot be written to .*tokens.* \(.+\): --tokens DIR puts them elsewhere"
    ):
        store_of(tmp_path / "tokens", corpus).fill(corpus, None, 1)


def test_a_worker_that_is_ended_from_outside_is_one_sentence(tmp_path, monkeypatch):
    corpus, _ = corpora(source(tmp_path / "a.jsonl"))
    send = token_workers._send

    def end(process, value):
        if isinstance(value, tuple):
            process.kill()
            process.wait()
        send(process, value)

    monkeypatch.setattr(token_workers, "_send", end)
    with pytest.raises(OSError, match="a process that tokenises was ended from outside: is there enough memory"):
        store_of(tmp_path, corpus).fill(corpus, None, 2)


def test_a_split_without_texts_is_refused(tmp_path):
    corpus, _ = corpora(source(tmp_path / "a.jsonl", ["one"]))
    assert not held_out("one")
    with pytest.raises(ValueError, match=r"no stories for the val split, at least 1 is needed \(1 of 100 texts"):
        store_of(tmp_path, corpus).fill(corpus, None, 1)


def test_an_error_of_the_source_is_its_own(tmp_path):
    path = source(tmp_path / "a.jsonl")
    path.write_text(path.read_text() + "{broken\n")
    corpus, _ = corpora(path)
    with pytest.raises(ValueError, match=r"a\.jsonl, line 601: broken JSON"):
        store_of(tmp_path, corpus).fill(corpus, None, 2)


# --------------------------------------------------------------------------------------- the processes


def test_workers_import_neither_torch_nor_numpy():
    """Each would be 200 MB larger."""
    code = "import sys, utils.token_workers; print(sorted({'torch', 'numpy', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_few_blocks_are_under_way_at_once():
    taken = []
    blocks = (taken.append(i) or [f"story {i}"] for i in range(100))
    with Workers(TOK, 3) as workers:
        for i, (n_texts, parts) in enumerate(workers.encode(blocks, "train")):
            assert n_texts == 1 and parts["train"].tokens == token_workers.encode(TOK, [f"story {i}"]).tokens
            assert len(taken) <= i + 6
    assert all(process.returncode is not None for process in workers.processes)
