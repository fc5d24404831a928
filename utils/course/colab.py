"""How a notebook finds the course and keeps its runs: the first code cell, the badges, the address that both need.

Opened by its badge, a notebook arrives in Colab alone, so its first code cell brings the repository. The address of the
repository is kept here and nowhere else; this writes it to every badge and every first cell:

    python -m utils.course.colab https://github.com/OWNER/NAME
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path

import torch

from utils.device import keep_freed_memory, pick_device, pick_number_format

HOME = Path(__file__).resolve().parents[2]
REPOSITORY = ""  # not known yet: until it is stamped, the first cell asks for it

RUNS_VARIABLE = "KIMI_RUNS"
DRIVE = "/content/drive"

FIRST_CELL = """\
# @title Setup: find the course, or fetch it { display-mode: "form" }
REPOSITORY = "ADDRESS"  # @param {type:"string"}
import pathlib
import subprocess
import sys

here = pathlib.Path.cwd()
notebook = pathlib.Path(globals().get("__vsc_ipynb_file__", here))  # an editor may work elsewhere
folders = (here, *here.parents, *notebook.parents)
home = next((folder for folder in folders if (folder / "utils/course").is_dir()), None)
if home is None:  # this notebook came alone, as it does in Colab
    assert REPOSITORY, "write the address of the course's git repository into REPOSITORY above"
    home = pathlib.Path("kimi-k2-from-scratch").resolve()
    if not home.exists():
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, home], check=True)
sys.path.insert(0, str(home))

from utils.course.colab import setup

device = setup()"""

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_PLACE = re.compile(r"(<!-- colab:(\w+) -->)[^|\n]*")  # a place for a badge: up to the end of the line or table cell


def setup(threads: int = 2) -> torch.device:
    """Print what the notebook runs on, and return the device that computes.

    On a CPU two threads compute, as when the stored outputs were made, for sums in another order differ in the last
    digits; `torch.set_num_threads` takes more. The process is the course's own, so it also keeps the memory it frees.
    """
    device = pick_device()
    number_format, reason = pick_number_format(device)
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if device.type == "cpu":
        torch.set_num_threads(threads)
        keep_freed_memory()
        on = f"cpu, {threads} threads"
    print(
        f"Python {platform.python_version()}, torch {torch.__version__}, {on}; training in {number_format} ({reason})"
    )
    return device


def run_folder(name: str, on_drive: bool = False) -> Path:
    """Where a notebook keeps its run: runs/NAME of the course, or of the folder that KIMI_RUNS names.

    on_drive: in Google Drive instead, which outlives a Colab runtime; asks for permission. ValueError outside Colab.
    """
    if not on_drive:
        return Path(os.environ.get(RUNS_VARIABLE) or HOME / "runs") / name
    try:
        from google.colab import drive
    except ImportError:
        raise ValueError("on_drive is True, but only Colab has Google Drive: it must be False here") from None
    drive.mount(DRIVE)
    return Path(DRIVE) / "MyDrive" / "kimi-k2-from-scratch" / name


def drive_folder(name: str) -> Path | None:
    """Where `run_folder` keeps a run on Google Drive. None outside Colab, and, with a line, where Drive refuses."""
    if "google.colab" not in sys.modules:
        return None
    try:
        return run_folder(name, on_drive=True)
    except Exception as error:  # nobody has allowed it, or Drive is away: a run can do without
        print(f"Google Drive cannot be had ({error}): the run stays on this machine, which Colab takes back one day")
        return None


def first_cell(address: str = REPOSITORY) -> str:
    """The first code cell of every notebook."""
    return FIRST_CELL.replace("ADDRESS", address)


def with_badges(text: str, address: str) -> str:
    """Markdown with a badge at each `<!-- colab:NAME -->`, that opens notebooks/NAME.ipynb of a GitHub repository."""
    pages = address.removeprefix("https://github.com/")

    def badge(place: re.Match) -> str:
        link = f"https://colab.research.google.com/github/{pages}/blob/main/notebooks/{place[2]}.ipynb"
        return f"{place[1]}[![Open in Colab]({BADGE})]({link})"

    return _PLACE.sub(badge, text)


def stamp(home: Path, address: str) -> list[Path]:
    """Write the address to this module, the notebooks and the README of the course in `home`; the files written.

    Raises ValueError for an address that is not of the form https://github.com/OWNER/NAME.
    """
    address = address.rstrip("/").removesuffix(".git")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(f"the address is {address!r}, it must be https://github.com/OWNER/NAME")
    module, readme = home / "utils" / "course" / "colab.py", home / "README.md"
    texts = {
        module: re.sub(r'(?m)^REPOSITORY = ".*".*$', f'REPOSITORY = "{address}"', module.read_text("utf-8"), count=1),
        readme: with_badges(readme.read_text("utf-8"), address),
    }
    for path in sorted((home / "notebooks").glob("*.ipynb")):
        texts[path] = _stamped_notebook(path.read_text("utf-8"), address)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    return list(texts)


def _stamped_notebook(text: str, address: str) -> str:
    notebook = json.loads(text)
    first_code = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    first_code["source"] = first_cell(address).splitlines(keepends=True)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = with_badges("".join(cell["source"]), address).splitlines(keepends=True)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        print(*stamp(HOME, sys.argv[1]), sep="\n")
    except ValueError as error:
        sys.exit(str(error))
