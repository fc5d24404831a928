"""Make the stored form of the notebooks: python -m tests.notebooks [06 07 ...]

Each notebook is executed from top to bottom in a fresh kernel, then normalised, so that the file holds its outputs and
running it again changes only what really differs: readable cell ids, counts 1..n, merged streams, no widget state
(GitHub refuses to render notebooks that keep it), no times.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image  # comes with matplotlib

from utils.course.colab import RUNS_VARIABLE

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
KEPT_METADATA = {"accelerator", "colab"}
KEPT_CELL_METADATA = {"tags", "cellView"}


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook in the one form in which it is stored (changed in place and returned)."""
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    kept = {key: value for key, value in notebook.metadata.items() if key in KEPT_METADATA}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({**kept, "kernelspec": kernel, "language_info": {"name": "python"}})
    count = 0
    for position, cell in enumerate(notebook.cells):
        cell.id = f"cell-{position:02d}"
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n"))
        cell.metadata = {key: value for key, value in cell.metadata.items() if key in KEPT_CELL_METADATA}
        if cell.cell_type == "code":
            if cell.execution_count is not None:
                count += 1
                cell.execution_count = count
            outputs = [output for output in map(_normal_output, merge_streams(cell.outputs)) if output]
            cell.outputs = merge_streams(outputs)  # again: there may have been a progress bar between two streams
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = count
    return notebook


def merge_streams(outputs: list) -> list:
    """The outputs, with what was written to one stream in pieces as one."""
    merged = []
    for output in outputs:
        last = merged[-1] if merged else None
        if last and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            merged.append(output)
    return merged


def _normal_output(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    if output.output_type == "stream":
        output.text = re.sub(r"^.*\r(?!\n)", "", output.text, flags=re.MULTILINE)  # what a progress bar wrote over
    elif "data" in output:
        output.metadata = {}
        is_widget = output.data.pop(WIDGET_VIEW, None) is not None
        if not output.data or (is_widget and "%|" in output.data.get("text/plain", "")):
            return None  # a progress bar
    return output


def shrink_pictures(notebook: nbformat.NotebookNode) -> None:
    """Store pictures with a palette of 256 colours: a third of the size, and plots look the same."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _with_palette(output.data["image/png"])


def _with_palette(png: str) -> str:
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    file = io.BytesIO()
    image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def execute(path: Path) -> None:
    """Run a notebook in its folder and store what came out."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=1200, resources={"metadata": {"path": str(path.parent)}}, record_timing=False
    )
    client.execute()
    shrink_pictures(notebook)
    nbformat.validate(normalise(notebook))
    path.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8", newline="\n")


def main(prefixes: list[str]) -> None:
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not prefixes or path.name.startswith(tuple(prefixes)):
            # each begins without runs: one of the reader's would be continued, and one of 06 be taken by 07
            start = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="kimi-runs-") as runs:
                os.environ[RUNS_VARIABLE] = runs
                execute(path)
            print(f"{path.name}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
