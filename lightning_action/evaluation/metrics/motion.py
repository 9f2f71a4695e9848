"""Places and amount of motion in a video."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, check_videos, ratios

# Between 10 and 11 of 255, so that rounding does not decide about the pixels of bytes that differ by 10.
MOTION_THRESHOLD = 10.5 / 255


class MotionFloor(EpisodeMetric):
    """Test of whether anything moves at all: mean change between generated frames over that of the true video.

    With `c(x)` the mean of `|x_t - x_{t-1}|` over pixels and frames, `motion_ratio` is the mean of `c(generated)` over
    the mean of `c(true)`, ideal 1, and 0 for a copy of the first frame. An episode is static where its own ratio is
    below a floor although the true video moves; `static_rate` is their share (ideal 0), `static_samples` names them. It
    is the simplest form of the dynamic degree of VBench (Huang et al. 2023, arXiv:2311.17982), against the true
    video in place of a fixed threshold: noise and flicker count as motion, so a high ratio proves nothing.

    Args:
        floor: Ratio below which an episode is static.
    """

    def __init__(self, floor: float = 0.1, **kwargs: Any) -> None:
        super().__init__(["change", "true_change", "static_rate", "sample_id"], **kwargs)
        self.floor = floor

    def update(self, video: Tensor, truth: Tensor, sample_id: Tensor) -> None:
        """Add videos.

        Args:
            video: Generated videos, `[B, T, 3, H, W]` in [0, 1].
            truth: True videos of the same shape.
            sample_id: Whole numbers by which static videos are named, `[B]`.

        Raises:
            ValueError: Shapes differ.
        """
        check_videos(video, truth)
        change, true_change = (frame_change(each).mean(dim=1) for each in (video, truth))
        static = torch.where(true_change > 0, (change < self.floor * true_change).float(), math.nan)
        self._add(change=change, true_change=true_change, static_rate=static, sample_id=sample_id)

    def _derived(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "motion_ratio": ratios(values["change"], values["true_change"]),
            "static_rate": values["static_rate"],
        }

    def static_samples(self) -> list[int]:
        """Name the episodes of all ranks that are static, by their `sample_id`; every rank must call it."""
        episodes = self.episodes()
        return sorted(episodes["sample_id"][episodes["static_rate"] == 1].tolist())


def frame_change(video: Tensor) -> Tensor:
    """Compute the mean absolute change of each frame against the one before, `[B, T - 1]`, of `[B, T, 3, H, W]`."""
    return video.diff(dim=1).abs().mean(dim=(2, 3, 4))


def moving_region(video: Tensor, threshold: float = MOTION_THRESHOLD) -> Tensor:
    """Tell which pixels of a true video move: where a channel differs from the frame before by more than a threshold.

    This is the region of the judge worldproof (0.1.0), where bytes that differ by more than 10 move; it holds where the
    object came and where it left. Frame 0, which has none before, has the region of frame 1.

    Args:
        video: True video, `[B, T, 3, H, W]` in [0, 1], of two frames or more.
        threshold: Largest change of a pixel that counts as none.

    Returns:
        `[B, T, H, W]` bool.

    Raises:
        ValueError: The video has a single frame.
    """
    if video.shape[1] < 2:
        raise ValueError(f"expected a video of 2 frames or more, which may move, got {video.shape[1]}")
    moves = video.diff(dim=1).abs().amax(dim=2) > threshold
    return torch.cat([moves[:, :1], moves], dim=1)


def latent_motion(region: Tensor, temporal_compression_ratio: int, size: tuple[int, int]) -> Tensor:
    """Tell which cells of latent frames move: where a pixel does, in one of their frames.

    Args:
        region: Moving pixels, `[B, 1 + r (F - 1), H, W]` bool.
        temporal_compression_ratio: Number r of pixel frames of a latent frame; the first stands for one.
        size: Height and width of a latent frame.

    Returns:
        `[B, F, h, w]` bool.

    Raises:
        ValueError: The frames are no whole number of latent frames.
    """
    if (region.shape[1] - 1) % temporal_compression_ratio:
        raise ValueError(
            f"expected 1 + {temporal_compression_ratio} n frames, got {region.shape[1]}: cut the last ones"
        )
    first, rest = region[:, :1], region[:, 1:]
    grouped = rest.unflatten(1, (-1, temporal_compression_ratio)).any(dim=2)
    return F.adaptive_max_pool2d(torch.cat([first, grouped], dim=1).float(), size) > 0
