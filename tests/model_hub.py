"""A hub of models on this machine, as huggingface_hub asks it: one repository, pieces of files, faults."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

REPO, COMMIT = "somebody/small-model", "a" * 40
TOO_MANY, DROPS, SHORT, WHOLE = "429", "drops the line", "sends less", "ignores the range"


class ModelHub(ThreadingHTTPServer):
    """commits: commit -> the folder whose files it has. The newest is what `main` means.

    fault: what is wrong with the next `n_faults` answers that carry a part of a file. slow: seconds before each.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits = {COMMIT: folder}
        self.sent: Counter[str] = Counter()  # bytes of each file
        self.sizes: dict[str, int] = {}  # that it lies about
        self.fault, self.n_faults, self.slow = "", 0, 0.0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def push(self, commit: str, folder: Path) -> None:
        """Somebody changes the repository."""
        self.commits[commit] = folder


class Answering(BaseHTTPRequestHandler):
    """How a hub's stand-in answers, whatever it is asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgement of its head

    def reply_json(self, value):
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, code: int, data: bytes, headers: dict, dropped: bool = False):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):  # the client may have seen enough
                self.wfile.write(data[: len(data) // 2] if dropped else data)
        if dropped:
            self.close_connection = True
            self.connection.close()

    def log_message(self, *_):
        pass


class Handler(Answering):
    """The routes of the hub that one repository of a model is read by."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, route = self.server, unquote(urlsplit(self.path).path)
        newest = list(hub.commits)[-1]
        api = re.fullmatch(rf"/api/models/{REPO}(?:/(revision|paths-info|tree)/([^/]+))?", route)
        file = re.fullmatch(rf"/{REPO}/resolve/([^/]+)/([^/]+)", route)
        commit = (api[2] if api else file[1] if file else None) or "main"
        commit = newest if commit == "main" else commit
        if not (api or file) or commit not in hub.commits:
            code = "RevisionNotFound" if api or file else "RepoNotFound"
            return self.reply(404, b"", {"X-Error-Code": code})
        entries = [
            {"type": "file", "path": path.name, "rfilename": path.name, "oid": "0" * 40,
             "size": hub.sizes.get(path.name, path.stat().st_size)}
            for path in sorted(hub.commits[commit].iterdir()) if path.is_file()
        ]  # fmt: skip
        if file:
            return self.reply_file(hub.commits[commit] / file[2], commit)
        if api[1] == "paths-info":
            asked = re.findall(r"[\w.-]+", body.decode())
            return self.reply_json([entry for entry in entries if entry["path"] in asked])
        if api[1] == "tree":
            return self.reply_json(entries)
        self.reply_json({"id": REPO, "sha": commit, "siblings": entries})

    do_HEAD = do_POST = do_GET

    def reply_file(self, path: Path, commit: str):
        hub = self.server
        if not path.is_file():
            return self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        data, code, headers = path.read_bytes(), 200, {"ETag": f'"{path}"', "X-Repo-Commit": commit}
        time.sleep(hub.slow)
        fault = ""
        if hub.n_faults > 0:
            hub.n_faults, fault = hub.n_faults - 1, hub.fault
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and fault != WHOLE:
            first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, code = data[first : last + 1], 206
        if fault == TOO_MANY:
            return self.reply(429, b"", {"Retry-After": "0"})
        if fault == SHORT:
            data = data[:-1]
        hub.sent[path.name] += len(data)
        self.reply(code, data, headers, dropped=fault == DROPS)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ModelHub]:
    """A hub that has the files of a folder."""
    hub = ModelHub(folder)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
