"""Figures of one way of predicting videos, which `ObedienceTest` compares with others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lightning_action.batch import num_pixel_frames
from lightning_action.evaluation.metrics.action_following import ActionFollowing, hold_last_found
from lightning_action.evaluation.metrics.bootstrap import intervals
from lightning_action.evaluation.metrics.counterfactuals import CounterfactualDivergence, CrossSwap
from lightning_action.evaluation.metrics.divergence_onset import WINDOW, DivergenceOnset
from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric
from lightning_action.evaluation.metrics.flow import FlowError
from lightning_action.evaluation.metrics.inverse_dynamics_accuracy import InverseDynamicsAccuracy
from lightning_action.evaluation.metrics.inverse_dynamics_model import InverseDynamicsModel, classes_of
from lightning_action.evaluation.metrics.loss_gap import OTHER_ACTIONS, FrameLosses, LossGap
from lightning_action.evaluation.metrics.motion import MotionFloor
from lightning_action.evaluation.metrics.read_actions import ActionsReadBack
from lightning_action.evaluation.metrics.smoothness import BlockSeams
from lightning_action.evaluation.metrics.video_quality import DeltaPsnr, VideoQuality
from lightning_action.evaluation.report.report import Report
from lightning_action.generator.causality import BlockCausality

CURVES = ("psnr_db", "ssim", "psnr_moving_db", "position_error_px")
# Videos of a batch whose flow is measured, where nobody knows positions: it takes longer than all else.
_NUM_FLOWS = 4
# Figures of the counterfactuals that need a true video under the other actions.
_OF_OTHER_TRUTH = {"counterfactual_divergence", "counterfactual_ratio", "true_difference"}


@dataclass(frozen=True)
class Seen:
    """Videos, and where their object is.

    Args:
        video: Videos, `[B, T, 3, H, W]` in [0, 1].
        positions: Positions of the object in pixels, `[B, T, 2]`; None where nobody knows them.
        found: True if it is there, `[B, T]` bool; None says everywhere.
    """

    video: Tensor
    positions: Tensor | None = None
    found: Tensor | None = None

    @property
    def path(self) -> Tensor | None:
        """Positions, in which the last place where the object was seen stands for those where it is missing."""
        if self.positions is None or self.found is None:
            return self.positions
        return hold_last_found(self.positions, self.found)

    def unknown_where(self, samples: Tensor) -> Seen:
        """Put NaN in place of the videos and positions of some samples, `[B]` bool."""
        if not bool(samples.any()):
            return self
        positions = None if self.positions is None else _hidden(self.positions, samples)
        return Seen(_hidden(self.video, samples), positions, self.found)


class Evaluator(nn.Module):
    """Gathers the figures of one way of predicting videos, over batches and ranks.

    Genie's delta PSNR is taken at the last pixel frame of the first generated latent frame, which is its t = 4.

    Args:
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        num_initial_frames: Number of pixel frames that were given, not generated.
        causality: Blocks in which the videos were generated.
        inverse_dynamics: Model that reads actions off videos; None reads none.
        probes: Further metrics, which somebody else updates; None has none.
    """

    def __init__(
        self,
        temporal_compression_ratio: int,
        num_initial_frames: int,
        causality: BlockCausality = BlockCausality(),
        inverse_dynamics: InverseDynamicsModel | None = None,
        probes: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.num_initial_frames = num_initial_frames
        self.following = ActionFollowing(temporal_compression_ratio, num_initial_frames)
        self.onset = DivergenceOnset()
        self.quality = VideoQuality(num_initial_frames)
        self.delta_psnr = DeltaPsnr(num_initial_frames - 1 + temporal_compression_ratio, num_initial_frames)
        self.counterfactual = CounterfactualDivergence(num_initial_frames)
        self.knows_other_truth = True
        self.cross_swap = CrossSwap()
        self.motion = MotionFloor()
        self.seams = _seams(temporal_compression_ratio, num_initial_frames, causality)
        self.losses = nn.ModuleList(LossGap(kind) for kind in OTHER_ACTIONS)
        self.flow = FlowError(num_initial_frames)
        self.read_back = self.read_accuracy = None
        if inverse_dynamics is not None:
            self.read_back = ActionsReadBack(
                inverse_dynamics.columns, temporal_compression_ratio, inverse_dynamics.rows_per_step
            )
            self.read_accuracy = InverseDynamicsAccuracy(inverse_dynamics.num_classes)
        self.probes = probes

    def update_videos(
        self, own: Seen, other: Seen | None, truth: Seen, truth_other: Seen | None, sample_id: Tensor
    ) -> None:
        """Compare what was generated with what is true.

        Args:
            own: Videos generated under the samples' own actions.
            other: Videos generated from the same starts under other actions, with the same noise; None where there are
                none.
            truth: True videos under the own actions.
            truth_other: True videos under the other actions; None where no simulator knows them.
            sample_id: Whole numbers that name the samples, `[B]`.
        """
        self.quality.update(own.video, truth.video)
        self.motion.update(own.video, truth.video, sample_id)
        if self.seams is not None:
            self.seams.update(own.video)
        if other is not None:
            self.delta_psnr.update(truth.video, own.video, other.video)
            self.knows_other_truth = truth_other is not None
            video_other = None if truth_other is None else truth_other.video
            self.counterfactual.update(own.video, other.video, truth.video, video_other)
        if own.positions is not None and own.found is not None and truth.positions is not None:
            self.following.update(own.positions, truth.positions, own.found)
        if own.positions is None:
            few = slice(_NUM_FLOWS)
            self.flow.update_named(sample_id[few], own.video[few], truth.video[few])
        generated = slice(self.num_initial_frames, None)
        if own.path is not None and truth.path is not None and truth.path[:, generated].shape[1] >= WINDOW:
            self.onset.update((own.path - truth.path)[:, generated].norm(dim=-1))
        owner = None if truth_other is None else truth_other.path
        if other is not None and other.path is not None and owner is not None and truth.path is not None:
            paths = (other.path, owner, truth.path)
            self.cross_swap.update(*(path[:, self.num_initial_frames - 1 :] for path in paths))

    def update_losses(self, losses: Mapping[str, FrameLosses], same: Tensor | None = None) -> None:
        """Compare matched losses.

        Args:
            losses: Losses named `true` and by the kinds of other actions.
            same: Samples whose swapped actions are their own, `[B]` bool, which tell nothing; None says none.
        """
        for gap in self._loss_gaps:
            if gap.actions in losses:
                true, other = losses["true"], losses[gap.actions]
                under_other, moving = other.per_frame, other.per_frame_moving
                if same is not None and gap.actions == "swapped":
                    under_other = _hidden(under_other, same)
                    moving = None if moving is None else _hidden(moving, same)
                gap.update(true.per_frame, under_other, true.timestep, true.per_frame_moving, moving)

    def update_read_actions(self, sample_id: Tensor, rows: Mapping[str, Tensor]) -> None:
        """Compare actions that were read off videos with those that were given, behind the frames that were given.

        Args:
            sample_id: Names of the samples that have actions, `[B]`.
            rows: Rows between all frames, named as `ActionsReadBack` does.
        """
        if self.read_back is None or self.read_accuracy is None:
            return
        start = (self.num_initial_frames - 1) * self.read_back.rows_per_frame
        rows = {name: each[:, start:] for name, each in rows.items()}
        self.read_back.update_named(sample_id, **rows)
        named = (rows[name] for name in ("read", "read_real", "action"))
        self.read_accuracy.update_named(sample_id, *(classes_of(self.read_back.columns, each) for each in named))

    def compute(self) -> Report:
        """Compute the figures, by the names of the report."""
        return self._flat({name: value for metric in self._metrics for name, value in metric.compute().items()})

    def intervals(self) -> Report:
        """Compute what chance alone makes of the figures, `[low, high]` of 95 % of what other episodes would give."""
        found = {name: list(each) for metric in self._metrics for name, each in intervals(metric).items()}
        return self._flat(found)

    def per_episode(self) -> dict[str, list[float]]:
        """Give the figures of each episode, in the order of `sample_ids`; NaN where one was not measured."""
        names = self.sample_ids()
        found = {name: each for metric in self._metrics for name, each in metric.per_episode_of(names).items()}
        return self._flat(found)

    def sample_ids(self) -> list[int]:
        """Name the episodes."""
        return self.motion.episodes()["sample_id"].tolist()

    def curves(self) -> dict[str, list[float]]:
        """Give the mean of each generated frame, of the quantities `CURVES` that are known."""
        found = self.quality.curves()
        if self.following.update_called:
            found |= self.following.curves()
        return {name: found[name].tolist() for name in CURVES if name in found}

    def loss_by_noise_level(self) -> dict[str, list[list[float]]]:
        """Give lower and upper border, gap and win rate of each range of noise levels, by the kind of actions."""
        return {gap.actions: gap.by_noise_level() for gap in self._loss_gaps if gap.update_called}

    def teacher_forced(self) -> set[str]:
        """Name the figures that were not taken from rollouts."""
        return set(self._flat(dict.fromkeys(name for gap in self._loss_gaps for name in gap.names)))

    @property
    def _metrics(self) -> list[EpisodeMetric]:
        """Metrics that have something to tell."""
        metrics = [metric for metric in self.modules() if isinstance(metric, EpisodeMetric)]
        return [metric for metric in metrics if metric.update_called]

    @property
    def _loss_gaps(self) -> list[LossGap]:
        return [metric for metric in self.losses if isinstance(metric, LossGap)]

    def _flat(self, figures: dict[str, Any]) -> dict[str, Any]:
        """Leave out what `loss_by_noise_level` shows, and what only a simulator could tell."""
        unknown = set() if self.knows_other_truth else _OF_OTHER_TRUTH
        shown = tuple(suffix for gap in self._loss_gaps for suffix in gap.ranges)
        return {name: value for name, value in figures.items() if name not in unknown and not name.endswith(shown)}


def _hidden(values: Tensor, samples: Tensor) -> Tensor:
    """Put NaN in place of some samples, `[B]` bool, of values `[B, ...]`."""
    return values.masked_fill(samples.to(values.device).view(-1, *[1] * (values.ndim - 1)), math.nan)


def _seams(temporal_compression_ratio: int, num_initial_frames: int, causality: BlockCausality) -> BlockSeams | None:
    """Measure seams from the first block on that was generated whole; None where blocks are single frames."""
    start = 0
    while num_pixel_frames(start, temporal_compression_ratio) < num_initial_frames:
        start = causality.block_after(start).stop
    frames_per_block = temporal_compression_ratio * causality.num_frame_per_block
    given = num_pixel_frames(start, temporal_compression_ratio)
    return BlockSeams(frames_per_block, given) if frames_per_block > 1 else None
