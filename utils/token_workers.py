"""Processes that turn blocks of texts into tokens, side by side and in order.

They are plain Python processes that import the tokenizer and nothing else. Those of multiprocessing would import the
caller's main module again, and with it torch: 200 MB each.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import zlib
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from utils.tokenizer import BPETokenizer, WordTokenizer, tokenizer_from_dict

HELD_OUT = 100  # one text of so many validates, where the source has no part for it
# Ctrl-C is for the parent, which then ends its workers.
START = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.path.insert(0, sys.argv[1])
from utils.token_workers import serve
serve()
"""
ENDED = "a process that tokenises was ended from outside: is there enough memory?"


class Encoded(NamedTuple):
    """The tokens of some texts that belong to one split."""

    tokens: bytes  # of a `token_type` array, <|endoftext|> after each text
    n_texts: int
    n_bytes: int  # of the texts in UTF-8


def token_type(tok: WordTokenizer | BPETokenizer) -> str:
    """The type code of an array of tokens: two bytes each where the vocabulary fits."""
    return "H" if len(tok) <= 1 << 16 else "i"


def held_out(text: str) -> bool:
    """Whether a text validates. It depends on nothing but the text, so that copies of it lie on one side."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % HELD_OUT == 0


def encode(tok: WordTokenizer | BPETokenizer, texts: list[str]) -> Encoded:
    """The tokens of `texts`, as `TokenData.from_stories` makes them."""
    tokens = array(token_type(tok))
    for text in texts:
        tokens.extend(tok.encode(text))
        tokens.append(tok.eos_id)
    n_bytes = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    return Encoded(tokens.tobytes(), len(texts), n_bytes)


def encode_parts(tok: WordTokenizer | BPETokenizer, split: str | None, texts: list[str]) -> dict[str, Encoded]:
    """The tokens of a block by split: all of it `split`, or, for None, each text where `held_out` puts it."""
    if split is not None:
        return {split: encode(tok, texts)}
    parts = {"train": [], "val": []}
    for text in texts:
        parts["val" if held_out(text) else "train"].append(text)
    return {part: encode(tok, chosen) for part, chosen in parts.items()}


class Workers:
    """`n` processes that encode with `tok`; for n = 1, this process itself. Use it as a context manager."""

    def __init__(self, tok: WordTokenizer | BPETokenizer, n: int):
        self.tok, self.n = tok, n
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> Workers:
        if self.n > 1:
            self.threads, self.free = ThreadPoolExecutor(self.n), SimpleQueue()
            command = [sys.executable, "-c", START, str(Path(__file__).resolve().parents[1])]
            for _ in range(self.n):
                process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self.processes.append(process)
                _send(process, self.tok.to_dict())
                self.free.put(process)
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.kill()
        if self.processes:
            self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.communicate()

    def encode(self, blocks: Iterable[list[str]], split: str | None) -> Iterator[tuple[int, dict[str, Encoded]]]:
        """(the number of texts in a block, their tokens by split as in `encode_parts`) of each block, in order.

        Few blocks are under way at once, so that memory is bounded. Raises ChildProcessError where a process was ended
        from outside.
        """
        if not self.processes:
            for block in blocks:
                yield len(block), encode_parts(self.tok, split, block)
            return
        waiting = deque()
        for block in blocks:
            waiting.append((len(block), self.threads.submit(self._ask, split, block)))
            if len(waiting) > self.n + 1:
                n_texts, answer = waiting.popleft()
                yield n_texts, answer.result()
        for n_texts, answer in waiting:
            yield n_texts, answer.result()

    def _ask(self, split: str | None, block: list[str]) -> dict[str, Encoded]:
        process = self.free.get()
        try:
            _send(process, (split, block))
            return pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise ChildProcessError(ENDED) from None
        finally:
            self.free.put(process)


def _send(process: subprocess.Popen, value: object) -> None:
    try:
        pickle.dump(value, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()
    except OSError:  # it reads no more
        raise ChildProcessError(ENDED) from None


def serve() -> None:
    """What a process does: read a tokenizer, then blocks, and answer each, until its parent has gone."""
    read, write = sys.stdin.buffer, sys.stdout.buffer
    try:
        tok = tokenizer_from_dict(pickle.load(read))
        while True:
            pickle.dump(encode_parts(tok, *pickle.load(read)), write, pickle.HIGHEST_PROTOCOL)
            write.flush()
    except (EOFError, BrokenPipeError):
        pass
