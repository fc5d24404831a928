"""The notebooks as their tests look at them: cells by tag, figures, exercises, and the numbers that the text states."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tests.notebooks import FOLDER

IGNORED, EXERCISE, AS_IN_UTILS = "nbval-ignore-output", "exercise", "as-in-utils"
CAPTION = re.compile(r"\*Figure (\d+)\. \S.*\S\*(\n|$)")
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)\n```\n\n</details>", re.DOTALL)

# What text has besides prose: code, formulas, tags, addresses, headings, dates, and where something is to be found.
NO_PROSE = re.compile(
    r"""
    ```.*?``` | `[^`\n]*` | \$\$.*?\$\$ | \$[^$\n]+\$
    | <!--.*?--> | <[^>\n]*> | \]\([^)\s]*\) | https?://\S+ | ^\#+\ [^\n]*$
    | \d{4}-\d\d-\d\d | \b(?:19|20)\d\d\b(?![.,]\d)
    | (?:sections?|secs?\.|chapters?|exercises?|figures?|tables?|app\.|eq\.|heads?)\s+(?:[A-Z]\.)?\d[\d.]*
      (?:(?:,|\ and|\ to|\ or)\ \d+(?:\.\d+)*)*
    """,
    re.DOTALL | re.MULTILINE | re.VERBOSE | re.IGNORECASE,
)
ARXIV = re.compile(r"(?:arXiv[ :]*|(?<=\[))\d{4}\.\d{4,5}")
SENTENCE = re.compile(r"(?<=[.!?])\**\s+(?=[A-Z*\"(])|\n\s*\n|\n(?=[-*|>])")
# Numbers of others, which no code of ours can show: a sentence with its source, and what is said of Kimi K2.
PUBLISHED = re.compile(r"arXiv|\breport\b|config\.json")
OF_KIMI_K2 = re.compile(
    r"^> \*\*At Kimi K2's size\.[^\n]*\n?(?:>[^\n]*\n?)*|^## What Kimi K2 does differently.*?(?=^## |\Z)",
    re.DOTALL | re.MULTILINE,
)
OF_OUR_RUN = re.compile(r"\bin (?:our|the stored) run\b", re.IGNORECASE)
NUMBER = re.compile(
    r"(?<![\w.,])(?<![A-Za-z]-)(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?![\w,]*\d)"
    r"(?:\s?(?P<unit>%|thousand|million|billion|trillion|k\b|kB|MB|GB))?"
)
UNITS = {"%": 0.01, "thousand": 1e3, "k": 1e3, "kB": 1e3, "million": 1e6, "MB": 1e6, "billion": 1e9, "GB": 1e9,
         "trillion": 1e12}  # fmt: skip
SHOWN = re.compile(r"(?<![\w.])\d[\d_,]*\.?\d*(?:e[+-]?\d+)?")


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

    def figures(self) -> list[tuple[nbformat.NotebookNode, str]]:
        """Each code cell that shows a picture, or an explorer, with the text of the cell after it."""
        following = [*self.cells[1:], nbformat.v4.new_markdown_cell("")]
        return [(cell, after.source) for cell, after in zip(self.cells, following, strict=True) if _shows(cell)]

    def drawings(self) -> list[str]:
        """The SVG of each drawing."""
        data = [output.get("data", {}) for cell in self.code for output in cell.outputs]
        return [found["image/svg+xml"] for found in data if "image/svg+xml" in found]

    def exercises(self) -> list[Exercise]:
        following = [*self.cells[1:], nbformat.v4.new_markdown_cell("")]
        found = []
        for cell, after in zip(self.cells, following, strict=True):
            if cell.cell_type == "code" and EXERCISE in cell.metadata.get("tags", []):
                name = re.search(r"\b(check_\w+)\(", cell.source.rstrip().splitlines()[-1])
                solution = SOLUTION.search(after.source)
                assert name and solution, f"{self.name}: {cell.source[:60]!r} has no check or no solution behind it"
                found.append(Exercise(name[1], cell.source, solution[1]))
        return found

    def imports(self) -> str:
        """All imports of the notebook: what an answer to an exercise may use."""
        nodes = [node for cell in self.code[1:] for node in ast.parse(cell.source).body]
        return "\n".join(ast.unparse(node) for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))

    def sentences(self) -> Iterator[str]:
        """Those that state something: no questions, nothing that others published, nothing said of one run alone."""
        text = "\n\n".join(self.text).partition("\n## References")[0]
        text = NO_PROSE.sub(" ", OF_KIMI_K2.sub("", text))
        for sentence in SENTENCE.split(text):
            if not (sentence.rstrip("*").endswith("?") or PUBLISHED.search(sentence) or OF_OUR_RUN.search(sentence)):
                yield ARXIV.sub(" ", sentence)

    def stated(self) -> dict[str, str]:
        """Numbers in prose that have a decimal point or three digits, as they are written, and where they stand."""
        return {
            found[0]: " ".join(sentence.split())
            for sentence in self.sentences()
            for found in NUMBER.finditer(sentence)
            if "." in found["digits"] or len(found["digits"].replace(",", "")) >= 3
        }

    def shown(self) -> set[float]:
        """All numbers in the code and in what it printed."""
        texts = [cell.source for cell in self.code]
        for output in (output for cell in self.code for output in cell.outputs):
            data = output.get("data", {})
            texts += [
                output.get("text", ""),
                data.get("text/plain", ""),
                re.sub("<[^>]*>", " ", data.get("text/html", "")),
            ]
        found = [word.replace("_", "") for word in SHOWN.findall("\n".join(texts))]
        # "1,000" is a thousand, and in a list of code 1 and 000
        return {float(part) for word in found for part in (word.replace(",", ""), *word.split(",")) if part}


def is_among(written: str, shown: set[float]) -> bool:
    """Is a number of the text one of those, rounded to the digits that are written, as a percentage or in millions?"""
    found = NUMBER.fullmatch(written)
    digits = found["digits"].replace(",", "")
    if "." in digits:
        last = -len(digits.partition(".")[2])
    else:  # of 224,000, three digits count; all of 224,100 but the last two
        last = min(len(digits) - len(digits.rstrip("0")), max(len(digits) - 3, 0))
    value, half = float(digits), 0.5 * 10**last * (1 + 1e-9)
    scales = {1.0, UNITS.get(found["unit"], 1.0)}
    return any(abs(number / scale - value) <= half for number in shown for scale in scales)


def _shows(cell: nbformat.NotebookNode) -> bool:
    if cell.cell_type != "code":
        return False
    pictures = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    return bool(pictures) or bool(re.search(r"^Explorer\(", cell.source, re.MULTILINE))


LESSONS = [Lesson(path) for path in sorted(FOLDER.glob("*.ipynb"))]
