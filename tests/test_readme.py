"""What the README and the pages in docs/ say of the code is true."""

import ast
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

from utils.generation import generate
from utils.stories import builtin_stories
from utils.tokenizer import WordTokenizer

ROOT = Path(__file__).resolve().parents[1]
PAGES = {path: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]}

# The modules of `utils` by their dotted names in it; a package goes by its own name, and `utils` itself is none.
FILES = {
    ".".join(path.relative_to(ROOT / "utils").with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "utils").rglob("*.py"))
    if path != ROOT / "utils" / "__init__.py"
}


def imports(path: Path) -> set[str]:
    """The modules of `utils` that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    names = {name.removeprefix("utils.") for name in found if name.startswith("utils.")}
    return {name for name in names if name in FILES}


IMPORTS = {name: imports(path) for name, path in FILES.items()}
ROW = re.compile(r"^\| ([\w ]+?) \| ((?:`[\w/]+`(?:, )?)+) \| ([\w, -]+) \|$", re.MULTILINE)


def floors() -> dict[str, tuple[set[str], set[str]]]:
    """From low to high: a floor's rooms and the floors that it may import from."""
    section = PAGES[ROOT / "docs" / "architecture.md"].partition("\n## ")[0]
    table = re.search(r"^\| floor \| rooms \| may import \|\n\|[-|]+\|\n((?:\|.*\n?)+)", section, re.MULTILINE)
    assert table, "docs/architecture.md has no table | floor | rooms | may import |"
    rows = [ROW.match(line) for line in table[1].splitlines()]
    assert all(rows), table[1]
    return {
        floor: (set(re.findall(r"`([\w/]+)`", rooms)), set() if below == "-" else set(below.split(", ")))
        for floor, rooms, below in (row.groups() for row in rows)
    }


def room(module: str) -> str:
    """How the table names the room of a module: a package is one room, with a slash."""
    package, dot, _ = module.partition(".")
    return f"{package}/" if dot or (FILES[module].name == "__init__.py") else module


def test_every_module_is_a_room_of_one_floor():
    listed = [name for rooms, _ in floors().values() for name in rooms]
    assert sorted(listed) == sorted({room(module) for module in FILES})


def test_a_floor_names_only_floors_below_it():
    seen = set()
    for floor, (_, below) in floors().items():
        assert below <= seen, floor
        seen.add(floor)
    assert len(seen) > 5


def test_imports_go_to_the_same_floor_or_to_those_that_its_row_names():
    house = floors()
    floor_of = {name: floor for floor, (rooms, _) in house.items() for name in rooms}
    wrong = [
        f"{module} ({floor_of[room(module)]}) imports {other} ({floor_of[room(other)]})"
        for module in FILES
        for other in sorted(IMPORTS[module])
        if floor_of[room(other)] not in {floor_of[room(module)], *house[floor_of[room(module)]][1]}
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside of functions count. A module of a package is imported together with the package's own file."""
    packages = {name for name, path in FILES.items() if path.name == "__init__.py"}
    left = {
        name: {other for found in IMPORTS[name] for other in (found, *(packages & set(parents(found))))}
        - {name}
        - set(parents(name))
        for name in FILES
    }
    placed = set()
    while left:
        ready = {name for name, needed in left.items() if needed <= placed}
        assert ready, f"a circle among {sorted(left)}"
        placed |= ready
        left = {name: needed for name, needed in left.items() if name not in ready}


def parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@pytest.mark.parametrize("module", FILES)
def test_no_module_is_longer_than_can_be_read_in_one_sitting(module):
    source = FILES[module].read_text(encoding="utf-8")
    n_lines = len(source.splitlines())
    if module == "grammar":  # its word tables are data
        tables = [node for node in ast.parse(source).body if isinstance(node, ast.Assign | ast.AnnAssign)]
        n_lines -= sum(node.end_lineno - node.lineno + 1 for node in tables)
    assert n_lines <= 250


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


def anchors(text: str) -> set[str]:
    """Where a link with # may lead: GitHub's names of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_inside_the_project_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", PAGES[page]):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_every_page_can_be_reached_from_the_readme():
    links = re.findall(r"\]\(([^)#]+)", PAGES[ROOT / "README.md"])
    assert {path.relative_to(ROOT).as_posix() for path in PAGES} - {"README.md"} <= set(links)


def test_the_table_of_speed_is_that_of_the_last_benchmark():
    measured = (ROOT / "tests/bench/results/speed.md").read_text(encoding="utf-8").splitlines()
    table = PAGES[ROOT / "docs" / "measured.md"].partition("| what | peer | ours |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len(rows) > 10 and set(rows) <= set(measured)


def test_commands_and_modules_that_it_names_exist():
    for page in PAGES.values():
        for module in re.findall(r"python -m (utils[\w.]*|tests[\w.]*)", page):
            assert importlib.util.find_spec(module), module
        for path in re.findall(r"tests/test_\w+\.py", page):
            assert (ROOT / path).is_file(), path


def test_the_snippets_have_room_for_a_whole_story():
    """None cuts a story in the middle of a sentence: the longest of the built-in ones, which k2 learns, fits."""
    stories = builtin_stories(2_000)
    tok = WordTokenizer.train(stories)
    room = [int(n) for page in PAGES.values() for n in re.findall(r"max_new_tokens=(\d+)", page)]
    room.append(inspect.signature(generate).parameters["max_new_tokens"].default)
    assert len(room) > 1 and min(room) >= max(len(tok.encode(story)) for story in stories)
