"""Small faults put into the code one at a time: the tests must notice.

Each mutant changes one operator, comparison, number or condition of a module in a copy of the project, and the module's
own test files run until the first failure. A mutant that survives is either harmless or a missing test.
"""

from __future__ import annotations

import ast
import copy
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.proofs.found import Found

ROOT = Path(__file__).resolve().parents[2]
TESTS = {
    "attention": ["test_attention", "test_fast_attention", "test_decoding", "test_model", "test_hf"],
    "moe": ["test_moe", "test_fast_experts", "test_model", "test_record"],
    "muonclip": ["test_muonclip"],
    "checkpoint": ["test_checkpoint", "test_sealed", "test_files", "test_training"],
    "generation": ["test_generation", "test_decoding"],
}
CAUGHT = 0.85  # at least
LIMIT_SECONDS = 300  # a mutant that does not end is caught
OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.MatMult: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def mutants(source: str) -> Iterator[tuple[str, str]]:
    """(what was changed, the changed source), one for each place; messages, docstrings and annotations stay."""
    tree = ast.parse(source)
    untouched = {id(inner) for node in ast.walk(tree) for part in _said(node) for inner in ast.walk(part)}
    for i, node in enumerate(ast.walk(tree)):
        if id(node) in untouched:
            continue
        for j, _ in enumerate(_changes(node)):
            changed = copy.deepcopy(tree)
            twin = next(other for k, other in enumerate(ast.walk(changed)) if k == i)
            before = ast.unparse(twin)
            _changes(twin)[j]()
            yield f"line {getattr(node, 'lineno', 0)}: {before} -> {ast.unparse(twin)}"[:160], ast.unparse(changed)


def _said(node: ast.AST) -> list[ast.AST]:
    """What is only read by people, or by nobody."""
    if isinstance(node, ast.Raise):
        return [node]
    if isinstance(node, ast.FunctionDef):
        return [*([node.returns] if node.returns else []), *(a.annotation for a in node.args.args if a.annotation)]
    if isinstance(node, ast.AnnAssign):
        return [node.annotation]
    return [node] if isinstance(node, ast.JoinedStr) else []


def _changes(node: ast.AST) -> list:
    """What can be done to a node, each a function that does it."""
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in OPERATORS:
        return [lambda: setattr(node, "op", OPERATORS[type(node.op)]())]
    if isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        return [lambda: node.ops.__setitem__(0, COMPARISONS[type(node.ops[0])]())]
    if isinstance(node, ast.BoolOp):
        return [lambda: setattr(node, "op", ast.Or() if isinstance(node.op, ast.And) else ast.And())]
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        return [lambda: setattr(node, "test", ast.UnaryOp(ast.Not(), node.test))]
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return [lambda: setattr(node, "value", not node.value)]
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return [lambda: setattr(node, "value", node.value + 1)]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return [lambda: setattr(node, "op", ast.UAdd())]
    return []


def prove(folder: Path, n: int, seed: int) -> Found:
    """`n` mutants of each of the five modules, drawn at random; all where it has fewer."""
    chance, survivors, counts = random.Random(seed), [], {}
    copy_of = folder / "project"
    shutil.copytree(
        ROOT, copy_of, ignore=shutil.ignore_patterns(".git", "__pycache__", "runs", "*.ipynb", ".pytest_cache")
    )
    for module, names in TESTS.items():
        file = copy_of / "utils" / f"{module}.py"
        source = file.read_text()
        files = [f"tests/{name}.py" for name in names]
        found = list(mutants(source))
        drawn = chance.sample(found, min(n, len(found)))
        caught = 0
        for what, changed in drawn:
            file.write_text(changed)
            if _fails(copy_of, files):
                caught += 1
            else:
                survivors.append(f"{module}, {what}")
                print(f"survived: {survivors[-1]}", flush=True)
            print(f"{module}: {caught} caught, {len(survivors)} survivors in all", file=sys.stderr, flush=True)
        file.write_text(source)
        counts[module] = (caught, len(drawn), len(found))
    told = ", ".join(
        f"{name} {caught} of {drawn} (of {all_} there are)" for name, (caught, drawn, all_) in counts.items()
    )
    total, caught = (sum(count[i] for count in counts.values()) for i in (1, 0))
    problems = [f"only {caught / total:.0%} caught, it must be {CAUGHT:.0%}"] if caught < CAUGHT * total else []
    return Found(f"{caught} of {total} mutants caught ({caught / total:.0%}): {told}", problems)


def _fails(project: Path, files: list[str]) -> bool:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=project, capture_output=True, timeout=LIMIT_SECONDS,
                              env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0
