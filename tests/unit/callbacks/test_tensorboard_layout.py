"""The layout comes out of TensorBoard, and its expressions match what the callbacks log."""

import re
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_action.callbacks import (
    ActionModulationMonitor,
    ActionSensitivity,
    DriftMonitor,
    FreezeBackboneFirst,
    GradientStatistics,
    NoiseLevelLoss,
    TensorBoardLayout,
    ThroughputMonitor,
)
from lightning_action.callbacks.tensorboard_layout import DEFAULT_LAYOUT
from tests.support.probed_dit import Probed
from tests.support.short_fits import events, fit, quiet_trainer
from tests.support.someones_dit import moving_spots


def layout_in(logger: TensorBoardLogger) -> dict[str, dict[str, list[str]]]:
    (event,) = events(logger).Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {group.title: {chart.title: list(chart.multiline.tag) for chart in group.chart} for group in layout.category}


@pytest.mark.parametrize("layout", [None, {"Losses": {"training": ["train/loss"], "by noise": ["a", "b"]}}])
def test_the_layout_is_written_once(tmp_path: Path, layout: Any) -> None:
    logger = TensorBoardLogger(tmp_path)
    quiet_trainer(tmp_path, TensorBoardLayout(layout), logger=logger, max_epochs=2, limit_train_batches=1).fit(
        BoringModel()
    )
    assert layout_in(logger) == (layout or DEFAULT_LAYOUT)


def test_other_loggers_are_warned_of_and_none_is_fine(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="CSVLogger has no experiment with `add_custom_scalars`"):
        quiet_trainer(tmp_path, TensorBoardLayout(), logger=CSVLogger(tmp_path), fast_dev_run=False, max_steps=1).fit(
            BoringModel()
        )
    quiet_trainer(tmp_path, TensorBoardLayout(), max_steps=1).fit(BoringModel())


def test_charts_match_what_the_callbacks_log(tmp_path: Path) -> None:
    shown = fit(
        tmp_path,
        Probed(zero_init=False, per_layer=True),
        ActionModulationMonitor("action_encoder", "transformer.time_mlp", "transformer.layers", "table"),
        GradientStatistics(),
        NoiseLevelLoss(num_bins=2),
        ActionSensitivity(every_n_steps=1, layers="transformer.layers"),
        FreezeBackboneFirst(["transformer"], unfreeze_at_step=2, name="someones"),
        ThroughputMonitor(),
        DriftMonitor(),
        loaders=(moving_spots(), moving_spots(4)),
        limit_val_batches=1.0,
        max_epochs=1,
        log_every_n_steps=1,
        gradient_clip_val=0.1,
    )
    elsewhere = {"drift", "throughput"}  # need videos, a prediction or a known device
    for group, charts in DEFAULT_LAYOUT.items():
        for chart, tags in charts.items():
            for tag in tags:
                matched = [name for name in shown if re.match(tag, name)]
                assert matched or tag.split("/")[0] in elsewhere, f"{group}: {chart}: {tag}"
    assert [name for name in shown if re.match("throughput/train/steps_per_second$", name)]
    drifts = DEFAULT_LAYOUT["When in the video"]
    assert all(
        any(re.match(tag, f"drift/{figure}/end") for tags in drifts.values() for tag in tags)
        for figure in ("brightness", "contrast", "high_frequency", "block_seam")
    )


@pytest.mark.parametrize("layout", [{"Losses": {}}, {"Losses": {"training": []}}])
def test_empty_groups_and_charts_are_refused(layout: Any) -> None:
    with pytest.raises(ValueError, match="every group must have a chart and every chart a tag, got 'Losses'"):
        TensorBoardLayout(layout)
