"""The tokens of a corpus in a memory-mapped array on disk: written once, in bounded memory, and used by every run.

A store is a folder. `tokens.bin` is the array, training tokens first, and `store.json` says what is in it; what it does
not say does not count. While the store is written, validation tokens wait in `val.bin`, and `store.json` is replaced
after each block of texts: who is stopped goes on after the last one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from utils.corpus import Corpus
from utils.data import SPLITS, TokenData, fingerprint_of
from utils.files import read_json, write_text
from utils.token_workers import HELD_OUT, Encoded, Workers, token_type
from utils.tokenizer import BPETokenizer, WordTokenizer

FORM = 2  # of the folder: another form is another store
BLOCK_CHARACTERS, BLOCK_TEXTS = 1 << 20, 10_000  # a block ends at either
PIECE = 1 << 22  # bytes that are read from a file at a time


def key_of(value: object) -> str:
    """A short name for plain values, another one for others."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


class TokenStore:
    """Tokens in a folder of their own in `home`.

    identity: plain values that name the texts, see `Corpus.identity`. tok: the tokenizer. Where either differs, it is
    another folder.
    """

    def __init__(self, home: str | Path, identity: object, tok: WordTokenizer | BPETokenizer):
        self.tok, self.dtype = tok, np.dtype(token_type(tok))
        self.folder = Path(home) / key_of([FORM, identity, tok.to_dict()])
        self.tokens, self.val, self.file = (self.folder / name for name in ("tokens.bin", "val.bin", "store.json"))

    def open(self) -> TokenData | None:
        """The data of a finished store; None where it is not finished, or where its bytes are not those written."""
        state = self._state()
        if state["fingerprint"] is None:
            return None
        n_train, n_tokens = state["n_tokens"]["train"], sum(state["n_tokens"].values())
        n_bytes = n_tokens * self.dtype.itemsize
        digest = _digest(self.tokens, n_bytes)  # reads the file once: a second for each GB
        whole = digest and self.tokens.stat().st_size == n_bytes
        if not whole or fingerprint_of(digest, self.dtype, n_train) != state["fingerprint"]:
            print(f"tokens: those in {self.folder} are damaged and are made again")
            return None
        tokens = np.memmap(self.tokens, self.dtype, "r", shape=(n_tokens,))
        return TokenData(tokens, n_train, state["n_bytes"], state["fingerprint"])

    def describe(self) -> str:
        """What the store holds, and where."""
        state = self._state()
        n_texts, n_tokens = sum(state["n_texts"].values()), sum(state["n_tokens"].values())
        megabytes = n_tokens * self.dtype.itemsize / 1e6
        return f"{n_texts:,} stories, {n_tokens:,} tokens, {megabytes:,.0f} MB in {self.folder}"

    def fill(self, train: Corpus, val: Corpus | None, n_workers: int) -> TokenData:
        """Tokenise the texts, or those that are still missing, with `n_workers` processes.

        val: the validation texts; None holds some of `train` out, see `held_out`. One caller writes, others wait for
        it. Raises OSError where the disk is full or not writable, ValueError where a split gets no text or where the
        files changed meanwhile.
        """
        with self._on_disk():
            self.folder.mkdir(parents=True, exist_ok=True)
        with self.alone():
            data = self.open()
            if data is None:
                try:
                    self._write(train, val, n_workers)
                except KeyboardInterrupt:
                    print("stopped: the tokens made so far are kept, the same command goes on from there")
                    raise
                data = self.open()
        return data

    def _write(self, train: Corpus, val: Corpus | None, n_workers: int) -> None:
        identities = [corpus and corpus.identity() for corpus in (train, val)]
        state, digests = self._so_far()
        if state["n_read"]["train"]:
            print(f"tokens: goes on after {sum(state['n_texts'].values()):,} stories")
        bar = tqdm(total=train.n, initial=state["n_read"]["train"], unit=" stories", desc="tokens", mininterval=1.0)
        with bar, Workers(self.tok, n_workers) as workers:
            for split, corpus in (("train", train), ("val", val)):
                if corpus is None:
                    continue
                blocks = _blocks(islice(corpus, state["n_read"][split], None))
                for n_read, parts in workers.encode(blocks, None if val is None else split):
                    state["n_read"][split] += n_read
                    self._append(state, digests, parts)
                    bar.update(n_read if corpus is train else 0)
        if identities != [corpus and corpus.identity() for corpus in (train, val)]:
            raise ValueError("the files changed while they were tokenised: start again")
        if empty := [split for split in SPLITS if not state["n_texts"][split]]:
            rule = "" if val else f" (1 of {HELD_OUT} texts validates where no file or folder is named so)"
            raise ValueError(f"there are no stories for the {empty[0]} split, at least 1 is needed{rule}")
        self._finish(state, digests)

    def _append(self, state: dict, digests: dict, parts: dict[str, Encoded]) -> None:
        """Add a block to the files, then say so."""
        with self._on_disk():
            for split, part in parts.items():
                with open(self._file(split), "ab") as file:
                    file.write(part.tokens)
                digests[split].update(part.tokens)
                state["n_texts"][split] += part.n_texts
                state["n_bytes"][split] += part.n_bytes
                state["n_tokens"][split] += len(part.tokens) // self.dtype.itemsize
            state["digests"] = {split: digest.hexdigest() for split, digest in digests.items()}
            self._say(state)

    def _finish(self, state: dict, digests: dict) -> None:
        """Training tokens, then validation tokens, in one file."""
        with self._on_disk():
            with open(self.tokens, "ab") as file:
                for piece in _pieces(self.val, self._size(state, "val")):
                    file.write(piece)
                    digests["train"].update(piece)
                file.flush()
                os.fsync(file.fileno())
            state["fingerprint"] = fingerprint_of(digests["train"], self.dtype, state["n_tokens"]["train"])
            self._say(state)
            self.val.unlink()

    def _so_far(self) -> tuple[dict, dict]:
        """(state, digest of each split's tokens) where the last writer was stopped, whose unfinished block is cut off.

        From the beginning where nothing was written, or the files are not as they were left.
        """
        state = self._state()
        digests = {split: _digest(self._file(split), self._size(state, split)) for split in SPLITS}
        as_left = {split: digest and digest.hexdigest() for split, digest in digests.items()} == state["digests"]
        if state["fingerprint"] or not as_left:
            state, digests = _nothing(), {split: hashlib.sha256() for split in SPLITS}
        with self._on_disk():
            for split in SPLITS:
                with open(self._file(split), "ab") as file:
                    file.truncate(self._size(state, split))
        return state, digests

    def _file(self, split: str) -> Path:
        return self.tokens if split == "train" else self.val

    def _size(self, state: dict, split: str) -> int:
        return state["n_tokens"][split] * self.dtype.itemsize

    def _say(self, state: dict) -> None:
        write_text(self.file, json.dumps({**state, "check": key_of(state)}))

    def _state(self) -> dict:
        """What `_say` wrote, or nothing where there is none or something else."""
        try:
            state = read_json(self.file)
        except (FileNotFoundError, ValueError):
            return _nothing()
        check = state.pop("check", None)
        return state if check == key_of(state) else _nothing()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock of the folder, which falls when its holder ends, however that is."""
        lock = FileLock(self.folder / "lock")
        try:
            with self._on_disk():
                lock.acquire(timeout=0)
        except Timeout:
            print(f"tokens: another process makes those in {self.folder}, waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except Timeout:
            raise
        except OSError as error:
            reason = error.strerror or error
            raise OSError(
                f"tokens cannot be written to {self.folder} ({reason}): --tokens DIR puts them elsewhere"
            ) from None


def _nothing() -> dict:
    """The state of a store in which nothing is written; n_read counts the texts taken from each corpus."""
    counts = {name: dict.fromkeys(SPLITS, 0) for name in ("n_read", "n_texts", "n_tokens", "n_bytes")}
    return {**counts, "digests": dict.fromkeys(SPLITS, hashlib.sha256().hexdigest()), "fingerprint": None}


def _blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    block, size = [], 0
    for text in texts:
        block.append(text)
        size += len(text)
        if size >= BLOCK_CHARACTERS or len(block) == BLOCK_TEXTS:
            yield block
            block, size = [], 0
    if block:
        yield block


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, fewer where it is shorter."""
    with open(path, "rb") as file:
        while size > 0 and (piece := file.read(min(PIECE, size))):
            yield piece
            size -= len(piece)


def _digest(path: Path, size: int):
    """SHA-256 of the first `size` bytes of a file, None where it has fewer."""
    if not path.is_file() or path.stat().st_size < size:
        return None
    digest = hashlib.sha256()
    for piece in _pieces(path, size):
        digest.update(piece)
    return digest
