"""Damaged files of every kind that the project reads: none is taken silently, none is a traceback, none eats memory."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from tests.helpers import old_state
from tests.proofs.found import Found
from utils.__main__ import main as command_line
from utils.checkpoint import load_model
from utils.corpus import Corpus
from utils.grammar import builtin_stories
from utils.sources.read import How
from utils.token_store import TokenStore

ROOT = Path(__file__).resolve().parents[2]
LIMIT_SECONDS, LIMIT_BYTES = 10, 10**9
# A text has no checksum: what is changed in it is another text. Of these only tracebacks, memory and time count.
WITHOUT_CHECKSUM = ("texts",)


def originals(folder: Path) -> list[tuple[str, Path]]:
    """(kind, file): one of each that the project writes, and texts of each form that it reads."""
    import pyarrow
    import pyarrow.parquet

    quiet = ["--preset", "smoke", "--source", "builtin", "--stories", "100", "--steps", "3"]
    with contextlib.redirect_stdout(sys.stderr):
        command_line(["train", *quiet, "--run", str(folder / "words")])
        command_line(["train", *quiet, "--tokenizer", "bpe", "--vocab-size", "400", "--run", str(folder / "pieces")])
        command_line(["export", "--run", str(folder / "words"), "--to", str(folder / "hf")])
        command_line(["export", "--run", str(folder / "pieces"), "--to", str(folder / "hf-bpe")])
    files = [("checkpoint", folder / name / "checkpoint.safetensors") for name in ("words", "pieces")]
    for name in ("hf", "hf-bpe"):
        files += [("export", file) for file in sorted((folder / name).iterdir())]
    for kind in ("words", "pieces"):
        file = folder / f"{kind}.json"
        load_model(folder / kind)[0].tokenizer.save(file)
        files.append((kind, file))
    tok = load_model(folder / "words")[0].tokenizer
    store = TokenStore(folder / "store", "texts", tok)
    text = folder / "stored.txt"
    text.write_text("\n<|endoftext|>\n".join(builtin_stories(300, 1)))
    with contextlib.redirect_stdout(sys.stderr):
        store.fill(Corpus(300, "train", str(text), How()), None, 1)
    files += [("store", store.tokens), ("store", store.file)]
    old = folder / "old"
    old.mkdir()
    torch.save(old_state(folder / "words"), old / "checkpoint.pt")
    files.append(("old", old / "checkpoint.pt"))
    stories = builtin_stories(40, 0)
    rows = [{"text": story, "n": i} for i, story in enumerate(stories)]
    texts = {
        "a.txt": "\n<|endoftext|>\n".join(stories),
        "a.jsonl": "\n".join(map(json.dumps, rows)),
        "a.json": json.dumps(rows),
        "a.csv": "text\n" + "\n".join('"' + story.replace('"', '""') + '"' for story in stories),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    import gzip

    (folder / "b.txt.gz").write_bytes(gzip.compress(texts["a.txt"].encode()))
    (folder / "b.jsonl.zst").write_bytes(pyarrow.compress(texts["a.jsonl"].encode(), codec="zstd", asbytes=True))
    pyarrow.parquet.write_table(pyarrow.table({"text": stories}), folder / "a.parquet")
    names = (*texts, "b.txt.gz", "b.jsonl.zst", "a.parquet")
    return files + [("texts", folder / name) for name in names]


def flip_a_bit(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def flip_a_bit_of_the_head(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(min(len(data), 4096))] ^= 1 << chance.randrange(8)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def zero_a_page(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start : start + 4096] = bytes(len(data[start : start + 4096]))


def repeat_a_piece(data: bytearray, chance: random.Random) -> None:
    start, end = sorted(chance.randrange(len(data)) for _ in range(2))
    data[end:end] = data[start:end]


def lose_a_piece(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.randint(1, 100)]


def change_a_number(data: bytearray, chance: random.Random) -> None:
    digits = [i for i, byte in enumerate(data[:20_000]) if 48 <= byte <= 57]
    if digits:
        i = chance.choice(digits)
        data[i : i + 1] = chance.choice([b"-1", b"9" * 20, b"1e400", b"null", b'"x"', b"[]"])


def append(data: bytearray, chance: random.Random) -> None:
    data += chance.randbytes(chance.randint(1, 5000))


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip_a_bit, flip_a_bit_of_the_head, cut, zero_a_page, repeat_a_piece, lose_a_piece, change_a_number, append,
]  # fmt: skip


class Reader:
    """A process that reads files, started again where it ended."""

    def __init__(self):
        self.process: subprocess.Popen | None = None

    def __call__(self, kind: str, path: Path) -> tuple[str, float, int]:
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.proofs.reader"], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self.process.stdin.write(f"{kind} {path}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        return tuple(json.loads(line)) if line else ("traceback the process ended", 0.0, 0)


def prove(folder: Path, n: int, seed: int) -> Found:
    """Damage `n` times a file, each as its turn comes, in one of eight ways, and read it."""
    chance, reader, problems, counts = random.Random(seed), Reader(), [], Counter()
    files = originals(folder)
    whole = {path: reader(kind, path)[0] for kind, path in files}
    problems += [f"{path.name} as it was written: {said}" for path, said in whole.items() if said[:4] != "read"]
    seconds_most, bytes_most = 0.0, 0
    for i in range(n):
        kind, path = files[i % len(files)]
        kept, data = path.read_bytes(), bytearray(path.read_bytes())
        damage = chance.choice(DAMAGES)
        damage(data, chance)
        path.write_bytes(data)
        said, seconds, peak = reader(kind, path)
        path.write_bytes(kept)
        seconds_most, bytes_most = max(seconds_most, seconds), max(bytes_most, peak)
        what = f"{i}: {kind} {path.name}, {damage.__name__}"
        counts[said.split()[0]] += 1
        harmless = bytes(data) == kept or kind in WITHOUT_CHECKSUM
        if said.startswith("traceback") or "\n" in said:
            problems.append(f"{what}: {said}")
        elif said.startswith("read") and said != whole[path] and not harmless:
            problems.append(f"{what}: read silently")
        if seconds > LIMIT_SECONDS or peak > LIMIT_BYTES:
            problems.append(f"{what}: {seconds:.0f} s, {peak / 1e6:.0f} MB")
    told = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    return Found(
        f"{n} damaged files of {len(files)}: {told}; at most {seconds_most:.2f} s and {bytes_most / 1e6:.0f} MB",
        problems,
    )
