"""The callbacks that log statistics know ActionVideoModule without being told any name."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_action import ActionModulationProjection, ActionVideoModule
from lightning_action.callbacks import (
    ActionModulationMonitor,
    ActionModulationWarning,
    GradientStatistics,
    NoiseLevelLoss,
    ThroughputMonitor,
)
from tests.support import short_fits
from tests.support.sprite_module import build, data


def fit(folder: Path, module: ActionVideoModule, *first: Callback) -> short_fits.Shown:
    callbacks = [
        *first,
        ActionModulationMonitor(warn_after_steps=4),
        GradientStatistics(["generator.blocks.*", "action_projection"]),
        NoiseLevelLoss(num_bins=4),
        ThroughputMonitor(),
    ]
    source = data()
    source.setup("fit")
    loaders = (source.train_dataloader(),)
    module.frozen.vae.fit(source.codec_videos(15))  # type: ignore[attr-defined]
    return short_fits.fit(folder, module, *callbacks, loaders=loaders, max_steps=8, log_every_n_steps=2)


def test_every_callback_shows_something_and_nothing_is_wrong(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ActionModulationWarning)
        shown = fit(tmp_path, build(action_dropout_prob=0.0))
    assert shown["action/modulation_norm/gate_ffn"][0] == 0 < shown["action/modulation_norm/gate_ffn"][7]
    assert shown["action/modulation_to_time/layer_01"][7] > 0 and shown["action/modulation_to_table/layer_01"][7] > 0
    # The first of five latent frames has no action: it is a null frame.
    assert shown["action/null_share"][7] == pytest.approx(1 / 5)
    groups = ("all", "action", "backbone", "action_projection", "generator.blocks.01")
    assert all(shown[f"grad/norm/{group}"][7] > 0 for group in groups)
    assert [tag for tag in shown if tag.startswith("loss/noise_level/")]
    assert shown["throughput/train/video_frames_per_second_with_vae"][7] > 0


class Break(Callback):
    """Does something to the projection before the fit."""

    def __init__(self, action: Callable[[ActionModulationProjection], Any]) -> None:
        self.action = action

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.action(pl_module.action_projection)  # type: ignore[arg-type]


BROKEN: dict[str, tuple[Callable[[ActionModulationProjection], Any], str]] = {
    "detached gradient": (
        lambda projection: projection.register_forward_hook(lambda *args: args[2].detach()),
        "detached projection: step 3",
    ),
    "frozen by mistake": (lambda projection: projection.requires_grad_(False), "frozen projection: step 0"),
    "exploding scale": (
        lambda projection: nn.init.constant_(projection.action_projection.bias, 1e4),
        "exploded modulation: step 0",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_projection_is_named(tmp_path: Path, case: str) -> None:
    action, message = BROKEN[case]
    with pytest.warns(ActionModulationWarning, match=message):
        fit(tmp_path, build(), Break(action))
