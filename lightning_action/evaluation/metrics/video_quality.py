"""Nearness of a generated video to the true one: in the whole frame, where it moves, and along the horizon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, check_videos, mean, mean_where
from lightning_action.evaluation.metrics.motion import MOTION_THRESHOLD, moving_region


class VideoQuality(EpisodeMetric):
    """PSNR and SSIM against the true video under the same actions, for each generated frame.

    `psnr_db` is `-10 log10 mean (x - y)^2` of a frame with values in [0, 1], `ssim` the structural similarity (Wang et
    al. 2004, doi:10.1109/TIP.2003.819861; see `ssim_map`). `_moving` takes the same errors and the same map of
    similarity in the moving region of the true video alone (`motion.moving_region`): in the whole frame a still
    background wins both for a copy of the first frame. Frames in which nothing moves are left out there. Figures are
    means over frames and episodes; `_first` and `_last` are those of the first and of the last generated frame, and
    `curves` has all between them. Ideal: SSIM 1, PSNR 100 dB (the cap); floor: the same figures of a copy of the first
    frame.

    Args:
        num_initial_frames: Number of pixel frames at the start that were given, and do not count.
        threshold: Largest change of a true pixel that counts as no motion.
    """

    def __init__(self, num_initial_frames: int = 1, threshold: float = MOTION_THRESHOLD, **kwargs: Any) -> None:
        super().__init__(["psnr_db", "psnr_moving_db", "ssim", "ssim_moving"], **kwargs)
        self.num_initial_frames = num_initial_frames
        self.threshold = threshold

    def update(self, video: Tensor, truth: Tensor) -> None:
        """Add videos `[B, T, 3, H, W]` in [0, 1], generated and true; T is the same in all updates.

        Raises:
            ValueError: Shapes differ.
        """
        check_videos(video, truth)
        start = self.num_initial_frames
        region = moving_region(truth, self.threshold)[:, start:]
        video, truth = video[:, start:], truth[:, start:]
        similarity = ssim_map(video, truth)
        self._add(
            psnr_db=psnr(video, truth),
            psnr_moving_db=psnr(video, truth, region),
            ssim=similarity.mean(dim=(2, 3)),
            ssim_moving=mean_where(similarity, region, dim=(2, 3)),
        )

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        result = {}
        for name, frames in episodes.items():
            stem, unit = (name[:-3], "_db") if name.endswith("_db") else (name, "")
            result[name] = mean(frames)
            if frames.numel():
                result[f"{stem}_first{unit}"], result[f"{stem}_last{unit}"] = mean(frames[:, 0]), mean(frames[:, -1])
        return result

    def per_episode(self) -> dict[str, Tensor]:
        return self._figures_of_each(self.figures)

    def curves(self) -> dict[str, Tensor]:
        """Give the mean over all episodes of each generated frame, by name; every rank must call it."""
        return {name: frames.nanmean(dim=0) for name, frames in self.episodes().items()}


class DeltaPsnr(EpisodeMetric):
    """PSNR under the true actions minus PSNR under other ones, both against the true video and from the same noise.

    `delta_psnr_db` is the controllability of Genie (Bruce et al. 2024, arXiv:2402.15391), which takes it at t = 4; the
    mean over all generated frames stands beside it, and the PSNR itself. A model that is blind to actions has 0; the
    more they control, the higher.

    Args:
        frame: Pixel frame t at which it is taken.
        num_initial_frames: Number of pixel frames at the start that were given, and do not count.

    Raises:
        ValueError: The frame is one that was given.
    """

    def __init__(self, frame: int = 4, num_initial_frames: int = 1, **kwargs: Any) -> None:
        super().__init__(["delta_psnr_db", "delta_psnr_all_frames_db", "psnr_db"], **kwargs)
        if frame < num_initial_frames:
            raise ValueError(f"expected a generated frame, {num_initial_frames} or later, got frame {frame}")
        self.frame, self.num_initial_frames = frame, num_initial_frames

    def update(self, truth: Tensor, video: Tensor, video_other: Tensor) -> None:
        """Add videos `[B, T, 3, H, W]` in [0, 1]: true, and generated under the true and under other actions.

        Raises:
            ValueError: Shapes differ.
        """
        check_videos(truth, video, video_other)
        quality = psnr(video, truth)
        delta = quality - psnr(video_other, truth)
        generated = slice(self.num_initial_frames, None)
        self._add(
            delta_psnr_db=delta[:, self.frame],
            delta_psnr_all_frames_db=delta[:, generated].mean(dim=1),
            psnr_db=quality[:, generated].mean(dim=1),
        )


def psnr(predicted: Tensor, target: Tensor, region: Tensor | None = None) -> Tensor:
    """Compute the peak signal-to-noise ratio in dB of each leading index of `[..., 3, H, W]`, values in [0, 1].

    Args:
        predicted: Frames to judge.
        target: True frames.
        region: Pixels that count, `[..., H, W]` bool, NaN where there are none; None counts all.
    """
    error = (predicted - target).square()
    error = error.mean(dim=(-3, -2, -1)) if region is None else mean_where(error.mean(dim=-3), region, dim=(-2, -1))
    return -10 * error.clamp_min(1e-10).log10()


def ssim_map(predicted: Tensor, target: Tensor) -> Tensor:
    """Compute the structural similarity of each pixel, `[B, T, H, W]`, of videos `[B, T, 3, H, W]` in [0, 1].

    Of each channel, under a Gaussian window of 11 pixels and sigma 1.5, the frame mirrored beyond its border (Wang et
    al. 2004, doi:10.1109/TIP.2003.819861, equation 13); the mean of the three.
    """
    rows, columns = (_blur(size).to(predicted.device) for size in predicted.shape[-2:])

    def blurred(maps: Tensor) -> Tensor:
        return rows @ maps @ columns.T

    def similarity(x: Tensor, y: Tensor) -> Tensor:
        mean_x, mean_y = blurred(x), blurred(y)
        product, squares = mean_x * mean_y, mean_x.square() + mean_y.square()
        covariance, variances = blurred(x * y) - product, blurred(x.square() + y.square()) - squares
        maps = (2 * product + 0.01**2) * (2 * covariance + 0.03**2)
        return (maps / ((squares + 0.01**2) * (variances + 0.03**2))).mean(dim=1)

    # One video at a time, for its maps are several times its size.
    return torch.stack([similarity(*pair) for pair in zip(predicted.float(), target.float(), strict=True)])


def _blur(size: int, reach: int = 5, sigma: float = 1.5) -> Tensor:
    """Build the matrix `[size, size]` that blurs an axis with a Gaussian window; as a product it is quick on a CPU."""
    offsets = torch.arange(-reach, reach + 1)
    window = torch.softmax(-offsets.square() / (2 * sigma**2), dim=0)
    period = max(2 * (size - 1), 1)
    places = (torch.arange(size)[:, None] + offsets).remainder(period)
    mirrored = torch.minimum(places, period - places).clamp_max(size - 1)
    return torch.zeros(size, size).scatter_add_(1, mirrored, window.expand(size, -1))
