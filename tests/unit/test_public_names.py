"""What README, docs and configurations name is exported, so that everything else may move."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import lightning_action
import lightning_action.callbacks

ROOT = Path(__file__).resolve().parents[2]
READ = [ROOT / "README.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/examples/*.py")]
READ += [*ROOT.glob("configs/*.yaml"), ROOT / "Makefile"]
TOOLS = sorted(ROOT.glob("docs/*.py"))
# A file may be linked to, to be read.
_NAMED = re.compile(
    r"\blightning_action[.:]([\w.:]*\w)|from lightning_action([\w.]*) import (\([^)]*\)|[^\n]*)"
    r"|(?<![(\[])\blightning_action/(\w+/[\w/]+)\.py"
)


def named_in(text: str) -> set[str]:
    """What is named of the package, from it on: `CausalWanModel`, `callbacks.EMA`."""
    found = set()
    for path, package, imported, file in _NAMED.findall(text):
        names = re.findall(r"\w+", imported)
        named = re.sub("[:/]", ".", path or file)
        found |= {named} if named else {f"{package}.{name}".lstrip(".") for name in names}
    return found


def exported(name: str) -> bool:
    package, _, last = name.rpartition(".")
    holder = {"": lightning_action, "callbacks": lightning_action.callbacks}.get(package)
    return name == "callbacks" or (holder is not None and last in holder.__all__)


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_only_exported_names_are_told(path: Path) -> None:
    assert [name for name in sorted(named_in(path.read_text())) if not exported(name)] == []


def test_classes_that_pages_name_are_exported() -> None:
    files = [path for package in ("lightning_action", "callbacks") for path in (ROOT / package).rglob("*.py")]
    classes = {
        node.name for path in files for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    }
    pages = "".join(path.read_text() for path in READ if path.suffix == ".md")
    named = classes & set(re.findall(r"`([A-Z]\w+)[`.(]", pages))
    assert {name for name in named if not exported(name) and not exported(f"callbacks.{name}")} == set()


@pytest.mark.parametrize("folder", ["lightning_action", "callbacks"])
def test_messages_and_docstrings_name_what_is_exported(folder: str) -> None:
    """Imports apart, all texts: an error that names a deep path sends people to what may move."""
    found = {
        (path.name, name)
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
        for name in named_in(node.value)
        if not exported(name) and path != ROOT / "lightning_action" / "__init__.py"
    }
    assert found == set()


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_tools_of_the_docs_use_exported_names_where_there_are_some(path: Path) -> None:
    names = {name for name in named_in(path.read_text()) if not exported(name)}
    assert [name for name in sorted(names) if exported(name.rpartition(".")[2])] == []


def test_deeper_names_would_be_seen() -> None:
    text = "`lightning_action.run.load_run`\nfrom lightning_action.data import (\n    A,\n)\n"
    text += "from lightning_action import B, C\n--env lightning_action:make --policy lightning_action.a.b:D\n"
    text += "`lightning_action/a/e.py` and [lightning_action/a/f.py](lightning_action/a/f.py)"
    assert named_in(text) == {"run.load_run", "data.A", "B", "C", "make", "a.b.D", "a.e"}
    assert not any(map(exported, ("run.load_run", "data.A", "B", "a.b.D", "a.e"))) and exported("callbacks.EMA")
