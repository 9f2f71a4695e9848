"""Does the model obey? Rollouts and matched losses under true, other and no actions, put into one report.

Rollouts are fully autoregressive: every past latent frame after the initial ones is generated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lightning_action.batch import (
    Batch,
    from_unit_range,
    num_pixel_frames,
    other_actions,
    without_actions,
)
from lightning_action.evaluation.action_following import ActionFollowing
from lightning_action.evaluation.bootstrap import intervals
from lightning_action.evaluation.episode_metric import EpisodeMetric
from lightning_action.evaluation.loss_gap import wins
from lightning_action.evaluation.report import Report
from lightning_action.evaluation.verdict import Thresholds, judge
from lightning_action.evaluation.video_quality import DeltaPsnr

BASELINES = ("copy_first_frame", "ignore_actions")


@runtime_checkable
class StateReader(Protocol):
    """A DataModule that knows where its object is: simulators do, recorded data does not."""

    def read_positions(self, video: Tensor, batch: Batch, split: str) -> tuple[Tensor, Tensor]:
        """Read positions in pixels `[B, T, 2]` off a video in [-1, 1], and whether the object is there, `[B, T]`."""
        ...


ReadPositions = Callable[[Tensor, Batch], tuple[Tensor, Tensor]]


def position_reader(datamodule: object, split: str) -> ReadPositions | None:
    """Return what reads positions off the videos of a split; None for data whose state nobody knows."""
    return partial(datamodule.read_positions, split=split) if isinstance(datamodule, StateReader) else None


class MatchedLosses(EpisodeMetric):
    """Losses under true and other actions, matched in sample, noise and timestep: win rate and relative gap."""

    def __init__(self) -> None:
        super().__init__(["shuffle_win_rate", "shuffle_relative_gap"])

    def update(self, true: Tensor, other: Tensor) -> None:
        """Add samples, whose losses are `[B]`."""
        self._add(shuffle_win_rate=wins(true, other), shuffle_relative_gap=(other - true) / true)


class Evaluator(nn.Module):
    """Gathers the figures of one way of predicting videos, over batches and ranks.

    Genie's delta PSNR is taken at the last pixel frame of the first generated latent frame, which is its t = 4.

    Args:
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        num_initial_frames: Number of pixel frames that were given, not generated.
    """

    def __init__(self, temporal_compression_ratio: int, num_initial_frames: int) -> None:
        super().__init__()
        self.following = ActionFollowing(temporal_compression_ratio, num_initial_frames)
        self.delta_psnr = DeltaPsnr(num_initial_frames - 1 + temporal_compression_ratio, num_initial_frames)
        self.matched = MatchedLosses()

    def update_videos(self, truth: Tensor, video: Tensor, video_other: Tensor) -> None:
        """Compare videos `[B, T, 3, H, W]` in [0, 1]: generated under the true and under other actions, same noise."""
        self.delta_psnr.update(truth, video, video_other)

    def update_losses(self, true: Tensor, other: Tensor) -> None:
        """Compare matched losses `[B]`; a tie counts half."""
        self.matched.update(true, other)

    def compute(self) -> Report:
        """Compute the figures, by the names of the report."""
        return {name: value for metric in self._metrics for name, value in metric.compute().items()}

    def intervals(self) -> Report:
        """Compute what chance alone makes of the figures, `[low, high]` of 95 % of what other episodes would give."""
        return {name: list(each) for metric in self._metrics for name, each in intervals(metric).items()}

    @property
    def _metrics(self) -> list[EpisodeMetric]:
        """Those that have something to tell."""
        return [self.delta_psnr, self.matched, *([self.following] if self.following.predicted else [])]


class ObedienceTest:
    """Runs a model under true, other and no actions, beside the baselines, and makes the report.

    Args:
        generate: Function from a batch to the video that a model makes of it, `[B, T, 3, H, W]` in [0, 1].
        true_video: Function from a batch to its own video, `[B, T, 3, H, W]` in [0, 1]; None where it has none.
        read_positions: Function from (video in [-1, 1], batch) to positions `[B, T, 2]` and whether they were found
            `[B, T]`; None where the state is unknown.
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        num_initial_latents: Number of latent frames that were given; with none, motion is measured from the generated
            frame 0.
    """

    def __init__(
        self,
        generate: Callable[[Batch], Tensor],
        true_video: Callable[[Batch], Tensor | None],
        read_positions: ReadPositions | None,
        temporal_compression_ratio: int,
        num_initial_latents: int,
    ) -> None:
        self._generate = generate
        self._true_video = true_video
        self._read_positions = read_positions
        self._num_initial_frames = num_pixel_frames(max(num_initial_latents, 1), temporal_compression_ratio)
        self._predict_seconds = 0.0
        self._num_frames = 0
        self._evaluators = {
            name: Evaluator(temporal_compression_ratio, self._num_initial_frames) for name in ("model", *BASELINES)
        }

    @torch.no_grad()
    def add_model(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Add two rollouts of a batch, under its own and under other actions and with the same noise.

        Args:
            batch: Videos, `[B, T, 3, H, W]` in [-1, 1], with actions.
            losses: Matched losses `[B]` named `true` and `other`.

        Raises:
            ValueError: None of the frames is generated.
        """
        truth = self._truth(batch)
        started = time.monotonic()
        true, other = self._generate(batch), self._generate(other_actions(batch))
        self._predict_seconds += time.monotonic() - started
        self._num_frames = true.shape[1]
        self._add("model", batch, truth, true, other, losses["true"], losses["other"])

    @torch.no_grad()
    def add_baselines(self, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Add what a model scores that copies the last given frame, and one that ignores actions, by a third rollout.

        Args:
            batch: The batch that was given to `add_model`.
            losses: Matched losses `[B]` named `null`.
        """
        truth = self._truth(batch)
        started = time.monotonic()
        null = self._generate(without_actions(batch))
        self._predict_seconds += time.monotonic() - started
        copy = copy_of_first_frames(truth, self._num_initial_frames)
        self._add("copy_first_frame", batch, truth, copy, copy, losses["null"], losses["null"])
        self._add("ignore_actions", batch, truth, null, null, losses["null"], losses["null"])

    def _truth(self, batch: Batch) -> Tensor:
        truth = self._true_video(batch)
        if truth is None:
            raise ValueError("nothing to measure by: the batch has no `video` [B, T, 3, H, W]")
        if truth.shape[1] <= self._num_initial_frames:
            raise ValueError(
                f"nothing to measure: of {truth.shape[1]} frames {self._num_initial_frames} are given, so none is "
                "generated; use longer videos or fewer num_initial_latents"
            )
        return truth

    def compute(self, name: str) -> Report:
        """Compute the figures of `model` or of a baseline so far."""
        return self._evaluators[name].compute()

    def report(self) -> Report:
        """Compute the model's figures and a verdict on them, with the baselines' figures under `baselines`."""
        figures, limits = self.compute("model"), Thresholds()
        verdict = judge(figures, limits)
        return {
            **figures,
            "verdict": {"label": verdict.label, "reasons": list(verdict.reasons), "thresholds": asdict(limits)},
            "intervals": self._evaluators["model"].intervals(),
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
        if self._read_positions is not None and "position" in batch:
            positions, found = self._read_positions(from_unit_range(video), batch)
            target = batch["position"]
            evaluator.following.update(positions.to(target), target, found.to(target.device))


def copy_of_first_frames(truth: Tensor, num_initial_frames: int) -> Tensor:
    """Predict that the last given frame stays for ever."""
    index = torch.arange(truth.shape[1], device=truth.device).clamp_max(num_initial_frames - 1)
    return truth[:, index]
