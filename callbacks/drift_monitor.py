"""Monitor of what happens to the picture while a generated video goes on."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .support import log_writing, probing
from .support.arguments import check_at_least
from .support.collectives import gather
from .support.validation_interval import EveryNValidations

FIGURES = ("brightness", "contrast", "high_frequency", "block_seam")
STATISTICS = ("start", "end", "slope", "change")

# Rec. 601, as in JPEG.
_LUMA = (0.299, 0.587, 0.114)
# A quarter of a grey level: what does not move has a seam ratio of 1.
_STILL = 1e-3
_SMALL = 1e-6


class DriftWarning(UserWarning):
    """Generated videos change in a way that they should not while they go on."""


class DriftMonitor(EveryNValidations):
    """Measures how brightness, contrast, fine detail and seams between blocks change in the course of long videos.

    All figures are about luma (ITU-R BT.601) in [0, 1] and are curves over the frames of a video:

    - `brightness`: mean over the pixels of a frame;
    - `contrast`: standard deviation over the pixels of a frame;
    - `high_frequency`: mean square of what the Laplacian [[0, 1, 0], [1, -4, 1], [0, 1, 0]] gives inside a frame. It
      falls when videos blur, and rises when they grow noise or edges;
    - `block_seam`: for every block after the first, the mean absolute difference between its first frame and the frame
      before, over the mean of those between frames inside the block. 1 is a seam that cannot be seen. Each side counts
      0.001 more, so that a still video has 1. There is none if a block is a single frame.

    For each it logs `drift/<figure>/start` and `.../end` (means over the first and the last quarter of the curve),
    `.../slope` (per frame, least squares) and `.../change`: how far the end is from the start, |end - start| for
    brightness and |end / start - 1| for the others; all as means over the samples. A change, or an end of `block_seam`,
    above its limit is named in a DriftWarning, each once.

    It looks at the videos of a prediction, for which `predict_step` must return a dict with `video`
    `[B, T, 3, H, W]` in [0, 1]; and, with `rollout_rows`, at longer videos than the data has, generated in validation:
    for these the LightningModule must have a method `generate(batch)` that returns such videos, and batches must be
    dicts with an `action` `[B, rows, columns]`, whose rows are repeated until there are enough. Where there is a
    `sample_id` `[B]`, samples that a distributed sampler gave out twice count once.

    A change is the start-end contrast of FramePack (Zhang et al. 2025, arXiv:2504.12626), here of quarters of a video
    and, but for brightness, relative. The mean square of the Laplacian is a measure of focus (Subbarao et al. 1993,
    "Focusing techniques"). The seam is this project's own.

    Args:
        num_frame_per_block: Latent frames that are generated together.
        temporal_compression_ratio: Pixel frames of a latent frame; the first of a video is one pixel frame.
        independent_first_frame: True if the first latent frame is a block of its own.
        rollout_rows: Number of action rows of the videos generated in validation; None generates none.
        num_rollouts: Number of videos to generate, on each rank.
        every_n_validations: Validations from one generation to the next.
        max_brightness_change: Limit of `brightness/change`.
        max_contrast_change: Limit of `contrast/change`.
        max_high_frequency_change: Limit of `high_frequency/change`.
        max_block_seam: Limit of `block_seam/end`.

    Raises:
        ValueError: An argument is out of range.
        MisconfigurationException: The LightningModule or what it returns does not fit.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.DriftMonitor
              init_args: {num_frame_per_block: 3, rollout_rows: 320}
    """

    def __init__(
        self,
        num_frame_per_block: int = 1,
        temporal_compression_ratio: int = 4,
        independent_first_frame: bool = False,
        rollout_rows: int | None = None,
        num_rollouts: int = 1,
        every_n_validations: int = 1,
        max_brightness_change: float = 0.1,
        max_contrast_change: float = 0.3,
        max_high_frequency_change: float = 1.0,
        max_block_seam: float = 2.0,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least(1, num_frame_per_block=num_frame_per_block, rollout_rows=rollout_rows, num_rollouts=num_rollouts)
        check_at_least(1, temporal_compression_ratio=temporal_compression_ratio)
        self.limits = {
            "brightness/change": max_brightness_change,
            "contrast/change": max_contrast_change,
            "high_frequency/change": max_high_frequency_change,
            "block_seam/end": max_block_seam,
        }
        if min(self.limits.values()) <= 0:
            raise ValueError(f"limits must be above 0, got {self.limits}")
        self.num_frame_per_block = num_frame_per_block
        self.temporal_compression_ratio = temporal_compression_ratio
        self.independent_first_frame = independent_first_frame
        self.rollout_rows = rollout_rows
        self.num_rollouts = num_rollouts

        # These are known only during a run: `sample_id`, if there is one, and the statistics of each sample.
        self._rows: list[tuple[int | None, Tensor]] = []
        self._warned_of: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._rows = []
        if stage in ("fit", "validate") and self.rollout_rows is not None:
            probing.require_method(pl_module, "DriftMonitor", probing.GENERATE)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse batches without actions now, rather than at the first validation that is due."""
        if self.rollout_rows is not None:
            probing.first_validation_samples(trainer, 1, "DriftMonitor")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        # They are those of the batch and its dataloader.
        if self.rollout_rows is None or not self.is_due(trainer) or any(indices):
            return
        samples = probing.take_samples(batch, slice(self.num_rollouts), "DriftMonitor")
        repeats = -(-self.rollout_rows // samples["action"].shape[1])
        samples["action"] = samples["action"].repeat(1, repeats, 1)[:, : self.rollout_rows]
        with probing.leaving_no_trace(pl_module), trainer.precision_plugin.val_step_context():
            videos = probing.generate(pl_module, samples, len(samples["action"]), "DriftMonitor")
        self._add(videos, samples)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.rollout_rows is not None and self.is_due(trainer):
            self._log(trainer)

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if not isinstance(outputs, Mapping) or "video" not in outputs:
            raise MisconfigurationException(
                "DriftMonitor expects predict_step to return a dict with 'video' [B, T, 3, H, W] in [0, 1], got "
                f"{sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__}"
            )
        self._add(outputs["video"], outputs)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer)

    def _add(self, videos: Tensor, source: Mapping[str, Any]) -> None:
        names = torch.as_tensor(source["sample_id"]).tolist() if "sample_id" in source else [None] * len(videos)
        self._rows += zip(names, map(self.statistics, videos), strict=True)

    def statistics(self, video: Tensor) -> Tensor:
        """Figures of one video `[T, 3, H, W]` in [0, 1], float64 `[FIGURES, STATISTICS]`; NaN is what it does not have.

        A video of two frames or more has all of them, if its blocks have. Seams are the frames that blocks begin with,
        without the very first.
        """
        first_block = 1 if self.independent_first_frame else self.num_frame_per_block
        first = 1 + self.temporal_compression_ratio * (first_block - 1)
        frames_per_block = self.temporal_compression_ratio * self.num_frame_per_block
        luma = torch.einsum("tchw,c->thw", video.double(), video.new_tensor(_LUMA, dtype=torch.float64))
        laplace = F.conv2d(luma[:, None], luma.new_tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None])
        to_next = _STILL + (luma[1:] - luma[:-1]).abs().mean(dim=(1, 2))
        # NaN where a block is a single frame.
        ratios = [
            to_next[seam - 1] / to_next[seam : seam + frames_per_block - 1].mean()
            for seam in range(first, len(video), frames_per_block)
        ]
        frames = torch.arange(len(video), device=video.device)
        curves = {
            "brightness": (luma.mean(dim=(1, 2)), frames),
            "contrast": (luma.std(dim=(1, 2), correction=0), frames),
            "high_frequency": (laplace.square().mean(dim=(1, 2, 3)), frames),
            "block_seam": (torch.stack(ratios) if ratios else luma.new_empty(0), frames[first::frames_per_block]),
        }
        return torch.stack([_statistics(name, *curves[name]) for name in FIGURES])

    def _log(self, trainer: Trainer) -> None:
        gathered = enumerate(chain.from_iterable(gather([(name, row.cpu()) for name, row in self._rows])))
        self._rows = []
        # Samples without a name are all different. Sorted, so that it does not matter which rank had which.
        rows = {(name is None, index if name is None else name): row for index, (name, row) in gathered}
        if not rows:
            return
        means = torch.stack([rows[key] for key in sorted(rows)]).flatten(1).nanmean(dim=0).tolist()
        keys = [f"{figure}/{statistic}" for figure in FIGURES for statistic in STATISTICS]
        figures = {key: mean for key, mean in zip(keys, means, strict=True) if mean == mean}
        tags = {f"drift/{key}": value for key, value in figures.items()}
        log_writing.scalars(trainer, tags, log_writing.current_step(trainer))
        for key, limit in self.limits.items():
            if figures.get(key, 0.0) > limit and key not in self._warned_of:
                self._warned_of.add(key)
                rank_zero_warn(
                    f"DriftMonitor: generated videos drift in {key.split('/')[0]}: {key} is {figures[key]:.3g}, above "
                    f"the limit of {limit:g}. Look at a long rollout; rolling out in training, a sink or a smaller "
                    "window are what helps against it.",
                    category=DriftWarning,
                )


def _statistics(name: str, curve: Tensor, times: Tensor) -> Tensor:
    known = ~curve.isnan()
    curve, times = curve[known], times[known].double()
    if not len(curve):
        return curve.new_full((len(STATISTICS),), torch.nan)
    quarter = max(1, len(curve) // 4)
    start, end = curve[:quarter].mean(), curve[-quarter:].mean()
    offset = times - times.mean()
    slope = (offset * curve).sum() / offset.square().sum().clamp_min(_SMALL)
    change = (end - start) if name == "brightness" else end / start.clamp_min(_SMALL) - 1
    return torch.stack([start, end, slope, change.abs()])
