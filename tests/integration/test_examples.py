"""The example projects run, show what they promise, and those for the callbacks know nothing of ours but these."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from tests.support.live_server import serving
from tests.support.short_fits import events
from tests.support.simulated_session import simulated_stage

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
SCALARS = {
    "image_classifier": {"grad/norm/head", "phase/backbone_trainable", "throughput/train/steps_per_second"},
    "own_dit": {
        *("action/modulation_norm/gate_ffn", "drift/brightness/change", "grad/norm/action_encoder"),
        *("grad/norm/transformer.layers.01", "loss/noise_level/0400-0600", "phase/index", "sensitivity/swapped_gap"),
    },
}
IMAGES = {"image_classifier": set(), "own_dit": {"rollout/1_truth/sample_0", "rollout/4_action_scan"}}


# Run with the page that shows it, by test_docs.py.
OF_PAGES = {"plan": "live.md"}


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SCALARS.keys() | OF_PAGES.keys() | {"remote_player"}
    for name, page in OF_PAGES.items():
        assert f"python docs/examples/{name}.py" in (EXAMPLES.parent / page).read_text()


@pytest.mark.filterwarnings("ignore::lightning_action.callbacks.DriftWarning")
@pytest.mark.parametrize("name", SCALARS)
def test_example_runs_and_shows_its_panels(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--max_steps", "20", "--output", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    shown = events(TensorBoardLogger(tmp_path, version=0)).Tags()
    assert set(shown["scalars"]) >= SCALARS[name]
    assert set(shown["images"]) >= IMAGES[name]


@pytest.mark.parametrize("name", SCALARS)
def test_example_imports_nothing_of_ours_but_the_callbacks(name: str) -> None:
    tree = ast.parse((EXAMPLES / f"{name}.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {module for module in modules if module.split(".")[0] == "lightning_action"} == {
        "lightning_action.callbacks"
    }


def test_a_program_plays_over_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "last.png"
    with serving(simulated_stage(), token="a-secret-of-mine") as running:
        address = f"{running.address}/?token=a-secret-of-mine"
        monkeypatch.setattr(sys, "argv", ["remote_player.py", address, "--blocks", "3", "--output", str(output)])
        runpy.run_path(str(EXAMPLES / "remote_player.py"), run_name="__main__")
    assert "controls: ['→'" in capsys.readouterr().out
    with Image.open(output) as picture:
        assert picture.size == (28, 20)
