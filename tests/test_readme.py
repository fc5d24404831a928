"""What the README says of the code is true."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def imports(path: Path) -> set[str]:
    """The modules of `utils` that a file imports, at the top or inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lines = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names = {node.module for node in lines}
    names |= {f"utils.{alias.name}" for node in lines if node.module == "utils" for alias in node.names}
    return {name.removeprefix("utils.") for name in names if name and name.startswith("utils.")}


ACTUAL = {path.stem: imports(path) for path in (ROOT / "utils").glob("*.py") if path.stem != "__init__"}
CHECKS = [imports(path) for path in (ROOT / "utils" / "checks").glob("*.py")]  # a package, but one room of the house
ACTUAL["checks"] = {name for found in CHECKS for name in found if not name.startswith("checks.")}


def test_the_architecture_table_is_the_imports():
    table = README.partition("## Architecture")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*)\|$", table, re.MULTILINE)
    stated = {name: set(re.findall(r"\w+", arrows)) for name, arrows in rows}
    assert stated.pop("__main__") == {"all"}
    assert stated == {name: found for name, found in ACTUAL.items() if name != "__main__"}


def test_arrows_point_one_way_only():
    placed, left = set(), dict(ACTUAL)
    while left:
        ready = {name for name, needed in left.items() if needed <= placed}
        assert ready, f"a circle among {sorted(left)}"
        placed |= ready
        left = {name: needed for name, needed in left.items() if name not in ready}


@pytest.mark.parametrize("section, count", [("The original notebook", 11), ("Mistakes of public re-impl", 22)])
def test_every_fault_has_its_test(section, count):
    table = README.partition(f"\n## {section}")[2].partition("\n## ")[0]
    stated = set(re.findall(r"`(test_\w+)`", table))
    written = {
        node.name
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(stated) == count and stated <= written


def test_links_inside_the_project_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_of_speed_is_that_of_the_last_benchmark():
    measured = (ROOT / "tests/bench/results/speed.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in measured if line.startswith("|")]
    assert len(rows) > 20
    readme = README.splitlines()
    assert [row for row in rows if row not in readme] == []
