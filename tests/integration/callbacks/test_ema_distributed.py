"""EMA on two processes: replicated (DDP) and sharded (FSDP2) parameters, and their checkpoints on one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.load import _load_distributed_checkpoint

from lightning_action.callbacks import EMA
from tests.integration.callbacks.ema_script import Model, Watcher, equal, weights
from tests.short_fits import quiet_trainer
from tests.someones_dit import moving_spots

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("ema_script.py")
STRATEGIES = ["ddp", "fsdp2_sharded", "fsdp2_full"]


def launch(folder: Path, processes: int) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*command, str(SCRIPT), str(folder)], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-5000:]
    facts: list[dict[str, Any]] = json.loads((folder / f"facts_{processes}.json").read_text())
    return facts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind, and one that read their checkpoints: launched once for all tests."""
    folder = tmp_path_factory.mktemp("ema")
    for processes in (2, 1):
        launch(folder, processes)
    return folder


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_average_is_what_the_formula_says_on_every_rank(folder: Path, strategy: str) -> None:
    for facts in json.loads((folder / "facts_2.json").read_text()):
        assert facts[strategy]["differs_from_by_hand"] < 1e-6
        assert facts[strategy]["differs_from_trained"] > 1e-3
        assert facts[strategy]["trains_as_without"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_resumed_fit_equals_uninterrupted_fit(folder: Path, strategy: str) -> None:
    for facts in json.loads((folder / "facts_2.json").read_text()):
        assert facts[strategy]["resumed"] == {"0": True, "1": True}


@pytest.mark.parametrize("processes", [2, 1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prediction_uses_the_average_of_the_checkpoint(folder: Path, strategy: str, processes: int) -> None:
    for facts in json.loads((folder / f"facts_{processes}.json").read_text()):
        assert facts[strategy]["predicts_with_average"]
        assert facts[strategy]["leaves_trained"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_average_as_one_does(folder: Path, strategy: str) -> None:
    (facts,) = json.loads((folder / "facts_1.json").read_text())
    assert facts[strategy]["differs_from_one_process"] < 1e-6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prediction_without_distributed_training(folder: Path, strategy: str, tmp_path: Path) -> None:
    checkpoint = folder / strategy / "epoch=2.ckpt"
    if strategy == "fsdp2_sharded":
        # As `python -m lightning.fabric.utilities.consolidate_checkpoint` does.
        torch.save(_load_distributed_checkpoint(checkpoint), tmp_path / "one_file.ckpt")
        checkpoint = tmp_path / "one_file.ckpt"
    watcher, model = Watcher(), Model()
    trainer = quiet_trainer(tmp_path, EMA(), watcher)
    trainer.predict(model, moving_spots(), ckpt_path=checkpoint, return_predictions=False)
    seen = torch.load(folder / strategy / "seen.pt", weights_only=True)
    assert equal(watcher.evaluated[0], seen["average"])
    assert equal(weights(model), seen["trained"])
