"""Test of whether a model obeys that runs elsewhere: `ObedienceTest`'s report on videos that are there already."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_action.batch import bytes_of_unit_range
from lightning_action.evaluation.evaluator import Evaluator, Seen
from lightning_action.evaluation.metrics.inverse_dynamics_model import InverseDynamicsModel, rows_between_frames
from lightning_action.evaluation.metrics.video_quality import psnr
from lightning_action.evaluation.obedience import BASELINES, MODEL, compose, copy_of_first_frames
from lightning_action.evaluation.probes import NUM_PICTURES
from lightning_action.evaluation.report.report import Report


@dataclass(frozen=True)
class GivenEpisodes:
    """Videos that are there of some episodes; they are `[B, T, 3, H, W]` in [0, 1].

    Args:
        sample_id: Whole numbers that name the episodes, `[B]`.
        truth: True videos, and where the object is in them.
        own: Videos that a model made under the true actions.
        other: Videos of the model from the same starts under other actions; None where there are none.
        null: Videos of the model from the same starts without actions; None where there are none.
        truth_other: True videos under the other actions; None where nobody knows them.
        read_positions: Function from videos to positions `[B, T, 2]` and whether they were found `[B, T]`; None where
            nobody can tell.
        action: True action rows `[B, rows, columns]`, NaN where an episode has none; None where nobody knows them.
        action_other: The other action rows, of the same shape.
    """

    sample_id: Tensor
    truth: Seen
    own: Tensor
    other: Tensor | None = None
    null: Tensor | None = None
    truth_other: Seen | None = None
    read_positions: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    action: Tensor | None = None
    action_other: Tensor | None = None

    def see(self, video: Tensor) -> Seen:
        """Look for the object in videos of these episodes."""
        if self.read_positions is None or self.truth.positions is None:
            return Seen(video)
        positions, found = self.read_positions(video)
        return Seen(video, positions.to(self.truth.positions), found)


_COPY, _IGNORE = BASELINES
MIN_GIVEN_PSNR_DB = 15.0
"""PSNR that given frames still exceed after a codec."""


class GivenVideosTest:
    """Compares videos with the truth, beside a copy of the first frame and, if there are some, videos without actions.

    Losses are not known, for there is no model to ask. `unlike` has the episodes whose given frames are not the true
    ones, as where videos were put together wrongly: `MIN_GIVEN_PSNR_DB`.

    Args:
        temporal_compression_ratio: Number of pixel frames over which displacements are taken.
        num_initial_frames: Number of pixel frames that were given, not generated.
        inverse_dynamics: Model that reads actions off videos; None reads none.
    """

    def __init__(
        self,
        temporal_compression_ratio: int,
        num_initial_frames: int,
        inverse_dynamics: InverseDynamicsModel | None = None,
    ) -> None:
        self._sizes = temporal_compression_ratio, num_initial_frames
        self._inverse_dynamics = inverse_dynamics
        self._evaluators: dict[str, Evaluator] = {}
        self._pictures: dict[str, list[Tensor]] = {}
        self._num_frames = 0
        self.unlike: list[int] = []

    @torch.no_grad()
    def add(self, episodes: GivenEpisodes) -> None:
        """Add episodes, all of which have the same kinds of videos, of one length."""
        truth, own = episodes.truth, episodes.see(episodes.own)
        other, null = (None if video is None else episodes.see(video) for video in (episodes.other, episodes.null))
        copy = episodes.see(copy_of_first_frames(truth.video, self._sizes[1]))
        ways = {MODEL: (own, other), _COPY: (copy, copy), **({} if null is None else {_IGNORE: (null, null)})}
        self._num_frames = truth.video.shape[1]
        given = psnr(own.video[:, : self._sizes[1]], truth.video[:, : self._sizes[1]]).mean(dim=1)
        self.unlike += episodes.sample_id[given < MIN_GIVEN_PSNR_DB].tolist()
        for name, (under_own, under_other) in ways.items():
            evaluator = self._evaluators.setdefault(
                name, Evaluator(*self._sizes, inverse_dynamics=self._inverse_dynamics)
            )
            evaluator.update_videos(under_own, under_other, truth, episodes.truth_other, episodes.sample_id)
            if self._inverse_dynamics is not None and episodes.action is not None:
                self._update_read_actions(evaluator, self._inverse_dynamics, episodes, under_own, under_other)
        shown = {"truth": truth, MODEL: own, "other": other, "null": null}
        for name, seen in shown.items():
            if seen is not None:
                kept = self._pictures.setdefault(name, [])
                kept += bytes_of_unit_range(seen.video).cpu()[: NUM_PICTURES - len(kept)]

    def _update_read_actions(
        self, evaluator: Evaluator, model: InverseDynamicsModel, episodes: GivenEpisodes, own: Seen, other: Seen | None
    ) -> None:
        """Compare actions that are read off the videos with those that were given; NaN where there are no others."""
        assert episodes.action is not None
        acting = ~episodes.action.flatten(1).isnan().any(dim=1)
        given = rows_between_frames(episodes.action[acting].float(), model.schema)
        read, real = (model.read(seen.video[acting]) for seen in (own, episodes.truth))
        if given.shape != read.shape:
            raise ValueError(
                f"the inverse-dynamics model reads actions {list(read.shape)} (videos, rows, columns) between these "
                f"frames, and those given are {list(given.shape)}: give those of these videos"
            )
        read_other = action_other = torch.full_like(given, math.nan)
        if other is not None and episodes.action_other is not None:
            read_other = model.read(other.video[acting])
            action_other = rows_between_frames(episodes.action_other[acting].float(), model.schema)
        rows = {"read": read, "read_real": real, "action": given}
        rows |= {"read_other": read_other, "action_other": action_other}
        evaluator.update_read_actions(episodes.sample_id[acting], rows)

    def report(self) -> Report:
        """Compute the figures and a verdict."""
        return {
            **compose(self._evaluators),
            "num_frames": self._num_frames,
            "num_initial_frames": self._sizes[1],
            "rollout": "made by another program",
        }

    def pictures(self) -> dict[str, Tensor]:
        """Give videos of the first episodes, `[n, T, 3, H, W]` uint8: `truth`, `model`, `other` and `null`."""
        return {name: torch.stack(kept) for name, kept in self._pictures.items()}
