"""Docstrings are `--help`: each entry of a section is a sentence."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lightning_action", "callbacks", "docs", "tests/support")
FILES = [ROOT / "main.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]
_SECTIONS = ("Args:", "Raises:", "Returns:", "Yields:")


def entries(docstring: str) -> Iterator[str]:
    """Text of each entry of `Args` and `Raises`, with its further lines."""
    section, entry = "", ""
    for line in [*docstring.splitlines(), "end"]:
        begins = re.match(r"    \*{0,2}\w+: (.*)", line)
        if section in ("Args:", "Raises:") and entry and (begins or not line.startswith("     ")):
            yield entry
            entry = ""
        if line in _SECTIONS:
            section = line
        elif line and not line.startswith(" "):
            section = ""
        elif begins and section in ("Args:", "Raises:"):
            entry = begins[1]
        elif entry:
            entry += f" {line.strip()}"


def documented(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and (docstring := ast.get_docstring(node)):
            yield node.name, docstring


def is_sentence(entry: str) -> bool:
    return not entry[0].islower() and entry.rstrip().endswith((".", ":", "`)"))


def test_entries_and_sentences_are_told() -> None:
    text = "Do.\n\nArgs:\n    one: Number of\n        frames.\n    two: of frames\n\nReturns:\n    three: x\n"
    assert list(entries(text)) == ["Number of frames.", "of frames"]
    assert [is_sentence(entry) for entry in entries(text)] == [True, False]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_entry_is_a_sentence(path: Path) -> None:
    broken = [f"{name}: {e}" for name, docstring in documented(path) for e in entries(docstring) if not is_sentence(e)]
    assert not broken
