"""The form of the notebooks, measured: python -m tests.form prints the table that the tests hold to its bounds."""

from __future__ import annotations

import ast
import re
import statistics
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tests.notebooks import FOLDER

IGNORED, EXERCISE, AS_IN_UTILS = "nbval-ignore-output", "exercise", "as-in-utils"
CAPTION = re.compile(r"\*Figure (\d+)\. \S.*\S\*(\n|$)")
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>", re.DOTALL)


@dataclass
class Exercise:
    name: str  # of the check
    stub: str  # the code cell, whose last line calls the check
    solution: str

    @property
    def call(self) -> str:
        return self.stub.rstrip().splitlines()[-1]


class Lesson:
    """A notebook as its tests look at it."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.stem
        self.cells = nbformat.read(path, as_version=4).cells
        self.code = [cell for cell in self.cells if cell.cell_type == "code"]
        self.text = [cell.source for cell in self.cells if cell.cell_type == "markdown"]

    def tagged(self, tag: str) -> list:
        return [cell for cell in self.code if tag in cell.metadata.get("tags", [])]

    def lines(self) -> list[int]:
        """Non-blank lines of each code cell, in ascending order."""
        return sorted(sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in self.code)

    def figures(self) -> list[tuple[nbformat.NotebookNode, str]]:
        """Each code cell that shows a picture, or an explorer, with the text of the cell after it."""
        following = [*self.cells[1:], nbformat.v4.new_markdown_cell("")]
        return [(cell, after.source) for cell, after in zip(self.cells, following, strict=True) if _shows(cell)]

    def exercises(self) -> list[Exercise]:
        following = [*self.cells[1:], nbformat.v4.new_markdown_cell("")]
        found = []
        for cell, after in zip(self.cells, following, strict=True):
            if cell.cell_type == "code" and EXERCISE in cell.metadata.get("tags", []):
                name = re.match(r"\w+", cell.source.rstrip().splitlines()[-1])
                solution = SOLUTION.search(after.source)
                assert name and solution, f"{self.name}: {cell.source[:60]!r} has no check or no solution behind it"
                found.append(Exercise(name[0], cell.source, solution[1]))
        return found

    def imports(self) -> str:
        """All imports of the notebook: what an answer to an exercise may use."""
        nodes = [node for cell in self.code[1:] for node in ast.parse(cell.source).body]
        return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))

    def words(self) -> int:
        """Those that a reader reads: not the addresses of links, nor what stands between < and >."""
        return sum(len(re.findall(r"\w+", re.sub(r"<[^>]*>|\]\([^)]*\)", " ", text))) for text in self.text)

    def form(self) -> dict[str, float]:
        lines, text = self.lines(), "\n".join(self.text)
        return {
            "cells": len(self.cells),
            "lines, median": statistics.median(lines),
            "lines, 90 %": lines[int(0.9 * len(lines))],
            "lines, most": lines[-1],
            "text : code": round(len(self.text) / len(self.code), 2),
            "words": self.words(),
            "figures": len(self.figures()),
            "widgets": sum("Explorer(" in cell.source for cell in self.code),
            "predictions": text.count("**Predict, then run.**"),
            "exercises": len(self.exercises()),
            "not compared": f"{len(self.tagged(IGNORED)) / len(self.code):.0%}",
            "kB": round(self.path.stat().st_size / 1000),
        }


def _shows(cell: nbformat.NotebookNode) -> bool:
    if cell.cell_type != "code":
        return False
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    return bool(pictures) or bool(re.search(r"^Explorer\(", cell.source, re.MULTILINE))


LESSONS = [Lesson(path) for path in sorted(FOLDER.glob("*.ipynb"))]


def table() -> str:
    forms = {lesson.name: lesson.form() for lesson in LESSONS}
    rows = [["notebook", *next(iter(forms.values()))], ["---"] * (1 + len(next(iter(forms.values()))))]
    rows += [[name, *map(str, form.values())] for name, form in forms.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    print(table())
