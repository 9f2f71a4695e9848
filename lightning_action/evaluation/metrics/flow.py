"""Motion of pixels between frames, where nobody knows what they show."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.evaluation.metrics.divergence_onset import divergence_onset
from lightning_action.evaluation.metrics.episode_metric import (
    EpisodeMetric,
    check_videos,
    mean,
    mean_where,
    ratio,
    ratios,
)
from lightning_action.evaluation.metrics.inverse_dynamics_model import shrunk
from lightning_action.evaluation.metrics.motion import moving_region

# Pixels on each side that move as the one between them does, steps at each size of the picture, and the shortest side
# of the smallest one.
_RADIUS, _NUM_REFINEMENTS, _SMALLEST_SIDE = 2, 5, 16
# Squared slope, of pixels in [0, 1], below which a picture is too flat to tell how it moves: there the flow stays what
# it was at the coarser size.
_FLAT = 1e-3
# Flow in pixels that is rounding, not motion.
_STILL = 1e-3
_ONSET = ("flow_onset_frames", "flow_diverged_rate")


class FlowError(EpisodeMetric):
    """Test of whether pixels move as in the true video: optical flow between generated frames and between true ones.

    Flow u of a generated and v of a true video, `optical_flow` between neighbouring frames, in pixels a frame:

    - `flow_epe_px`: mean end-point error `|u - v|` (Otte and Nagel 1994, as in the Middlebury benchmark, Baker et al.
      2011, doi:10.1007/s11263-010-0390-2); ideal 0, and `flow_true_px`, the mean of `|v|`, for a video that stands
      still. `flow_epe_moving_px`, `flow_true_moving_px`: the same in the moving region of the true video.
    - `flow_gain`: `sum u v / sum v v` over the moving region; ideal 1, blind or still 0, backwards -1.
    - `flow_cosine`: mean cosine of the angle between u and v, weighted by `|v|`, over the moving region; ideal 1. A
      pixel that stands still has 0.
    - `flow_onset_frames`, `flow_diverged_rate`: as `DivergenceOnset` has it, of the end-point error in the moving
      region, 0 in frames where nothing should move; undefined with fewer than 5 generated frames.

    An episode in which nothing moves has no gain. What follows the true video must have the same start and actions;
    texture that nobody commands counts like all else.

    Gain and cosine are this project's own.

    Args:
        num_initial_frames: Number of pixel frames at the start that were given, not generated.
        max_side: Longest side in pixels to which larger frames are made smaller, which makes it quick; the figures are
            in pixels of the frames as they came.
    """

    def __init__(self, num_initial_frames: int = 1, max_side: int = 128, **kwargs: Any) -> None:
        names = ["epe", "true", "epe_moving", "true_moving", "along", "square", "cosine", "weight"]
        super().__init__([*names, *_ONSET], **kwargs)
        self.num_initial_frames, self.max_side = num_initial_frames, max_side

    def update(self, video: Tensor, truth: Tensor) -> None:
        """Add videos.

        Args:
            video: Generated videos, `[B, T, 3, H, W]` in [0, 1].
            truth: True videos of the same shape.

        Raises:
            ValueError: Shapes differ, or nothing is generated.
        """
        check_videos(video, truth)
        start = self.num_initial_frames - 1
        if truth.shape[1] - start < 2:
            raise ValueError(f"expected more than {self.num_initial_frames} frames, got {truth.shape[1]}")
        small, small_truth = (shrunk(each[:, start:].float(), self.max_side) for each in (video, truth))
        scale = truth.shape[-1] / small.shape[-1]
        moves = moving_region(small_truth)[:, 1:]
        seen, true = (scale * video_flow(each) for each in (small, small_truth))
        error, speed, along = (seen - true).norm(dim=2), true.norm(dim=2), (seen * true).sum(dim=2)
        cosine = along / (seen.norm(dim=2).clamp_min(_STILL) * speed.clamp_min(_STILL))
        everywhere = (1, 2, 3)
        onset = divergence_onset(mean_where(error, moves, (2, 3)).nan_to_num())
        self._add(
            **dict(zip(_ONSET, onset, strict=True)),
            epe=error.mean(dim=everywhere),
            true=speed.mean(dim=everywhere),
            epe_moving=mean_where(error, moves, everywhere),
            true_moving=mean_where(speed, moves, everywhere),
            along=(along * moves).sum(dim=everywhere),
            square=(speed.square() * moves).sum(dim=everywhere),
            cosine=(cosine * speed * moves).sum(dim=everywhere),
            weight=(speed * moves).sum(dim=everywhere),
        )

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        sums = {name: episodes[name].double().sum().item() for name in ("along", "square", "cosine", "weight")}
        return {
            "flow_epe_px": mean(episodes["epe"]),
            "flow_true_px": mean(episodes["true"]),
            "flow_epe_moving_px": mean(episodes["epe_moving"]),
            "flow_true_moving_px": mean(episodes["true_moving"]),
            "flow_gain": ratio(sums["along"], sums["square"]),
            "flow_cosine": ratio(sums["cosine"], sums["weight"]),
            **{name: mean(episodes[name]) for name in _ONSET},
        }

    def per_episode(self) -> dict[str, Tensor]:
        episodes = self.episodes()
        return {
            "flow_epe_px": episodes["epe"],
            "flow_epe_moving_px": episodes["epe_moving"],
            "flow_gain": ratios(episodes["along"], episodes["square"]),
            "flow_cosine": ratios(episodes["cosine"], episodes["weight"]),
            **{name: episodes[name] for name in _ONSET},
        }


def path_by_flow(video: Tensor, truth: Tensor, max_side: int = 128) -> Tensor:
    """Tell where things have gone, on average over what moves in the true video: the sum of the flow there.

    Args:
        video: Videos, `[B, T, 3, H, W]` in [0, 1].
        truth: True videos of the same shape.
        max_side: Longest side in pixels, as in `FlowError`.

    Returns:
        `[B, T, 2]` in pixels, 0 at frame 0; a frame in which nothing should move adds nothing.
    """
    small, small_truth = (shrunk(each.float(), max_side) for each in (video, truth))
    moves = moving_region(small_truth)[:, 1:, None]
    flow = truth.shape[-1] / small.shape[-1] * video_flow(small)
    steps = mean_where(flow, moves.expand_as(flow), (3, 4)).nan_to_num()
    return torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(dim=1)], dim=1)


def video_flow(video: Tensor) -> Tensor:
    """Estimate the flow from each frame to the next, `[B, T - 1, 2, H, W]`, of videos `[B, T, 3, H, W]` in [0, 1]."""
    return torch.stack([optical_flow(each[:-1], each[1:]) for each in video])


def optical_flow(first: Tensor, second: Tensor) -> Tensor:
    """Estimate where each pixel goes, by the method of Lucas and Kanade (1981), from coarse to fine.

    Pixels near each other move alike, and what they show keeps its colour: `second(x + u(x)) = first(x)`. At each size
    of the picture the flow is refined by least squares over a small window (Bouguet 2001), and
    then smoothed, without which flat places run away.

    Args:
        first: Pictures, `[N, C, H, W]` in [0, 1].
        second: Pictures a moment later.

    Returns:
        Flow in pixels, x to the right and y down, `[N, 2, H, W]`.
    """
    pyramid = [(first, second)]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * _SMALLEST_SIDE:
        smaller = [F.avg_pool2d(each, 2, ceil_mode=True) for each in pyramid[-1]]
        pyramid.append((smaller[0], smaller[1]))
    flow = torch.zeros_like(pyramid[-1][0][:, :2])
    for before, after in reversed(pyramid):
        size = before.shape[-2:]
        grown = [size[1] / flow.shape[-1], size[0] / flow.shape[-2]]
        flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False)
        flow = flow * flow.new_tensor(grown)[:, None, None]
        for _ in range(_NUM_REFINEMENTS):
            flow = _refined(flow, before, after)
    return flow


def _refined(flow: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Take a step of Gauss and Newton in each window; one step goes no farther than a pixel."""
    moved = warp(second, flow)
    slope_x, slope_y = ((a + b) / 2 for a, b in zip(_slopes(first), _slopes(moved), strict=True))
    missing = first - moved
    products = [slope_x * slope_x, slope_x * slope_y, slope_y * slope_y, slope_x * missing, slope_y * missing]
    xx, xy, yy, x, y = _around(torch.stack([each.sum(dim=1) for each in products], dim=1)).unbind(dim=1)
    xx, yy = xx + _FLAT, yy + _FLAT
    determinant = xx * yy - xy * xy
    step = torch.stack([yy * x - xy * y, xx * y - xy * x], dim=1) / determinant[:, None]
    return _around(flow + step.clamp(-1, 1))


def _around(values: Tensor) -> Tensor:
    """Average over the window around each pixel."""
    padded = F.pad(values, (_RADIUS,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * _RADIUS + 1, stride=1)


def _slopes(picture: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    along_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    along_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    return along_x, along_y


def warp(picture: Tensor, flow: Tensor) -> Tensor:
    """Look up pictures `[N, C, H, W]` where a flow `[N, 2, H, W]` in pixels leads, between pixels linearly."""
    height, width = picture.shape[-2:]
    columns = (torch.arange(width, device=flow.device) + 0.5 + flow[:, 0]) * 2 / width - 1
    rows = (torch.arange(height, device=flow.device)[:, None] + 0.5 + flow[:, 1]) * 2 / height - 1
    grid = torch.stack([columns, rows], dim=-1)
    return F.grid_sample(picture, grid, padding_mode="border", align_corners=False)
