"""Where the bytes of a published model come from: a folder, or a repository on the Hugging Face hub.

Both give pieces of files. Of a repository no file is fetched whole but the small ones that `local` is asked for.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

from utils.files import write_atomically
from utils.hf_weights import plain_name
from utils.sources.hub import hub_problem, patiently

MAIN = "main"
NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
COMMIT = re.compile("[0-9a-f]{40}")


class Folder:
    """A folder on this machine."""

    is_remote = False

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.name = str(folder)

    def __contains__(self, file: str) -> bool:
        return (self.folder / file).is_file()

    def size(self, file: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        if file not in self:
            raise FileNotFoundError(f"there is no file {self.folder / file}")
        return (self.folder / file).stat().st_size

    def read(self, file: str, start: int, end: int) -> bytes:
        """The bytes from start on and before end; fewer where the file is shorter."""
        with open(self.folder / file, "rb") as opened:
            opened.seek(start)
            return opened.read(end - start)

    def local(self, file: str) -> Path:
        """The file itself, on this machine."""
        return self.folder / file


class Repository:
    """A repository on the hub, "OWNER/NAME" or "OWNER/NAME@REVISION", as it stood in one commit.

    kept: a folder for what is fetched. Whatever happens to the repository later, the commit stays the same. Raises
    ConnectionError where the hub cannot be reached or keeps failing, FileNotFoundError where it has no such repository
    or does not show it.
    """

    is_remote = True

    def __init__(self, name: str, kept: Path):
        self.name, _, revision = name.partition("@")
        if problem := hub_problem(self.name, "models"):
            raise ConnectionError(f"{self.name} is no folder, and on the hub it cannot be opened: {problem}")
        self.commit, self._sizes = patiently(
            lambda: _listed(self.name, revision or MAIN), FileNotFoundError, ValueError
        )
        from huggingface_hub import HfFileSystem

        self._files = HfFileSystem()
        self.kept = kept / self.name.replace("/", "--") / self.commit
        self.bytes, self.seconds = 0, 0.0  # fetched so far, and the time in which something was being fetched
        self._lock, self._fetching, self._since = threading.Lock(), 0, 0.0

    def __contains__(self, file: str) -> bool:
        return file in self._sizes

    def size(self, file: str) -> int:
        """Bytes of a file. Raises FileNotFoundError."""
        if file not in self:
            raise FileNotFoundError(f"{self.name} has no file {file}")
        return self._sizes[file]

    def read(self, file: str, start: int, end: int) -> bytes:
        """The bytes from start on and before end. Raises ConnectionError where the hub does not give just these.

        Several threads may read at once.
        """
        with self._lock:
            self._since = self._since if self._fetching else time.perf_counter()
            self._fetching += 1
        data = b""
        try:
            data = patiently(lambda: self._fetched(file, start, end), FileNotFoundError)
        finally:
            with self._lock:
                self._fetching -= 1
                now = time.perf_counter()
                self.seconds += now - self._since
                self._since = now
                self.bytes += len(data)
        return data

    def _fetched(self, file: str, start: int, end: int) -> bytes:
        path = f"{self.name}@{self.commit}/{file}"
        data = self._files.cat_file(path, start, end, cache_type="none")  # else it reads ahead
        if len(data) != end - start:
            raise ConnectionError(f"{file}: {end - start:,} bytes were asked for, {len(data):,} came")
        return data

    def local(self, file: str) -> Path:
        """A small file, fetched whole unless it was before."""
        path = self.kept / plain_name(file, self.name)
        if not path.is_file() or path.stat().st_size != self.size(file):
            data = self.read(file, 0, self.size(file))
            write_atomically(path, lambda opened: opened.write(data))
        return path


def _listed(name: str, revision: str) -> tuple[str, dict[str, int]]:
    """(commit, bytes of each file) of a repository."""
    from huggingface_hub import HfApi  # only now: the import alone takes a second
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:  # a gated one is not found either
        raise FileNotFoundError(f"the hub shows no repository {name} with the revision {revision}") from error
    if not COMMIT.fullmatch(info.sha or ""):  # it becomes the name of a folder
        raise ValueError(
            f"the hub says that {name} is at the commit {info.sha!r:.60}, it must be 40 hexadecimal digits"
        )
    return info.sha, {file.rfilename: file.size for file in info.siblings if file.size is not None}
