"""Test of whether a model obeys: rollouts and matched losses under true, other and no actions, put into one report.

Rollouts are fully autoregressive: every past latent frame after the initial ones is generated.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import (
    Batch,
    acting,
    bytes_of_unit_range,
    num_pixel_frames,
    other_actions,
    samples_without_action,
    without_actions,
)
from lightning_action.evaluation.evaluator import Evaluator, Seen
from lightning_action.evaluation.known_state import ReadPositions, Simulate
from lightning_action.evaluation.metrics.inverse_dynamics_model import InverseDynamicsModel, rows_between_frames
from lightning_action.evaluation.metrics.loss_gap import OTHER_ACTIONS, FrameLosses
from lightning_action.evaluation.probes import NUM_PICTURES, Generate, Probes
from lightning_action.evaluation.report.figures import is_number
from lightning_action.evaluation.report.report import Report
from lightning_action.evaluation.report.verdict import Thresholds, judge
from lightning_action.generator.causality import BlockCausality

BASELINES = ("copy_first_frame", "ignore_actions")
MODEL = "model"


@dataclass(frozen=True)
class Truth:
    """Truth about a batch, which its videos should show.

    Args:
        own: True videos under the samples' own actions.
        other: True videos under the other actions; None where no simulator knows them.
        read: Actions that were read off the true videos; None where none are read.
    """

    own: Seen
    other: Seen | None
    read: Tensor | None


class ObedienceTest:
    """Runs a model under true, other and no actions, beside the baselines, and makes the report.

    Args:
        generate: Model, see `Generate`.
        true_video: Function from a batch to its own video, `[B, T, 3, H, W]` in [0, 1]; None where it has none.
        schema: Meaning of the actions.
        num_initial_latents: Number of latent frames that were given; with none, motion is measured from the generated
            frame 0.
        read_positions: Reader of positions; None where the state is unknown.
        simulate: Player of a batch's actions, whatever they are; None where nobody can play it again.
        causality: Blocks in which the videos are generated.
        inverse_dynamics: Model that reads actions off videos; None reads none.

    Raises:
        ValueError: The inverse-dynamics model reads other actions.
    """

    def __init__(
        self,
        generate: Generate,
        true_video: Callable[[Batch], Tensor | None],
        schema: ActionSchema,
        num_initial_latents: int,
        read_positions: ReadPositions | None = None,
        simulate: Simulate | None = None,
        causality: BlockCausality = BlockCausality(),
        inverse_dynamics: InverseDynamicsModel | None = None,
    ) -> None:
        if inverse_dynamics is not None:
            inverse_dynamics.require_reads(schema)
        self._schema, self._inverse_dynamics = schema, inverse_dynamics
        given, ratio = max(num_initial_latents, 1), schema.temporal_compression_ratio
        self._generate = generate
        self._true_video = true_video
        self._read_positions = read_positions
        # Without a given frame a rollout has a start of its own, which no simulator knows.
        self._simulate = simulate if num_initial_latents else None
        self._num_initial_frames = num_pixel_frames(given, ratio)
        self._num_initial_rows = schema.num_rows(given) if num_initial_latents else 0
        self._predict_seconds = 0.0
        self._num_frames = 0
        self._pictures: dict[str, Tensor] = {}
        initial = (self._num_initial_frames, self._num_initial_rows)
        self._probes = Probes(self._timed, self._own_video, read_positions, self._simulate, schema, *initial)
        settings = (ratio, self._num_initial_frames, causality, inverse_dynamics)
        baselines = {name: Evaluator(*settings) for name in BASELINES}
        self._evaluators = {MODEL: Evaluator(*settings, self._probes), **baselines}

    @torch.no_grad()
    def add_model(self, batch: Batch, losses: Mapping[str, FrameLosses]) -> Truth:
        """Add two rollouts of a batch, under its own and under other actions and with the same noise.

        Args:
            batch: Videos, `[B, T, 3, H, W]` in [-1, 1], with actions.
            losses: Matched losses, named `true` and by the kinds of other actions; without any, none are compared.

        Returns:
            Truth that the videos should show, for `add_baselines`.

        Raises:
            ValueError: None of the frames is generated.
        """
        own, other = self._true(batch), other_actions(batch, self._num_initial_rows)
        read = None if self._inverse_dynamics is None else _read(self._inverse_dynamics, batch, own.video)
        truth = Truth(own, self._simulated(other), read)
        video, video_other = self._timed(batch), self._timed(other)
        self._num_frames = video.shape[1]
        self._show(truth=own.video, model=video, other=video_other)
        evaluator = self._evaluators[MODEL].to(video.device)
        seen, seen_other = self._seen(video, batch), self._seen(video_other, batch)
        same = (other["action"] == batch["action"]).flatten(1).all(dim=1)
        if (idle := samples_without_action(batch)) is not None:
            same |= idle.to(same.device)
        true_other = None if truth.other is None else truth.other.unknown_where(same)
        evaluator.update_videos(seen, seen_other.unknown_where(same), own, true_other, batch["sample_id"])
        evaluator.update_losses(losses, same)
        self._update_read_actions(evaluator, batch, truth, video, video_other)
        return truth

    @torch.no_grad()
    def add_own(self, batch: Batch) -> None:
        """Add a rollout of a batch under its own actions alone, of which `compute` tells; see `add_model`."""
        own, video = self._true(batch), self._timed(batch)
        evaluator = self._evaluators[MODEL].to(video.device)
        evaluator.update_videos(self._seen(video, batch), None, own, None, batch["sample_id"])

    @torch.no_grad()
    def add_baselines(self, batch: Batch, losses: Mapping[str, FrameLosses], truth: Truth) -> None:
        """Add what a model scores that copies the last given frame, and one that ignores actions, by a third rollout.

        Args:
            batch: The batch that was given to `add_model`.
            losses: Matched losses named `null`.
            truth: Truth that `add_model` returned for that batch.
        """
        null = self._timed(without_actions(batch))
        self._show(null=null)
        videos = (copy_of_first_frames(truth.own.video, self._num_initial_frames), null)
        for name, video in zip(BASELINES, videos, strict=True):
            evaluator, seen = self._evaluators[name].to(video.device), self._seen(video, batch)
            evaluator.update_videos(seen, seen, truth.own, truth.other, batch["sample_id"])
            evaluator.update_losses(dict.fromkeys(("true", *OTHER_ACTIONS), losses["null"]))
            self._update_read_actions(evaluator, batch, truth, video, video)

    @torch.no_grad()
    def add_probes(self, batch: Batch) -> None:
        """Add further rollouts of a few samples of a batch, see `Probes`."""
        self._probes.add(batch)

    def compute(self, name: str) -> Report:
        """Compute the figures of `model` or of a baseline so far."""
        return self._evaluators[name].compute()

    def report(self) -> Report:
        """Compute the figures of the model and of the baselines, and a verdict; every rank must call it."""
        return {
            **compose(self._evaluators),
            "predict_seconds": self._predict_seconds,
            "num_frames": self._num_frames,
            "num_initial_frames": self._num_initial_frames,
            "rollout": "fully autoregressive",
        }

    def pictures(self) -> dict[str, Tensor]:
        """Give videos of a few samples of this rank, `[n, T, 3, H, W]` uint8 on the CPU.

        They are `truth`, `model`, `other` (under another sample's actions) and `null`, and where probes ran, for
        samples of their own, `held` and an action.
        """
        return {**self._pictures, **self._probes.pictures}

    def _timed(self, batch: Batch, scale: float | None = None, draw: int = 0) -> Tensor:
        # Not `generation.clock.Clock`: measuring stands beside generating, and knows no device. None is at work when
        # `generate` ends, for whether its video is finite was waited for.
        started = time.monotonic()
        video = self._generate(batch, scale, draw)
        self._predict_seconds += time.monotonic() - started
        return video

    def _true(self, batch: Batch) -> Seen:
        return Seen(self._own_video(batch), batch.get("position"))

    def _own_video(self, batch: Batch) -> Tensor:
        truth = self._true_video(batch)
        if truth is None:
            raise ValueError("nothing to measure by: the batch has no `video` [B, T, 3, H, W]")
        if truth.shape[1] <= self._num_initial_frames:
            raise ValueError(
                f"nothing to measure: of {truth.shape[1]} frames {self._num_initial_frames} are given, so none is "
                "generated; use longer videos or fewer num_initial_latents"
            )
        return truth

    def _seen(self, video: Tensor, batch: Batch) -> Seen:
        if self._read_positions is None or "position" not in batch:
            return Seen(video)
        positions, found = self._read_positions(video, batch)
        return Seen(video, positions.to(batch["position"]), found.to(batch["position"].device))

    def _update_read_actions(
        self, evaluator: Evaluator, batch: Batch, truth: Truth, video: Tensor, video_other: Tensor
    ) -> None:
        """Compare the actions that are read off what was generated with those that were given."""
        if self._inverse_dynamics is None or truth.read is None:
            return
        read = _read(self._inverse_dynamics, batch, video)
        read_other = read if video_other is video else _read(self._inverse_dynamics, batch, video_other)
        other = other_actions(batch, self._num_initial_rows)
        given = {"action": batch["action"], "action_other": other["action"]}
        acts = acting(batch)
        rows = {"read": read, "read_real": truth.read, "read_other": read_other}
        rows |= {name: rows_between_frames(each[acts].float(), self._schema) for name, each in given.items()}
        evaluator.update_read_actions(batch["sample_id"][acts], rows)

    def _simulated(self, batch: Batch) -> Seen | None:
        if self._simulate is None:
            return None
        video, positions = self._simulate(batch)
        device = batch["action"].device
        return Seen(video.to(device), positions.to(device))

    def _show(self, **videos: Tensor) -> None:
        for name, video in videos.items():
            if name not in self._pictures:
                self._pictures[name] = bytes_of_unit_range(video[:NUM_PICTURES]).cpu()


def compose(evaluators: Mapping[str, Evaluator]) -> Report:
    """Put figures, intervals, curves and a verdict into one report; every rank must call it.

    Args:
        evaluators: Evaluators of `model`, and of the baselines by their names.
    """
    model, limits = evaluators[MODEL], Thresholds()
    sample_ids = model.sample_ids()
    figures = {"episodes": float(len(sample_ids)), **model.compute()}
    drawn = model.intervals()
    # Draws may define what all episodes together do not.
    spread = {name: bounds if is_number(figures[name]) else [math.nan] * 2 for name, bounds in drawn.items()}
    verdict = judge({**figures, "intervals": spread}, limits)
    teacher_forced = model.teacher_forced()
    curves = {name: evaluator.curves() for name, evaluator in evaluators.items()}
    baselines = {name: evaluator for name, evaluator in evaluators.items() if name != MODEL}
    return {
        **figures,
        "verdict": {"label": verdict.label, "reasons": list(verdict.reasons), "thresholds": asdict(limits)},
        "intervals": spread,
        "protocol": {
            "teacher_forced": [name for name in figures if name in teacher_forced],
            "autoregressive": [name for name in figures if name not in teacher_forced],
        },
        "sample_ids": sample_ids,
        "static_samples": model.motion.static_samples(),
        "loss_by_noise_level": model.loss_by_noise_level(),
        "curves": {quantity: {name: each[quantity] for name, each in curves.items()} for quantity in curves[MODEL]},
        "per_episode": model.per_episode(),
        "baselines_per_episode": {name: evaluator.per_episode() for name, evaluator in baselines.items()},
        "baselines": {name: evaluator.compute() for name, evaluator in baselines.items()},
    }


def _read(model: InverseDynamicsModel, batch: Batch, video: Tensor) -> Tensor:
    """Read the actions off the videos of the samples that have actions."""
    return model.to(video.device).read(video[acting(batch)])


def copy_of_first_frames(truth: Tensor, num_initial_frames: int) -> Tensor:
    """Predict that the last given frame stays for ever."""
    index = torch.arange(truth.shape[1], device=truth.device).clamp_max(num_initial_frames - 1)
    return truth[:, index]
