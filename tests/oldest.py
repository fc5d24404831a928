"""Do the oldest allowed versions still work? python -m tests.oldest [--python python3.10] [pytest options]

Makes a virtual environment with the lowest version that requirements.txt allows of each package (what only the tests
need comes as it is), and runs the tests there; the notebooks too unless options say otherwise. Downloads several GB,
for old builds of torch bring CUDA.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]


def oldest(requirements: str) -> list[str]:
    """Each `name>=version,...` as `name==version`."""
    found = re.findall(r"^([\w.-]+)>=([\w.]+)", requirements, re.MULTILINE)
    return [f"{name}=={version}" for name, version in found]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.oldest", description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    parser.add_argument("--venv", type=Path, help="where to make the environment, kept (default: a temporary folder)")
    args, options = parser.parse_known_args()
    pinned = oldest((HOME / "requirements.txt").read_text())
    with tempfile.TemporaryDirectory() as folder:
        venv = args.venv or Path(folder) / "venv"
        python = venv / "bin" / "python"
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        if not python.exists():
            subprocess.run([args.python, "-m", "venv", venv], check=True)
            subprocess.run([*pip, *pinned, "-r", HOME / "tests" / "requirements.txt"], check=True)
        subprocess.run([*pip, "--dry-run", *pinned], check=True)  # they are what is installed
        print(*pinned, flush=True)
        return subprocess.run([python, "-m", "pytest", *options], cwd=HOME, env=dict(os.environ)).returncode


if __name__ == "__main__":
    sys.exit(main())
