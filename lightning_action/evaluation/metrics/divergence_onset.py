"""Frame at which a rollout begins to go astray."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric

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
        super().__init__(["divergence_onset_frames", "diverged_rate"], **kwargs)

    def update(self, error: Tensor) -> None:
        """Add episodes.

        Args:
            error: Error of each generated frame in pixels, `[B, T]` with T of 5 or more: the distance of a position
                from the true one, or an end-point error of flow.

        Raises:
            ValueError: The errors are not `[B, T]` of 5 frames or more.
        """
        if error.ndim != 2 or error.shape[1] < WINDOW:
            raise ValueError(f"expected errors [B, T] of {WINDOW} frames or more, got {list(error.shape)}")
        frames, diverged = divergence_onset(error)
        self._add(divergence_onset_frames=frames, diverged_rate=diverged)


def divergence_onset(error: Tensor) -> tuple[Tensor, Tensor]:
    """Find when errors `[B, T]` begin to grow, in frames, and whether they do, 1 or 0, `[B]` each; see the metric.

    NaN where there are fewer than 5 frames.
    """
    if error.shape[1] < WINDOW:
        unknown = error.new_full((len(error),), math.nan)
        return unknown, unknown
    threshold = (2 * error[:, :WINDOW].median(dim=1).values).clamp_min(1)
    exceeds = error.unfold(1, WINDOW, 1).mean(dim=-1) > threshold[:, None]
    diverged = exceeds.any(dim=1)
    frames = torch.where(diverged, exceeds.int().argmax(dim=1), error.shape[1])
    return frames.float(), diverged.float()
