"""Who may import whom, and what an import loads."""

from __future__ import annotations

import ast
import configparser
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path
from typing import NamedTuple

import pytest

import lightning_action

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "lightning_action"
CALLBACKS = ROOT / "callbacks"

# Part of the package -> the other parts that its files may import, anywhere. A new part is entered here.
MAY_IMPORT: dict[str, set[str]] = {
    "callbacks": set(),
    "class_paths": set(),
    "compat": set(),
    "mistakes": set(),
    "usage_messages": set(),
    "usage": {"class_paths", "mistakes", "usage_messages"},
    "ckpt_path": {"files", "weights"},
    "folder_lock": set(),
    "stop_signals": set(),
    "files": set(),
    "quantization": set(),
    "ranges": set(),
    "seeding": set(),
    "timing": set(),
    "generator": {"ranges"},
    "metrics": set(),
    "weights": {"files"},
    "action": {"generator", "ranges"},
    "frozen": {"ranges", "weights"},
    "overlap": {"frozen"},
    "diffusion": {"generator", "ranges", "seeding"},
    "rollout": {"generator", "diffusion"},
    "settings": {"diffusion", "quantization", "ranges"},
    "batch": {"action"},
    "cost": {"generator"},
    "sharding": {"generator"},
    "lockstep": {"generator", "sharding"},
    "lora": {"weights"},
    "adapter": {"action", "files", "generator", "lora", "weights"},
    "pretrained": {"action", "frozen", "generator", "lora", "weights"},
    "networks": {"action", "adapter", "generator", "lora", "pretrained", "seeding", "sharding"},
    "world_model": {
        *("action", "batch", "cost", "diffusion", "frozen", "generator", "overlap", "rollout", "seeding", "settings"),
        *("sharding", "timing"),
    },
    "batch_checks": {"batch", "world_model"},
    "pipeline": {
        *("action", "adapter", "diffusion", "frozen", "generator", "pretrained", "rollout", "run"),
        *("settings", "weights"),
    },
    "evaluation": {"batch", "files", "metrics"},
    "data": {"action", "batch", "frozen", "seeding"},
    "strategies": {"callbacks", "files", "weights"},
    "checkpoints": {"files"},
    "resuming": {"data"},
    "run_checkpoint": {"folder_lock", "stop_signals"},
    "module": {
        *("action", "batch", "batch_checks", "diffusion", "evaluation", "frozen", "generator", "lockstep", "lora"),
        *("networks", "pretrained", "quantization", "ranges", "resuming", "rollout", "seeding", "settings", "sharding"),
        *("strategies", "weights", "world_model"),
    },
    "command_line": {
        *("checkpoints", "ckpt_path", "class_paths", "mistakes", "module", "run_checkpoint", "strategies", "usage"),
        "usage_messages",
    },
    "run": {"callbacks", "ckpt_path", "class_paths", "module", "strategies", "usage", "weights"},
    "check": {
        *("batch", "batch_checks", "class_paths", "command_line", "cost", "diffusion", "frozen", "generator", "module"),
        "sharding",
    },
    "export": {
        *("adapter", "callbacks", "command_line", "files", "generator", "lora", "mistakes", "module", "pretrained"),
        *("run", "strategies", "usage_messages", "weights"),
    },
    "cli": {"check", "compat", "command_line", "export", "mistakes"},
    "__main__": {"cli"},
}
WITH_LIGHTNING = {
    *("data", "module", "strategies", "checkpoints", "resuming", "run_checkpoint", "command_line", "cli"),
    *("callbacks", "export", "check", "run", "usage", "ckpt_path", "__main__"),
}
WITHOUT_LIGHTNING = MAY_IMPORT.keys() - WITH_LIGHTNING
LIGHTNING = {"lightning", "pytorch_lightning", "lightning_fabric"}
# Slow to import or in an extra: only inside the function that needs them.
DEFERRED = {"diffusers", "transformers", "ftfy", "peft", "pyarrow", "torchao", "torchvision"}
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


def imports_in(path: Path) -> list[Import]:
    return list(imports_of(ast.parse(path.read_text())))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


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


def test_every_part_has_its_rule_and_the_rules_have_no_cycle() -> None:
    assert {part_of(path) for path in package_files()} - MAY_IMPORT.keys() == set()
    TopologicalSorter(MAY_IMPORT).prepare()


def test_parts_import_only_what_they_may() -> None:
    found = []
    for path in package_files():
        allowed = {part_of(path), "__version__", *MAY_IMPORT.get(part_of(path), set())}
        for item in imports_in(path):
            root, _, rest = resolve_name(item.name, package_of(path)).partition(".")
            if root == "lightning_action" and rest.split(".")[0] not in allowed:
                found += violations(path, {item})
    assert found == []


def test_parts_below_the_module_do_not_import_lightning() -> None:
    files = [path for path in package_files() if part_of(path) in WITHOUT_LIGHTNING]
    assert files
    assert [v for path in files for v in violations(path, {i for i in imports_in(path) if i.root in LIGHTNING})] == []


def test_slow_and_optional_packages_are_imported_only_where_they_are_used() -> None:
    found = []
    for path in [*package_files(), *CALLBACKS.rglob("*.py")]:
        found += violations(path, {item for item in imports_in(path) if item.root in DEFERRED and not item.deferred})
    assert found == []


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


def test_main_is_the_command_line_and_nothing_else() -> None:
    modules = {item.name.rpartition(".")[0] for item in imports_in(ROOT / "main.py")}
    assert modules <= {"__future__", "lightning_action.cli"}


def test_every_package_is_installed() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    on_disk = {package_of(path) for path in PACKAGE.rglob("__init__.py")}
    assert listed == on_disk | {"lightning_action.callbacks", "lightning_action.configs"}


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


def loaded_by(code: str) -> set[str]:
    return set(json.loads(run_python(f"import json, sys; {code}; print(json.dumps(list(sys.modules)))")))


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import lightning_action")
    assert {name for name in loaded if name.startswith("lightning_action")} == {"lightning_action"}
    assert loaded & {"torch", "lightning", "numpy"} == set()


def test_importing_the_callbacks_loads_nothing_else_of_ours() -> None:
    loaded = loaded_by("from lightning_action.callbacks import EMA")
    ours = {name for name in loaded if name.startswith("lightning_action.")}
    assert {name for name in ours if not name.startswith("lightning_action.callbacks")} == set()
    # torchmetrics, which lightning imports, itself imports transformers where it is installed.
    because_of_us = loaded - loaded_by("import lightning.pytorch")
    third_party = {name.split(".")[0] for name in because_of_us} - set(sys.stdlib_module_names)
    assert third_party <= {"lightning_action", "lightning", "torch"}


def test_importing_the_pipeline_loads_no_lightning() -> None:
    assert "lightning" not in loaded_by("from lightning_action import ActionCausalInferencePipeline")


def test_callbacks_are_found_in_a_checkout_that_is_not_installed() -> None:
    # -S leaves out site-packages, and with it the editable install that would find them by other means.
    code = "from importlib.util import find_spec; print(find_spec('lightning_action.callbacks').origin)"
    assert run_python(code, "-S").strip() == str(CALLBACKS / "__init__.py")
