"""Does the model obey? Rollouts and matched losses under true, other and no actions, put into one report.

Rollouts are fully autoregressive: every past latent frame after the initial ones is generated.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_action.batch import Batch, other_actions, without_actions
from lightning_action.files import replacing
from lightning_action.metrics.action_following import ActionFollowing, psnr

Report = dict[str, Any]
BASELINES = ("copy_first_frame", "ignore_actions")


@runtime_checkable
class StateReader(Protocol):
    """A DataModule that knows where its object is: simulators do, recorded data does not."""

    def read_positions(self, video: Tensor, batch: Batch, split: str) -> tuple[Tensor, Tensor]:
        """Positions in pixels `[B, T, 2]` of a video in [-1, 1], and whether the object is there, `[B, T]` bool."""
        ...


class Evaluator(nn.Module):
    """Gathers the figures of one way of predicting videos, over batches and ranks.

    Args:
        temporal_compression_ratio: pixel frames of a latent frame.
        num_initial_frames: pixel frames that were given, not generated.
    """

    def __init__(self, temporal_compression_ratio: int, num_initial_frames: int) -> None:
        super().__init__()
        self.first_block_end = num_initial_frames - 1 + temporal_compression_ratio
        self.num_initial_frames = num_initial_frames
        self.following = ActionFollowing(temporal_compression_ratio, num_initial_frames)
        self.psnr = MeanMetric()
        self.delta_psnr = MeanMetric()
        self.delta_psnr_all_frames = MeanMetric()
        self.wins = MeanMetric()
        self.relative_gap = MeanMetric()

    def update_videos(self, truth: Tensor, video: Tensor, video_other: Tensor) -> None:
        """Compare videos `[B, T, 3, H, W]` in [0, 1]: generated under the true and under other actions, same noise."""
        quality = psnr(video, truth)[:, self.num_initial_frames :]
        delta = quality - psnr(video_other, truth)[:, self.num_initial_frames :]
        self.psnr.update(quality)
        self.delta_psnr_all_frames.update(delta)
        self.delta_psnr.update(delta[:, self.first_block_end - self.num_initial_frames])

    def update_losses(self, true: Tensor, other: Tensor) -> None:
        """Compare matched losses `[B]`; a tie counts half."""
        self.wins.update(wins(true, other))
        self.relative_gap.update((other - true) / true)

    def compute(self) -> Report:
        """The figures, by the names of the report."""
        report: Report = {
            "delta_psnr_db": self.delta_psnr.compute().item(),
            "delta_psnr_all_frames_db": self.delta_psnr_all_frames.compute().item(),
            "psnr_db": self.psnr.compute().item(),
            "shuffle_win_rate": self.wins.compute().item(),
            "shuffle_relative_gap": self.relative_gap.compute().item(),
        }
        if self.following.predicted:
            report.update(self.following.compute())
        return report


class ObedienceTest:
    """Runs a model under true, other and no actions, beside the baselines, and makes the report.

    Args:
        generate: a batch to its video, `[B, T, 3, H, W]` in [0, 1].
        matched_losses: a batch to its losses `[B]` named `true`, `other` and `null`.
        read_positions: (video in [-1, 1], batch) to positions `[B, T, 2]` and whether they were found `[B, T]`; None
            where the state is unknown.
        temporal_compression_ratio: pixel frames of a latent frame.
        num_initial_latents: latent frames that were given; with none, motion is measured from the generated frame 0.
    """

    def __init__(
        self,
        generate: Callable[[Batch], Tensor],
        matched_losses: Callable[[Batch], dict[str, Tensor]],
        read_positions: Callable[[Tensor, Batch], tuple[Tensor, Tensor]] | None,
        temporal_compression_ratio: int,
        num_initial_latents: int,
    ) -> None:
        self._generate = generate
        self._matched_losses = matched_losses
        self._read_positions = read_positions
        self._num_initial_frames = 1 + temporal_compression_ratio * max(num_initial_latents - 1, 0)
        self._predict_seconds = 0.0
        self._num_frames = 0
        self._evaluators = {
            name: Evaluator(temporal_compression_ratio, self._num_initial_frames) for name in ("model", *BASELINES)
        }

    @torch.no_grad()
    def step(self, batch: Batch) -> None:
        """Add a batch: three rollouts (true, other, no actions; the same noise) and the matched losses."""
        truth = batch["video"] * 0.5 + 0.5
        if truth.shape[1] <= self._num_initial_frames:
            raise ValueError(
                f"nothing to measure: of {truth.shape[1]} frames {self._num_initial_frames} are given, so none is "
                "generated; use longer videos or fewer num_initial_latents"
            )
        started = time.monotonic()
        true, other = self._generate(batch), self._generate(other_actions(batch))
        null = self._generate(without_actions(batch))
        self._predict_seconds += time.monotonic() - started
        self._num_frames = true.shape[1]
        copy = copy_of_first_frames(truth, self._num_initial_frames)
        losses = self._matched_losses(batch)
        self._add("model", batch, truth, true, other, losses["true"], losses["other"])
        self._add("copy_first_frame", batch, truth, copy, copy, losses["null"], losses["null"])
        self._add("ignore_actions", batch, truth, null, null, losses["null"], losses["null"])

    def compute(self, name: str) -> Report:
        """The figures of `model` or of a baseline so far."""
        return self._evaluators[name].compute()

    def report(self) -> Report:
        """The model's figures, with those of the baselines under `baselines`."""
        return {
            **self.compute("model"),
            "predict_seconds": self._predict_seconds,
            "num_frames": self._num_frames,
            "num_initial_frames": self._num_initial_frames,
            "rollout": "fully autoregressive",
            "baselines": {name: self.compute(name) for name in BASELINES},
        }

    def _add(
        self,
        name: str,
        batch: Batch,
        truth: Tensor,
        video: Tensor,
        video_other: Tensor,
        loss: Tensor,
        loss_other: Tensor,
    ) -> None:
        evaluator = self._evaluators[name].to(video.device)
        evaluator.update_videos(truth, video, video_other)
        evaluator.update_losses(loss, loss_other)
        if self._read_positions is not None:
            positions, found = self._read_positions(video * 2 - 1, batch)
            target = batch["position"]
            evaluator.following.update(positions.to(target), target, found.to(target.device))


def wins(true: Tensor, other: Tensor) -> Tensor:
    """1 where the loss under the true actions is the lower one, 0.5 at a tie, else 0; `[B]`."""
    return (true < other).float() + 0.5 * (true == other).float()


def copy_of_first_frames(truth: Tensor, num_initial_frames: int) -> Tensor:
    """The prediction that the last given frame stays for ever."""
    index = torch.arange(truth.shape[1], device=truth.device).clamp_max(num_initial_frames - 1)
    return truth[:, index]


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    """Write JSON in one step: the file is either the old one or the whole new one.

    A figure that is undefined, such as the sign accuracy of videos in which nothing should move, is null.
    """
    text = json.dumps(_null_where_undefined(report), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


_ROWS: tuple[tuple[str, str], ...] = (
    ("sign_accuracy", "sign accuracy (chance 0.5)"),
    ("gain_x", "gain x (ideal 1)"),
    ("gain_y", "gain y (ideal 1)"),
    ("r2_x", "R2 x"),
    ("r2_y", "R2 y"),
    ("lag_frames", "lag in pixel frames (ideal 0)"),
    ("ade_px", "position error in px"),
    ("missing_rate", "object missing"),
    ("delta_psnr_db", "PSNR true - other actions, dB"),
    ("shuffle_win_rate", "shuffle win rate (chance 0.5)"),
)


def format_table(report: Report) -> str:
    """The report as a table: the model beside the baselines."""
    columns: dict[str, Report] = {"model": report, **report["baselines"]}
    lines = [f"{'':32}" + "".join(f"{name:>18}" for name in columns)]
    for key, title in _ROWS:
        if key in report:
            lines.append(f"{title:32}" + "".join(f"{_cell(values[key]):>18}" for values in columns.values()))
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3f}"


def _null_where_undefined(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, Mapping):
        return {key: _null_where_undefined(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
