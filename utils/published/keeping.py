"""What was fetched, kept on the disk up to a bound."""

from __future__ import annotations

import hashlib
import random
import shutil
import threading
import warnings
from pathlib import Path

from utils.files import PARTIAL, write_atomically

DIGEST = 32  # bytes of a SHA-256
SPARE = 2**30  # bytes that stay free on the disk


class Kept:
    """Pieces of data by their keys, in a folder of at most so many bytes, each checked when it is read.

    Where there is no more room, pieces picked at random go. A pass over the layers of a model wants its pieces in turn,
    again and again: there the one that was used longest ago, which caches usually drop, is the next one wanted.
    """

    def __init__(self, folder: Path, most: int):
        self.folder, self.most = folder, most
        self._sizes = {file.name: file.stat().st_size for file in folder.glob("*") if file.suffix != PARTIAL}
        self._random, self._lock = random.Random(0), threading.Lock()

    def __contains__(self, key: str) -> bool:
        return _name(key) in self._sizes

    @property
    def bytes(self) -> int:
        """How many are kept."""
        return sum(self._sizes.values())

    def get(self, key: str) -> bytes | None:
        """What was put under a key; None where it is not there, or not what was put there."""
        name = _name(key)
        if name not in self._sizes:
            return None
        try:
            data = (self.folder / name).read_bytes()
        except OSError:  # somebody has tidied up
            data = b""
        if hashlib.sha256(data[DIGEST:]).digest() == data[:DIGEST]:
            return data[DIGEST:]
        with self._lock:
            self._drop(name)
        return None

    def put(self, key: str, data: bytes) -> None:
        """Keep data under a key if it is not more than the bound. What the disk does not take is a warning."""
        name, size = _name(key), DIGEST + len(data)
        with self._lock:
            if size > self.most:
                return
            while self.bytes + size > self.most:
                self._drop(self._random.choice(list(self._sizes)))
            self._sizes[name] = size
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.folder).free < size + SPARE:
                raise OSError(f"{self.folder} is on a disk that is nearly full")
            write_atomically(self.folder / name, lambda file: file.writelines([hashlib.sha256(data).digest(), data]))
        except OSError as error:
            warnings.warn(f"what is fetched is not kept: {error}", stacklevel=2)
            self.most = 0
            self._sizes.pop(name, None)

    def _drop(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)
        self._sizes.pop(name, None)


def _name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
