"""When a rollout begins to go astray."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_action.evaluation.episode_metric import EpisodeMetric, mean

WINDOW = 5


class DivergenceOnset(EpisodeMetric):
    """First frame at which the error of a rollout, smoothed over 5 frames, exceeds `max(2 median(first 5), 1)` pixels.

    The onset of FastVideo's evaluation of optical flow (hao-ai-lab/FastVideo, 2025), for any error in pixels: smoothed
    is the mean over the window that begins at a frame. `divergence_onset_frames` is the mean over episodes, in which
    one that never goes astray counts with all its frames: the ideal is their number, the floor 0. `diverged_rate` is
    the share of those that do, ideal 0. An error that is large from the first frame on raises its own bar, so a bad
    model may never diverge: read it beside the error itself.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(["onset", "num_frames"], **kwargs)

    def update(self, error: Tensor) -> None:
        """Add episodes.

        Args:
            error: Error of each generated frame in pixels, `[B, T]` with T of 5 or more: the distance of a position
                from the true one, or an end-point error of flow.

        Raises:
            ValueError: There are fewer frames.
        """
        if error.ndim != 2 or error.shape[1] < WINDOW:
            raise ValueError(f"expected errors [B, T] of {WINDOW} frames or more, got {list(error.shape)}")
        threshold = (2 * error[:, :WINDOW].median(dim=1).values).clamp_min(1)
        exceeds = error.unfold(1, WINDOW, 1).mean(dim=-1) > threshold[:, None]
        onset = torch.where(exceeds.any(dim=1), exceeds.float().argmax(dim=1).float(), math.nan)
        self._add(onset=onset, num_frames=torch.full_like(onset, error.shape[1]))

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        return {name: mean(values) for name, values in _per_episode(episodes).items()}

    def per_episode(self) -> dict[str, Tensor]:
        return _per_episode(self.episodes())


def _per_episode(episodes: dict[str, Tensor]) -> dict[str, Tensor]:
    onset = episodes["onset"]
    never = onset.isnan()
    return {
        "divergence_onset_frames": torch.where(never, episodes["num_frames"], onset),
        "diverged_rate": (~never).float(),
    }
