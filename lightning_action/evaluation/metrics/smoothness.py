"""Test of whether the blocks of a rollout show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, ratios
from lightning_action.evaluation.metrics.motion import frame_change


class BlockSeams(EpisodeMetric):
    """Change of the picture across the borders of blocks over that inside them.

    With `c_t` the mean of `|x_t - x_{t-1}|` over pixels, `seam_ratio` is the mean of `c_t` over generated frames t that
    begin a block, over the mean of the others; 1 where blocks do not show, above 1 where the picture jumps, below 1
    where it halts, and NaN where nothing moves inside blocks. It is the discontinuity between chunks of autoregressive
    video, as a number; true videos have their own, near 1, which belongs beside it. The definition is this project's
    own.

    Args:
        frames_per_block: Number of pixel frames of a block.
        num_initial_frames: Number of pixel frames at the start that were given; the first block begins after them.

    Raises:
        ValueError: A block has fewer than two frames, or none is given.
    """

    def __init__(self, frames_per_block: int, num_initial_frames: int = 1, **kwargs: Any) -> None:
        super().__init__(["change_across", "change_inside"], **kwargs)
        if frames_per_block < 2 or num_initial_frames < 1:
            raise ValueError(
                "expected blocks of 2 frames or more, which have an inside, and 1 or more frames before them, got "
                f"{frames_per_block} and {num_initial_frames}"
            )
        self.frames_per_block, self.num_initial_frames = frames_per_block, num_initial_frames

    def update(self, video: Tensor) -> None:
        """Add videos `[B, T, 3, H, W]` in [0, 1]."""
        change = frame_change(video)[:, self.num_initial_frames - 1 :]
        begins = torch.arange(change.shape[1], device=video.device) % self.frames_per_block == 0
        self._add(change_across=change[:, begins].mean(dim=1), change_inside=change[:, ~begins].mean(dim=1))

    def _derived(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"seam_ratio": ratios(values["change_across"], values["change_inside"])}
