"""The way into the course: the first cell of a notebook that came alone, the badges, and Colab's older versions."""

import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tests.lessons import IGNORED, LESSONS
from tests.notebooks import normalise
from tests.outputs import same, tolerance
from utils.course import colab

ADDRESS = "https://github.com/someone/kimi-k2"


@pytest.fixture
def course(tmp_path) -> Path:
    """A copy of what the address is stamped into."""
    home = tmp_path / "course"
    (home / "utils" / "course").mkdir(parents=True)
    shutil.copy(colab.HOME / "utils" / "course" / "colab.py", home / "utils" / "course")
    shutil.copy(colab.HOME / "README.md", home)
    shutil.copytree(colab.HOME / "notebooks", home / "notebooks", ignore=shutil.ignore_patterns(".*"))
    return home


def test_stamping_writes_the_address_to_every_first_cell_and_badge(course):
    for address in ("https://github.com/other/name", ADDRESS + ".git"):  # stamping again replaces
        colab.stamp(course, address)
    assert f'\nREPOSITORY = "{ADDRESS}"\n' in (course / "utils" / "course" / "colab.py").read_text()
    opened = re.findall(r"colab.research.google.com/github/([^)]*)\)", (course / "README.md").read_text())
    names = [lesson.name for lesson in LESSONS]
    assert opened == [f"someone/kimi-k2/blob/main/notebooks/{name}.ipynb" for name in names]
    for name in names:
        text = (course / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8")
        notebook = nbformat.reads(text, as_version=4)
        assert nbformat.writes(normalise(notebook)) + "\n" == text  # still in the stored form
        assert notebook.cells[1].source == colab.first_cell(ADDRESS)
        assert f"github/someone/kimi-k2/blob/main/notebooks/{name}.ipynb" in notebook.cells[0].source


def test_stamping_changes_nothing_else(course):
    colab.stamp(course, ADDRESS)
    for lesson in LESSONS:
        stamped = nbformat.read(course / "notebooks" / lesson.path.name, as_version=4).cells
        assert [cell.id for cell in stamped] == [cell.id for cell in lesson.cells]
        changed = [i for i, (a, b) in enumerate(zip(stamped, lesson.cells, strict=True)) if a != b]
        assert changed == [0, 1]  # the badge and the address


@pytest.mark.parametrize("address", ["", "someone/kimi-k2", "http://github.com/a/b", "https://github.com/a/b/tree/c"])
def test_an_address_that_is_none_is_refused_in_words(course, address):
    before = (course / "README.md").read_text()
    with pytest.raises(ValueError, match=r"must be https://github.com/OWNER/NAME"):
        colab.stamp(course, address)
    assert (course / "README.md").read_text() == before


def run_alone(notebook, folder: Path, jupyter_path: Path, address: str) -> None:
    """Execute a notebook in an empty folder, with the address in the form field of its first cell."""
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    first.source = re.sub('(?m)^REPOSITORY = ".*?"', f'REPOSITORY = "{address}"', first.source)
    settings = {"metadata": {"path": str(folder)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(jupyter_path))
        patch.setenv("TINYSTORIES_PATH", "builtin")  # the stories that come with the course, with a network too
        NotebookClient(notebook, timeout=1200, kernel_name="colab", resources=settings).execute()


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_it_runs_alone_on_colabs_versions(lesson, tmp_path, jupyter_path, repository):
    """Opened by its badge: one file in an empty folder. Its printed results are those that are stored."""
    notebook = nbformat.read(lesson.path, as_version=4)
    run_alone(notebook, tmp_path, jupyter_path, str(repository))
    assert (tmp_path / "kimi-k2-from-scratch" / "utils").is_dir()
    ran = [cell for cell in normalise(notebook).cells if cell.cell_type == "code"]
    for new, stored in zip(ran[1:], lesson.code[1:], strict=True):
        if IGNORED not in stored.metadata.get("tags", []):
            share = tolerance(stored.metadata.get("tags", []))
            assert same(printed(new), printed(stored), share), f"{stored.source}\n{printed(new)}\n{printed(stored)}"


def test_the_kernel_is_like_colabs(tmp_path, jupyter_path):
    code = 'import sys, ipywidgets, datasets, IPython\nassert "google.colab" in sys.modules\n'
    code += "print(ipywidgets.__version__, IPython.__version__, datasets.__version__)"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    run_alone(notebook, tmp_path, jupyter_path, "")
    assert printed(notebook.cells[0]) == "7.7.1 7.34.0 4.0.0\n"


def test_without_an_address_the_first_cell_asks_for_it(tmp_path, jupyter_path):
    cell = nbformat.v4.new_code_cell(colab.first_cell(""))
    with pytest.raises(CellExecutionError, match="write the address of the course's git repository into REPOSITORY"):
        run_alone(nbformat.v4.new_notebook(cells=[cell]), tmp_path, jupyter_path, "")


@pytest.mark.parametrize(
    "works_in, notebook",
    [
        ("course", None),
        ("course/notebooks", None),
        ("course/notebooks/mine/of today", None),
        ("elsewhere", "course/notebooks/02_attention.ipynb"),  # VS Code names the notebook that it runs
        ("elsewhere", "course/notebooks/mine/copy.ipynb"),
        ("course/notebooks/mine/of today", "elsewhere/copy.ipynb"),
    ],
)
def test_the_first_cell_finds_the_course_in_any_folder_above(tmp_path, works_in, notebook):
    for folder in ("course/utils/course", "course/notebooks/mine/of today", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "course/utils/course/colab.py").write_text("def setup():\n    return __file__\n")
    named = f"__vsc_ipynb_file__ = {str(tmp_path / notebook)!r}\n" if notebook else ""
    done = subprocess.run(
        [sys.executable, "-c", f"{named}{colab.first_cell('')}\nprint(device)"],
        cwd=tmp_path / works_in, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "course/utils/course/colab.py"), done.stderr


def printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


def test_runs_are_kept_in_the_course_or_where_the_variable_says(monkeypatch):
    monkeypatch.setenv("KIMI_RUNS", "/elsewhere")
    assert colab.run_folder("mine") == Path("/elsewhere/mine")
    monkeypatch.delenv("KIMI_RUNS")
    assert colab.run_folder("mine") == colab.HOME / "runs" / "mine"


def test_runs_on_drive_ask_colab_for_it_and_say_where_there_is_none(monkeypatch):
    with pytest.raises(ValueError, match="only Colab has Google Drive"):
        colab.run_folder("mine", on_drive=True)
    mounted = []
    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    folder = colab.run_folder("mine", on_drive=True)
    assert mounted == ["/content/drive"] and folder == Path("/content/drive/MyDrive/kimi-k2-from-scratch/mine")


def test_a_drive_that_cannot_be_had_is_told_and_is_no_error(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    assert colab.drive_folder("mine") is None and not capsys.readouterr().out

    def refuse(folder):
        raise RuntimeError("mount failed")

    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=refuse)
    monkeypatch.setitem(sys.modules, "google.colab", module)
    assert colab.drive_folder("mine") is None and "mount failed" in capsys.readouterr().out
    module.drive.mount = lambda folder: None
    assert colab.drive_folder("mine") == colab.run_folder("mine", on_drive=True)
