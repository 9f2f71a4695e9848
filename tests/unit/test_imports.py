"""Who may import whom, and what an import loads."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import pytest

import lightning_action

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lightning_action"
CALLBACKS = ROOT / "callbacks"

# Rooms are the folders and files at the top of the package, and the folders in them, at most 30. What stands to the
# right of a `<` may import what stands to the left of it, and what that may import. Each room is in a rule, and each
# step of a rule is taken by some import.
RULES = (
    "ranges < generator < action, diffusion, distributed",
    "ranges < frozen, optimization",
    "seeding < diffusion, data, assembly",
    "atomic < weights < frozen, configuration, distributed",
    "configuration < recordings < data",
    "action < batch < recordings, evaluation.report, generation, losses",
    "action, frozen < checkpoints, data, generation",
    "diffusion < generation, losses",
    "checkpoints, distributed < assembly",
    "action, weights < evaluation.metrics < evaluation.report < evaluation",
    "assembly, data, evaluation, generation, losses, optimization < module < distillation, run",
    "run < pipeline, play",
    "play < cli.support < cli < __main__",
)
# Reading a stranger's shards is the one thing that callbacks, which must stand alone, and the package both do; verbs
# use callbacks as anybody does, and draw as they do.
SHARED_WITH_CALLBACKS = {"callbacks.support.shard_reading"}
USED_BY_VERBS = {"callbacks", "callbacks.support.pictures"}
# Below the module, only what adapts to Lightning knows it.
WITH_LIGHTNING = {
    "data",
    "distributed",
    "configuration",
    "module",
    "distillation",
    "run",
    "cli.support",
    "cli",
}
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
# Slow to import or in an extra: only inside the function that needs them.
DEFERRED = {"diffusers", "transformers", "ftfy", "gymnasium", "peft", "pyarrow", "torchao", "torchvision"}
DEFERRED |= {"starlette", "uvicorn", "websockets"}
# An environment is a class of gymnasium's; nobody imports these modules but by their names.
WHOLLY_OPTIONAL = {PACKAGE / "play" / "world_model_env.py": "gymnasium"}
# typing_extensions stands for newer typing of the standard library; torch and lightning need it anyway.
CALLBACKS_MAY_IMPORT = {"torch", "lightning", "typing_extensions", *sys.stdlib_module_names}
CALLBACKS_MAY_DEFER = {"av", "PIL", "numpy"}


class Import(NamedTuple):
    """A module or name as written (`..x.y` if relative); `deferred` if importing the file does not import it."""

    name: str
    deferred: bool

    @property
    def root(self) -> str:
        return self.name.split(".")[0]


def imports_of(node: ast.AST, deferred: bool = False) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, deferred) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        separator = "." if node.module else ""
        yield from (Import(f"{module}{separator}{alias.name}", deferred) for alias in node.names)
    else:
        type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = deferred or type_checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from imports_of(child, inside)


@cache
def imports_in(path: Path) -> list[Import]:
    return list(imports_of(ast.parse(path.read_text())))


def room_of(name: str) -> str:
    """Name the room of a module, or of a name in one, both without the name of the package."""
    parts = name.split(".")[:2]
    return ".".join(parts) if (PACKAGE.joinpath(*parts) / "__init__.py").is_file() else parts[0]


def part_of(path: Path) -> str:
    return room_of(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def package_files() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def violations(path: Path, forbidden: set[Import]) -> list[str]:
    return [f"{path.relative_to(ROOT)} imports {item.name}" for item in sorted(forbidden)]


def test_the_reader_of_imports_tells_deferred_and_relative_ones() -> None:
    source = """
import a.b, c
from d import e
from . import f
from ..g import h
if TYPE_CHECKING:
    import i
class J:
    import k
    def l(self):
        from m import n
try:
    import o
except ImportError:
    pass
"""
    at_import = {"a.b", "c", "d.e", ".f", "..g.h", "k", "o"}
    expected = {Import(name, False) for name in at_import} | {Import("i", True), Import("m.n", True)}
    assert set(imports_of(ast.parse(source))) == expected


def steps() -> list[tuple[set[str], set[str]]]:
    """What is below and what is above in each step of the rules."""
    groups = [[set(group.replace(" ", "").split(",")) for group in rule.split("<")] for rule in RULES]
    return [step for rule in groups for step in zip(rule, rule[1:], strict=False)]


def may_import() -> dict[str, set[str]]:
    """What each room may import, of its own accord and by what it stands on."""
    below: dict[str, set[str]] = {}
    for lower, upper in steps():
        for room in lower:
            below.setdefault(room, set())
        for room in upper:
            below.setdefault(room, set()).update(lower)
    for room in TopologicalSorter(below).static_order():
        below[room] |= {deeper for other in below[room] for deeper in below[other]}
    return below


def imported_rooms() -> dict[str, dict[str, set[str]]]:
    """Room -> rooms that its files import -> by which names."""
    found: dict[str, dict[str, set[str]]] = {}
    for path in package_files():
        rooms = found.setdefault(part_of(path), {})
        for item in imports_in(path):
            root, _, rest = resolve_name(item.name, package_of(path)).partition(".")
            if root == PACKAGE.name and rest != "__version__" and room_of(rest) != part_of(path):
                rooms.setdefault(room_of(rest), set()).add(rest)
    return found


def test_rooms_import_only_what_is_below_them() -> None:
    allowed, found = may_import(), imported_rooms()
    print("\n".join(f"{room} -> {', '.join(sorted(below)) or 'nothing'}" for room, below in sorted(found.items())))
    assert found.keys() == allowed.keys() and len(found) <= 30
    for room, rooms in found.items():
        assert rooms.keys() - {"callbacks"} <= allowed[room], room
        shared = {".".join(name.split(".")[:-1]) for name in rooms.get("callbacks", set())}
        assert shared <= SHARED_WITH_CALLBACKS | (USED_BY_VERBS if room == "cli" else set()), room


def test_each_step_of_a_rule_is_taken() -> None:
    found = imported_rooms()
    for lower, upper in steps():
        taken = {(below, above) for below in lower for above in upper if below in found[above]}
        assert {below for below, _ in taken} == lower and {above for _, above in taken} == upper, (lower, upper)
    of_callbacks = {name for rooms in found.values() for name in rooms.get("callbacks", set())}
    assert {name.rpartition(".")[0] for name in of_callbacks} == SHARED_WITH_CALLBACKS | USED_BY_VERBS


def test_rooms_below_the_module_do_not_import_lightning() -> None:
    with_lightning = {
        part_of(path) for path in package_files() if any(item.root in LIGHTNING for item in imports_in(path))
    }
    assert with_lightning == WITH_LIGHTNING


def test_slow_and_optional_packages_are_imported_only_where_they_are_used() -> None:
    found = []
    for path in [*package_files(), *CALLBACKS.rglob("*.py")]:
        deferred = DEFERRED - {WHOLLY_OPTIONAL.get(path, "")}
        found += violations(path, {item for item in imports_in(path) if item.root in deferred and not item.deferred})
    assert found == []


@pytest.mark.parametrize("path", WHOLLY_OPTIONAL, ids=lambda path: path.stem)
def test_what_needs_an_extra_is_imported_by_nobody_at_import(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert WHOLLY_OPTIONAL[path] in {item.root for item in imports_in(path) if not item.deferred}
    others = [other for other in [*package_files(), *CALLBACKS.rglob("*.py")] if other != path]
    found = [
        violations(other, {i for i in imports_in(other) if i.name.startswith(name) and not i.deferred})
        for other in others
    ]
    assert found == [[]] * len(others)


def test_callbacks_import_torch_and_lightning_only() -> None:
    files = sorted(CALLBACKS.rglob("*.py"))
    assert files
    found = []
    for path in files:
        for item in imports_in(path):
            inside = item.name.startswith(".") and not item.name.startswith("..")
            deferred = item.deferred and item.root in CALLBACKS_MAY_DEFER
            if not (inside or deferred or item.root in CALLBACKS_MAY_IMPORT):
                found += violations(path, {item})
    assert found == []


def test_callbacks_are_named_by_their_installed_name() -> None:
    # `import callbacks` works in the root of a checkout too, and gives a second copy of every class.
    files = [path for folder in ("lightning_action", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    files += ROOT.glob("*.py")
    assert [v for path in files for v in violations(path, {i for i in imports_in(path) if i.root == "callbacks"})] == []


def test_no_test_imports_another() -> None:
    """What several share is in tests/support."""
    files = [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert files
    assert [v for path in files for v in violations(path, {i for i in imports_in(path) if ".test_" in i.name})] == []


def test_main_is_the_command_line_and_nothing_else() -> None:
    modules = {item.name.rpartition(".")[0] for item in imports_in(ROOT / "main.py")}
    assert modules <= {"__future__", "lightning_action.cli"}


def test_every_package_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    on_disk = {package_of(path) for path in PACKAGE.rglob("__init__.py")}
    assert listed == on_disk | {f"lightning_action.{each}" for each in ("callbacks", "callbacks.support", "configs")}


@pytest.mark.parametrize("name", sorted(lightning_action._EXPORTS))
def test_exported_names_exist(name: str) -> None:
    assert getattr(lightning_action, name) is getattr(importlib.import_module(lightning_action._EXPORTS[name]), name)


def test_type_checkers_see_the_exported_names() -> None:
    seen = {item.name for item in imports_in(PACKAGE / "__init__.py") if item.deferred}
    assert seen == {f"{module}.{name}" for name, module in lightning_action._EXPORTS.items()}


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'CausalWanModle'; it exports .*CausalWanModel"):
        lightning_action.CausalWanModle  # noqa: B018


def run_python(code: str, *flags: str) -> str:
    result = subprocess.run([sys.executable, *flags, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_by(code: str, modules: str = "sys.modules") -> set[str]:
    return set(json.loads(run_python(f"import json, sys; {code}; print(json.dumps(list({modules})))")))


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import lightning_action")
    assert {name for name in loaded if name.startswith("lightning_action")} == {"lightning_action"}
    assert loaded & {"torch", "lightning", "numpy"} == set()


def test_importing_the_callbacks_loads_nothing_else_of_ours() -> None:
    # torchmetrics, which lightning imports, itself imports transformers where it is installed.
    begin = "import lightning.pytorch; before = set(sys.modules)"
    because_of_us = loaded_by(f"{begin}; from lightning_action.callbacks import EMA", "set(sys.modules) - before")
    ours = {name for name in because_of_us if name.startswith("lightning_action.")}
    assert ours and {name for name in ours if not name.startswith("lightning_action.callbacks")} == set()
    third_party = {name.split(".")[0] for name in because_of_us} - set(sys.stdlib_module_names)
    assert third_party <= {"lightning_action", "lightning", "torch"}


def test_importing_the_pipeline_loads_no_lightning() -> None:
    assert "lightning" not in loaded_by("from lightning_action import ActionCausalInferencePipeline")


def test_callbacks_are_found_in_a_checkout_that_is_not_installed() -> None:
    # -S leaves out site-packages, and with it the editable install that would find them by other means.
    code = "from importlib.util import find_spec; print(find_spec('lightning_action.callbacks').origin)"
    assert run_python(code, "-S").strip() == str(CALLBACKS / "__init__.py")
