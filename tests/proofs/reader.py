"""Reads files that it is told on standard input, one "KIND PATH" a line, and answers each with a line of JSON:

[answer, seconds, peak bytes], where the answer is "read DIGEST" of all that was got from it, "refused SENTENCE", or
"traceback ...", which must not be.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from utils.bpe import BPETokenizer
from utils.checkpoint import load_checkpoint
from utils.convert import convert
from utils.hf import import_hf
from utils.sealed import checksum
from utils.stories import load_stories
from utils.token_store import TokenStore
from utils.tokenizer import WordTokenizer


def of_checkpoint(path: Path) -> object:
    state = load_checkpoint(path)
    plain = {name: state[name] for name in ("step", "config", "tokenizer", "training")}
    return [plain, {name: checksum(t) for name, t in sorted({**state["model"], **state["tensors"]}.items())}]


def of_export(path: Path) -> object:
    model = import_hf(path.parent)
    tok = model.tokenizer and model.tokenizer.to_dict()
    return [repr(model.config), tok, {name: checksum(tensor) for name, tensor in model.state_dict().items()}]


def of_store(path: Path) -> object:
    """The store's folder lies beside the words' tokenizer that it was made with."""
    home = path.parent.parent
    data = TokenStore(home, "texts", WordTokenizer.load(home.parent / "words.json")).open()
    if data is None:
        raise ValueError("it is made again")
    return [data.tokens.tolist(), data.n_train, data.n_bytes]


def of_old_file(path: Path) -> object:
    new = path.with_name("checkpoint.safetensors")
    try:
        return of_checkpoint(convert(path))
    finally:
        new.unlink(missing_ok=True)


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": of_checkpoint,
    "export": of_export,
    "old": of_old_file,
    "store": of_store,
    "words": lambda path: WordTokenizer.load(path).to_dict(),
    "pieces": lambda path: BPETokenizer.load(path).to_dict(),
    "texts": lambda path: list(load_stories(10**6, "train", str(path))),
}


def answer(kind: str, path: Path) -> str:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            got = READERS[kind](path)
        return "read " + hashlib.sha256(json.dumps(got).encode("utf-8", "surrogatepass")).hexdigest()
    except (ValueError, OSError) as error:
        return f"refused {error}"[:1000]
    except BaseException as error:  # whatever it is, it must not be
        return f"traceback {type(error).__name__}: {error}"[:1000]


def peak_bytes() -> int:
    """The most memory that this program has held; getrusage would count that of the program which started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


def main() -> None:
    warnings.simplefilter("ignore")
    for line in sys.stdin:
        kind, _, path = line.rstrip("\n").partition(" ")
        started = time.monotonic()
        said = answer(kind, Path(path))
        print(json.dumps([said, time.monotonic() - started, peak_bytes()]), flush=True)


if __name__ == "__main__":
    main()
