"""Files that would execute or fetch something where a reader lets them: none does, and a canary watches.

The canary is a name that must not come into being, a server of this machine that must not be asked, and Python's audit
hook, which sees every program that is started and every connection that is made.
"""

from __future__ import annotations

import contextlib
import http.server
import io
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.proofs.found import Found
from utils.bpe import BPETokenizer
from utils.checkpoint import FILE_NAME, OLD_NAME, PREVIOUS, load_model, restore_previous, save_checkpoint
from utils.config import KimiConfig
from utils.convert import FORMAT_2, FORMAT_3, convert
from utils.hf import export_hf, import_hf
from utils.history import History
from utils.model import Kimi
from utils.recipe import read_recipe
from utils.stories import load_stories
from utils.token_store import TokenStore
from utils.tokenizer import WordTokenizer

STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "os.mkfifo")
STORY = "Once upon a time, a cat sat on a mat."


class Harmful:
    """Calls a function with arguments when it is unpickled."""

    def __init__(self, function: Callable, *arguments: object):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Canary:
    """Notes what must not happen while it is watched."""

    def __init__(self, folder: Path):
        self.file, self.seen, self.watched = folder / "executed", [], False
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}/payload"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        sys.addaudithook(self._note)

    def _handler(self) -> type:
        canary = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                canary.seen.append(f"asked for {self.path}")
                self.send_error(404)

            def log_message(self, *_):
                pass

        return Handler

    def _note(self, event: str, arguments: tuple) -> None:
        if self.watched and (event in STARTS or event == "socket.connect"):
            self.seen.append(f"{event} {arguments!r:.100}")

    def died(self, read: Callable[[], object]) -> tuple[list[str], str]:
        """(what happened that must not, what the reader answered)."""
        self.seen, self.watched = [], True
        try:
            answer = f"read {read()!r:.40}"
        except (ValueError, OSError) as error:
            answer = f"refused {error}"
        except Exception as error:
            answer = f"traceback {type(error).__name__}: {error}"
        finally:
            self.watched = False
        if self.file.exists():
            self.seen.append("it was executed")
            shutil.rmtree(self.file) if self.file.is_dir() else self.file.unlink()
        return self.seen, answer


def payloads(canary: Canary) -> dict[str, Harmful]:
    """What a pickle can be made to call."""
    file = str(canary.file)
    return {
        "os.system": Harmful(os.system, f"touch {file}"),
        "os.mkdir": Harmful(os.mkdir, file),
        "exec": Harmful(exec, f"open({file!r}, 'w')"),
        "eval": Harmful(eval, f"__import__('os').mkdir({file!r})"),
        "subprocess": Harmful(subprocess.call, ["touch", file]),
        "touch": Harmful(pathlib.Path.touch, pathlib.Path(file)),
        "urlopen": Harmful(urllib.request.urlopen, canary.url),
    }


def pickles(harmful: Harmful) -> dict[str, bytes]:
    """A payload in each of the forms that torch and Python write."""
    forms = {"pickle": pickle.dumps(harmful), "plain pickle": pickle.dumps({"model": harmful}, protocol=0)}
    for name, value, new in (
        ("zip", {"format": FORMAT_3, "model": harmful}, True),
        ("zip of the second format", {"format": FORMAT_2, "config": harmful}, True),
        ("alone in a zip", harmful, True),
        ("legacy", {"format": FORMAT_3, "model": harmful}, False),
    ):
        file = io.BytesIO()
        torch.save(value, file, _use_new_zipfile_serialization=new)
        forms[name] = file.getvalue()
    return forms


def attempts(folder: Path, canary: Canary) -> Iterator[tuple[str, Callable[[], object]]]:
    """(what it is, a call that reads it), each in a folder of its own."""
    count = iter(range(10**6))

    def place() -> Path:
        home = folder / f"{next(count)}"
        home.mkdir()
        return home

    def at(name: str, content: bytes) -> Path:
        file = place() / name
        file.write_bytes(content)
        return file

    tok = WordTokenizer.train([STORY])
    for payload, harmful in payloads(canary).items():
        for form, content in pickles(harmful).items():
            what = f"{payload}, {form}"
            yield f"{what}, as checkpoint", lambda c=content: load_model(at(FILE_NAME, c).parent)
            yield f"{what}, to convert", lambda c=content: convert(at(OLD_NAME, c).parent)
        content = pickle.dumps(harmful)
        yield f"{payload} as recipe", lambda c=content: read_recipe(at(FILE_NAME, c).parent)
        yield (
            f"{payload} to restore",
            lambda c=content: restore_previous(at(PREVIOUS, c).parent),
        )
        yield f"{payload} as words", lambda c=content: WordTokenizer.load(at("tok.json", c))
        yield f"{payload} as pieces", lambda c=content: BPETokenizer.load(at("tok.json", c))
        yield f"{payload} as ranks", lambda c=content: BPETokenizer.load_ranks(at("tok.tiktoken", c))
        yield f"{payload} as history", lambda c=content: History.load(at("history.json", c))
        for ending in ("txt", "json", "jsonl", "csv", "parquet", "gz", "zst", "pkl", "npy", "pt", "py", "arrow"):
            yield f"{payload} as .{ending}", lambda c=content, e=ending: load_stories(9, "train", at(f"a.{e}", c))

        def stored(content=content):
            store = TokenStore(place(), "texts", tok)
            store.folder.mkdir()
            store.tokens.write_bytes(content)
            store.file.write_bytes(content)
            return store.open()

        yield f"{payload} as stored tokens", stored
        yield f"{payload} in an export", lambda c=content: import_hf(exported(place(), {"pytorch_model.bin": c}, False))

    code = f"import os; os.mkdir({str(canary.file)!r})\n".encode()
    remote = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": f"{canary.url}--x.Y"}}
    for changes in (remote, {"model_type": "evil", **remote}, {"quantization_config": {"quant_method": "evil"}}):
        yield (
            f"config.json {changes!r:.40}",
            lambda c=changes: import_hf(exported(place(), {"modeling_evil.py": code}, True, c)),
        )
    for name in (canary.url, "../../etc/passwd", "/dev/stdin", "hub://x", "a;touch executed"):
        index = json.dumps({"weight_map": {"lm_head.weight": name}}).encode()
        yield (
            f"index to {name}",
            lambda c=index: import_hf(exported(place(), {"model.safetensors.index.json": c}, False)),
        )
    for source in (canary.url, f"{canary.url}.txt", "file:///etc/passwd", "hub:../../etc", f"hub:{canary.url}", "|ls"):
        yield f"source {source}", lambda s=source: load_stories(9, "train", s)
    for name in (f"$(touch {canary.file.name}).txt", "`id`.txt", "a;id.jsonl", "__init__.py", "dataset.py"):
        yield f"a file {name}", lambda n=name: load_stories(9, "train", at(n, code).parent)
    csv = f'text\n"=cmd|\' /C touch {canary.file}\'!A0"\n"<script src={canary.url}></script>"\n'.encode()
    yield "formulas and scripts in a table", lambda: load_stories(9, "train", at("a.csv", csv))


def exported(folder: Path, more: dict[str, bytes], with_weights: bool, changes: dict | None = None) -> Path:
    """A small export, with files beside it and fields of config.json that are not ours."""
    shape = dict(block_size=16, d_model=16, n_layers=2, n_heads=2, d_ff=8, dense_ff=8, n_experts=2, top_k=1)
    export_hf(Kimi(KimiConfig.k2_mini(20, **shape)), folder)
    (folder / "SHA256SUMS").unlink()
    if not with_weights:
        (folder / "model.safetensors").unlink()
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | (changes or {})))
    for name, content in more.items():
        (folder / name).write_bytes(content)
    return folder


def prove(folder: Path, n: int, seed: int) -> Found:
    """Every attempt once; the payloads are first shown to work on a reader that lets them."""
    canary, problems, n_read, n_tried = Canary(folder), [], 0, 0
    os.environ["HF_HUB_OFFLINE"] = "1"  # what asks for the hub by name may not wait for it
    for name, harmful in payloads(canary).items():
        seen, _ = canary.died(lambda h=harmful: pickle.loads(pickle.dumps(h)))
        if not seen:
            problems.append(f"{name} does nothing, so it proves nothing")
    save_checkpoint(folder / "whole", Kimi(KimiConfig.nano(20, block_size=8, d_model=8, n_layers=1, n_heads=1)), 1)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        load_model(folder / "whole")  # whatever is imported late is there now
        for what, read in attempts(folder, canary):
            seen, answer = canary.died(read)
            n_tried += 1
            n_read += answer.startswith("read")
            problems += [f"{what}: {event}" for event in seen]
            if answer.startswith("traceback") or (answer.startswith("refused") and "\n" in answer):
                problems.append(f"{what}: {answer}")
    told = f"{n_tried} files and names that would execute or fetch: {n_tried - n_read} refused, {n_read} read as data"
    return Found(f"{told}; {len(payloads(canary))} payloads that work elsewhere did nothing", problems)
