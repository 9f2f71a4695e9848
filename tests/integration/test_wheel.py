"""The built wheel in an environment of its own, with what it requires and no extra, away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from lightning_action.cli.selfcheck import EXTRAS
from tests.support.small_commands import ROOT, SMALL_DATA, SMALL_MODEL

OPTIONAL = [name for names in EXTRAS.values() for name in names]
IMPORT_ALL = """
import lightning_action, pkgutil, sys
from importlib import import_module
import lightning_action.callbacks
names = {f"lightning_action.{name}" for name in lightning_action.__all__}
names |= {module.name for module in pkgutil.walk_packages(lightning_action.__path__, "lightning_action.")}
for name in sorted(name for name in names if not name.endswith("__main__")):
    holder, _, last = name.rpartition(".")
    try:
        getattr(lightning_action, last) if last in lightning_action.__all__ else import_module(name)
    except ImportError as error:
        print(name, error, sep=": ")
print(lightning_action.__file__, lightning_action.callbacks.__file__, sep="\\n")
"""
REFUSED = """
import json, sys
from lightning_action.cli import main
for command in json.loads(sys.argv[1]):
    try:
        main(command)
    except SystemExit as stopped:
        assert stopped.code == 2
    else:
        raise AssertionError(command)
"""
# Subclasses of another package's classes cannot be defined without it.
WITH_EXTRAS = [f"lightning_action.{name}" for name in ("WorldModelEnv", "WorldModelVectorEnv", "play.world_model_env")]


def run(*words: str | Path, folder: Path) -> str:
    """What a command prints, in a folder and without the checkout's path."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    ended = subprocess.run(list(map(str, words)), cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def needed_by(requirements: Iterable[str]) -> list[Distribution]:
    """Distributions that requirements lead to, each with those of its extras that are asked for."""
    waiting, found = [(line, "") for line in requirements], {}
    while waiting:
        line, extra = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in {"", *requirement.extras} - {key[1] for key in found if key[0] == requirement.name}:
                found[requirement.name, wanted] = distribution(requirement.name)
                waiting += [(each, wanted) for each in found[requirement.name, wanted].requires or []]
    return list(found.values())


def show(wanted: Distribution, site_packages: Path) -> None:
    """Link a distribution of this environment into another one."""
    for top in {file.parts[0] for file in wanted.files or []} - {"..", "__pycache__"}:
        if not (site_packages / top).exists():
            (site_packages / top).symlink_to(str(wanted.locate_file(top)))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and the distributions that it requires."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("lightning_action", "callbacks", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source" / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir=.", "./source", folder=folder)
    shutil.rmtree(folder / "source")
    venv.create(folder / "environment", symlinks=True)
    (wheel,) = folder.glob("*.whl")
    into = (*pip, "--python", folder / "environment")
    run(*into, "install", "--no-deps", "--no-index", wheel, folder=folder)
    (site_packages,) = folder.glob("environment/lib/python*/site-packages")
    (ours,) = distributions(path=[str(site_packages)])
    for each in needed_by(ours.requires or []):
        show(each, site_packages)
    assert "No broken requirements" in run(*into, "check", folder=folder)
    return folder / "environment"


def test_every_module_imports_without_extras(environment: Path, tmp_path: Path) -> None:
    code = f"from importlib.util import find_spec; print([name for name in {OPTIONAL} if find_spec(name)])"
    assert run(environment / "bin" / "python", "-c", code, folder=tmp_path) == "[]\n"
    *missing, package_file, callbacks_file = run(
        environment / "bin" / "python", "-c", IMPORT_ALL, folder=tmp_path
    ).splitlines()
    assert missing == [
        f"{name}: environments need gymnasium: pip install 'lightning_action[env]'" for name in WITH_EXTRAS
    ]
    places = package_file, callbacks_file
    package = Path(places[0]).parent
    assert package.is_relative_to(environment) and Path(places[1]) == package / "callbacks" / "__init__.py"


@pytest.fixture(scope="module")
def refused(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What commands from an empty folder end with, in one process, which imports everything once."""
    folder = tmp_path_factory.mktemp("empty")
    (configs,) = environment.glob("lib/python*/site-packages/lightning_action/configs")
    stacked = [f"--config={configs / name}" for name in ("demo.yaml", "demo_backbone.yaml", "lora.yaml")]
    commands = {"lora": ["fit", *stacked, *SMALL_MODEL, *SMALL_DATA], "play": ["play"]}
    commands["another place"] = ["fit", "--config=configs/demo.yaml"]
    said = run(environment / "bin" / "python", "-c", REFUSED, json.dumps(list(commands.values())), folder=folder)
    assert not list(folder.iterdir())
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    return dict(zip(commands, lines, strict=True))


def test_what_needs_an_extra_names_it(refused: dict[str, str]) -> None:
    assert refused["lora"].startswith("error: LoRA needs peft: pip install 'lightning_action[lora]'")
    assert refused["play"].startswith("error: play needs starlette: pip install 'lightning_action[play]'")


def test_a_fit_from_an_empty_folder(environment: Path, refused: dict[str, str], tmp_path: Path) -> None:
    """With a configuration that the wheel brings, which the command line tells the place of."""
    config = Path(refused["another place"].split("the shipped one is '")[1].split("'")[0])
    assert config.is_relative_to(environment)
    names = {path.relative_to(config.parent) for path in config.parent.rglob("*.yaml")}
    assert names == {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    stacked = [f"--config={config}", f"--config={config.parent / 'demo_backbone.yaml'}", "--trainer.max_steps=2"]
    command = environment / "bin" / "lightning-action"
    run(command, "fit", *stacked, *SMALL_MODEL, *SMALL_DATA, folder=tmp_path)
    assert list(tmp_path.rglob("generator.safetensors"))


def test_the_page_of_play_is_there(environment: Path, tmp_path: Path) -> None:
    folder = "(files('lightning_action.play') / 'page')"
    code = f"from importlib.resources import files; print(*sorted(file.name for file in {folder}.iterdir()))"
    pages = run(environment / "bin" / "python", "-c", code, folder=tmp_path).split()
    assert pages == sorted(path.name for path in (ROOT / "lightning_action" / "play" / "page").iterdir())


def test_selfcheck_passes_and_says_what_is_missing(environment: Path, tmp_path: Path) -> None:
    printed = run(environment / "bin" / "python", "-m", "lightning_action", "selfcheck", folder=tmp_path)
    assert "all checks passed" in printed and all(f"{name} missing" in printed for name in OPTIONAL)
