"""What tests of more than one module share: the course as a repository, and a kernel like Colab's."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from utils.course import colab

# Colab's image of August 2026; torch is this environment's own, for Colab's comes with 5 GB of CUDA.
COLAB = ["ipywidgets==7.7.1", "ipykernel==6.17.1", "ipython==7.34.0", "datasets==4.0.0"]


@pytest.fixture(scope="session")
def repository(tmp_path_factory) -> Path:
    """The course as it stands in this folder, as a git repository to clone from."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed, and it is what the first cell clones with")
    home = tmp_path_factory.mktemp("repository") / "course"
    shutil.copytree(colab.HOME / "utils", home / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    results = Path("tests", "bench", "results")  # 06 shows the published run
    shutil.copytree(colab.HOME / results, home / results)
    who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "course"]):
        subprocess.run(["git", *command], cwd=home, check=True)
    return home


@pytest.fixture(scope="session")
def jupyter_path(tmp_path_factory) -> Path:
    """Where a kernel "colab" is found: it has `google.colab` and Colab's versions of what the notebooks import."""
    home = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", home / "venv"], check=True)
    python = home / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *COLAB]
    installed = subprocess.run(install, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"Colab's versions could not be installed: {installed.stderr.strip().splitlines()[-1]}")
    library = Path(subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip())  # fmt: skip
    (library / "torch_from_here.pth").write_text(sysconfig.get_path("purelib") + "\n")  # searched after its own
    (library / "google" / "colab").mkdir(parents=True)
    (library / "google" / "colab" / "__init__.py").write_text("")
    (library / "google.pth").write_text("import google.colab\n")  # imported before any cell, as in Colab's kernel
    spec = home / "kernels" / "colab"
    spec.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    return home
