"""The shape of the tree: a test file beside each module's path, none elsewhere, and short functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.conftest import SLOW

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "tests" / "unit"
FOLDERS = {"lightning_action": UNIT, "callbacks": UNIT / "callbacks"}
# Modules without a test file of their own, each with the reason.
WITHOUT_TESTS = {
    "lightning_action/__main__.py": "calls `main`, which tests/integration starts as a program",
    "lightning_action/recordings/clips.py": "a protocol, of which nothing runs",
    "lightning_action/recordings/recording.py": "two tables without a method, which every reader's tests fill",
}
# Test files without a module of their path, each with the reason.
WITHOUT_MODULE = {
    "test_docstrings.py": "reads the docstrings of all modules",
    "test_imports.py": "reads the imports of all modules",
    "test_public_names.py": "reads README, docs and configurations",
    "test_tree.py": "reads the tree",
    "benchmarks/test_random_object.py": "its module lies beside the packages, in benchmarks/",
    "cli/test_main.py": "tests what cli/__init__.py checks before anything is imported",
    "data/test_environment_simulator.py": "plays environments again through evaluation/known_state.py",
    "evaluation/test_unknown_state.py": "judges wrong models by obedience, reader of actions and verdict together",
    "frozen/test_foreign_files.py": "one table of files for the VAE, the tiny VAE and the text encoder",
}
MAX_LINES, MAX_MEDIAN = 60, 6


def modules() -> Iterator[tuple[str, Path]]:
    """Each module but those that make a folder a package, and the place of its test file."""
    for folder, tests in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "__init__.py":
                inside = path.relative_to(ROOT / folder)
                yield path.relative_to(ROOT).as_posix(), tests / inside.with_name(f"test_{path.name}")


def lengths_of_functions() -> dict[str, int]:
    """Lines from `def` to the end, docstring included, of each function of what is shipped."""
    files = [ROOT / "main.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
    return {
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in files
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_each_module_has_a_test_file_beside_its_path() -> None:
    found = dict(modules())
    assert len(found) > 200
    assert {name for name, test in found.items() if not test.is_file()} == WITHOUT_TESTS.keys()


def test_each_test_file_has_a_module_beside_its_path() -> None:
    beside = {test for _, test in modules()}
    found = set(UNIT.rglob("test_*.py"))
    assert len(found) > 200
    assert {test.relative_to(UNIT).as_posix() for test in found - beside} == WITHOUT_MODULE.keys()


def test_files_that_are_slow_are_there() -> None:
    assert SLOW and all((UNIT / name).is_file() for name in SLOW)


def test_functions_fit_on_a_screen() -> None:
    lengths = lengths_of_functions()
    assert len(lengths) > 1000
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}
    assert median(lengths.values()) <= MAX_MEDIAN
