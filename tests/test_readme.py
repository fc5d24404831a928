"""What the README says of the code is true."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}


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


def test_the_architecture_picture_is_the_imports():
    """Its solid arrows: every import among the modules shown, but for those that other arrows imply."""
    picture = re.search(r"```mermaid\n(.*?)```", README, re.DOTALL)[1]
    arrows = set(re.findall(r"^ *(\w+) --> (\w+)$", picture, re.MULTILINE))
    shown = {name for arrow in arrows for name in arrow} | set(re.findall(r"-\.-> (\w+)(?= |$)", picture, re.MULTILINE))
    direct = {name: ACTUAL[name] & shown for name in shown}

    def below(name: str) -> set[str]:
        return direct[name].union(*map(below, direct[name]))

    needed = {
        (lower, name) for name in shown for lower in direct[name] if not any(lower in below(m) for m in direct[name])
    }
    assert arrows == needed and len(shown) > 15


def test_arrows_point_one_way_only():
    placed, left = set(), dict(ACTUAL)
    while left:
        ready = {name for name, needed in left.items() if needed <= placed}
        assert ready, f"a circle among {sorted(left)}"
        placed |= ready
        left = {name: needed for name, needed in left.items() if name not in ready}


@pytest.mark.parametrize("section, count", [("The original notebook", 11), ("Mistakes of public re-impl", 22)])
def test_every_fault_has_its_test(section, count):
    mistakes = PAGES[ROOT / "docs" / "mistakes.md"]
    table = mistakes.partition(f"\n## {section}")[2].partition("\n## ")[0]
    stated = set(re.findall(r"`(test_\w+)`", table))
    written = {
        node.name
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert len(stated) == count and stated <= written


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_inside_the_project_lead_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", PAGES[page]):
        assert (page.parent / target).exists(), target


def test_the_table_of_speed_is_that_of_the_last_benchmark():
    measured = (ROOT / "tests/bench/results/speed.md").read_text(encoding="utf-8").splitlines()
    table = README.partition("| what | peer | ours |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and set(rows) <= set(measured)


def test_commands_and_modules_that_it_names_exist():
    for page in PAGES.values():
        for module in re.findall(r"python -m (utils[\w.]*|tests[\w.]*)", page):
            assert importlib.util.find_spec(module), module
        for path in re.findall(r"tests/test_\w+\.py", page):
            assert (ROOT / path).is_file(), path
