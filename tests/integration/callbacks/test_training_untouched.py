"""No callback changes what a fit makes of the weights, in our module and in someone's own, both with dropout."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action import callbacks as ours
from tests.support.short_fits import quiet_trainer, scalars
from tests.support.small_demo import small_data, small_demo

EXAMPLES = Path(__file__).resolve().parents[3] / "docs" / "examples"
STEPS = 20
# Under what names the parts that callbacks watch are found.
PARTS = {
    "our module": {"projection": "action_projection", "backbone": "generator"},
    "own DiT": {"projection": "action_encoder", "backbone": "transformer"},
}
WATCHED: dict[str, dict[str, Any]] = {
    "our module": {},
    "own DiT": {
        "projection": "action_encoder",
        "time_projection": "transformer.time_projection",
        "layers": "transformer.layers",
        "table": "table",
    },
}
LAYERS = {"our module": "generator.blocks", "own DiT": "transformer.layers"}
ACTIONS = {"right": [0.5, 0.0], "down": [0.0, 0.5]}


def every_callback(kind: str) -> dict[str, Callback]:
    """All that there are, at work as often as they can be."""
    return {
        "ActionModulationMonitor": ours.ActionModulationMonitor(**WATCHED[kind], every_n_steps=1),
        "ActionScan": ours.ActionScan(ACTIONS),
        "ActionSensitivity": ours.ActionSensitivity(every_n_steps=3, num_samples=2, layers=LAYERS[kind]),
        "DriftMonitor": ours.DriftMonitor(rollout_rows=16),
        "EMA": ours.EMA(decay=0.9),
        "FreezeBackboneFirst": ours.FreezeBackboneFirst([PARTS[kind]["backbone"]], unfreeze_at_step=0),
        "GradientStatistics": ours.GradientStatistics(modules=[PARTS[kind]["projection"]], every_n_steps=1),
        "NoiseLevelLoss": ours.NoiseLevelLoss(every_n_steps=1),
        "PredictionWriter": ours.PredictionWriter(),
        "RolloutLogger": ours.RolloutLogger(num_samples=1, actions=ACTIONS),
        "TensorBoardLayout": ours.TensorBoardLayout(),
        "ThroughputMonitor": ours.ThroughputMonitor(every_n_steps=1),
    }


class Draws(Callback):
    """What a careless callback does: it draws a number while it watches."""

    def __init__(self, projection: str) -> None:
        self.projection = projection

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.get_submodule(self.projection).register_forward_pre_hook(lambda *_: torch.rand(1) and None)


def fit_our_module(trainer: Trainer) -> LightningModule:
    module = small_demo()
    trainer.fit(module, small_data())
    return module


def fit_own_dit(trainer: Trainer) -> LightningModule:
    example = runpy.run_path(str(EXAMPLES / "own_dit.py"))
    module: LightningModule = example["OwnDiT"]()
    dataset = example["MovingDot"]
    training = DataLoader(dataset(30, seed=0), batch_size=3, shuffle=True)
    trainer.fit(module, training, DataLoader(dataset(4, seed=1), batch_size=2))
    return module


FITS: dict[str, Callable[[Trainer], LightningModule]] = {"our module": fit_our_module, "own DiT": fit_own_dit}


def weights_after_fit(kind: str, folder: Path, *callbacks: Callback) -> tuple[dict[str, Tensor], set[str]]:
    """Weights, and what TensorBoard shows."""
    seed_everything(3, verbose=False)
    logger = TensorBoardLogger(folder)
    trainer = quiet_trainer(
        folder,
        *callbacks,
        logger=logger,
        max_steps=STEPS,
        val_check_interval=7,
        check_val_every_n_epoch=None,
        limit_val_batches=2,
        log_every_n_steps=1,
    )
    module = FITS[kind](trainer)
    return {name: value.clone() for name, value in module.state_dict().items()}, set(scalars(logger))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_all_of_them_are_here() -> None:
    classes = {name for name in ours.__all__ if issubclass(getattr(ours, name), Callback)}
    assert every_callback("our module").keys() == classes


@pytest.mark.filterwarnings("ignore::lightning_action.callbacks.DriftWarning")
@pytest.mark.parametrize("kind", FITS)
def test_weights_are_those_of_a_fit_without_callbacks(kind: str, tmp_path: Path) -> None:
    alone, _ = weights_after_fit(kind, tmp_path / "alone")
    watched, shown = weights_after_fit(kind, tmp_path / "watched", *every_callback(kind).values())
    assert equal(watched, alone)
    # They did work.
    assert {tag.split("/")[0] for tag in shown} >= {"action", "drift", "grad", "loss", "phase", "sensitivity"}
    assert list((tmp_path / "watched").rglob("*.gif")) or list((tmp_path / "watched").rglob("*.mp4"))

    disturbed, _ = weights_after_fit(kind, tmp_path / "disturbed", Draws(PARTS[kind]["projection"]))
    assert not equal(disturbed, alone)
