"""Speed at which a video model trains and generates."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeGuard

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from .support import log_writing
from .support.arguments import check_at_least
from .support.collectives import gather, sum_over_ranks, world_size

_WITH_VAE, _WITHOUT_VAE = "video_frames_per_second_with_vae", "video_frames_per_second_without_vae"
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}


@dataclass
class _Interval:
    """Work that one rank has done since a moment."""

    start: float
    steps: int = 0
    frames: int = 0
    flops: float = 0.0
    with_vae: bool = True


@dataclass
class _Generated:
    """Video frames that one rank has generated, and the seconds that it took."""

    frames: int = 0
    block_seconds: list[float] = field(default_factory=list)
    decode_seconds: float = 0.0
    undivided_seconds: float = 0.0


class ThroughputMonitor(Callback):
    """Logs video frames per second, in training and in prediction, the latency of blocks, and the use of the device.

    Training, at every logged step, over the steps since the last one (the first step of a fit, which warms up, and
    validation are left out; loading data and other callbacks are not):

    - `throughput/train/steps_per_second`;
    - `throughput/train/video_frames_per_second_with_vae` if batches hold videos, which the step has to encode, or
      `..._without_vae` if they hold latents; of all ranks together;
    - `throughput/train/flop_utilization`: the floating-point operations of the batches, divided by what the device
      could have done at its peak, in [0, 1]; only if the module says the former and the latter is known.

    Prediction, when it ends:

    - `throughput/predict/video_frames_per_second_without_vae` counts the time of generating latents, `..._with_vae`
      that of decoding them, too; of all ranks together;
    - `throughput/predict/block_seconds_p50` and `..._p95`: latency of a block of frames, median and 95th percentile.

    It works with any LightningModule. Training batches are dicts with `video` `[B, T, ...]` or `latents`
    `[B, F, ...]`, of which latents count where there are both; otherwise only steps are counted. `predict_step` returns
    a dict with `video` `[B, T, ...]` and, if they are measured, `block_seconds` (a list with the seconds of each block
    of latents) and `decode_seconds`; if not, the whole step counts as with VAE. For the utilisation, `flops_per_batch`
    is an attribute or property of the module (None where it is not known), read at each batch if the peak is known, as
    what trains may change: operations of forward and backward pass on one rank. The device is waited for at logged
    steps, at both ends of validation, and after each step of a prediction that measures no blocks.

    The utilisation is the model FLOPs utilisation of PaLM (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), or its
    hardware FLOPs utilisation where `flops_per_batch` counts what activation checkpointing computes twice.

    Args:
        video: Name of the video in a training batch.
        latents: Name of the latents in a training batch.
        temporal_compression_ratio: Video frames of a latent frame, r: F latent frames are `1 + r (F - 1)` video frames.
        peak_flops: Operations per second of one device at its peak. Default: what Lightning knows of the device and the
            Trainer's precision.
        every_n_steps: Steps from one logged step to the next. Default: `log_every_n_steps` of the Trainer.

    Raises:
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        video: str = "video",
        latents: str = "latents",
        temporal_compression_ratio: int = 4,
        peak_flops: float | None = None,
        every_n_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_at_least(1, every_n_steps=every_n_steps, temporal_compression_ratio=temporal_compression_ratio)
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"peak_flops must be above 0, got {peak_flops}")
        self.video = video
        self.latents = latents
        self.temporal_compression_ratio = temporal_compression_ratio
        self.peak_flops = peak_flops
        self.every_n_steps = every_n_steps

        # These are known only during a fit.
        self._interval: _Interval | None = None
        self._peak: float | None = None
        self._paused_at = 0.0

        # These are known only during a prediction.
        self._generated = _Generated()
        self._batch_start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interval = None
        self._peak = self.peak_flops
        if self._peak is None and hasattr(pl_module, "flops_per_batch"):
            dtype = _DTYPES.get(str(trainer.precision).split("-")[0])
            self._peak = get_available_flops(pl_module.device, dtype) if dtype else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        has_stepped = log_writing.has_stepped(trainer)
        if self._interval is None:
            # It begins between two steps, and after everything has been called for the first time.
            self._interval = _Interval(_now(pl_module)) if has_stepped else None
            return
        self._count(self._interval, pl_module, batch)
        self._interval.steps += has_stepped
        if has_stepped and log_writing.is_logging_step(trainer, self.every_n_steps):
            now = _now(pl_module)
            figures = _training_figures(self._interval, now - self._interval.start, self._peak, pl_module.device)
            log_writing.scalars(trainer, figures, log_writing.current_step(trainer))
            self._interval = _Interval(now)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._interval is not None:
            self._paused_at = _now(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._interval is not None:
            self._interval.start += _now(pl_module) - self._paused_at

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._generated = _Generated()

    def on_predict_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._batch_start = perf_counter()

    def on_predict_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if not isinstance(outputs, dict) or not _has_frames(outputs.get("video")):
            return
        batch_size, num_frames = outputs["video"].shape[:2]
        self._generated.frames += batch_size * num_frames
        if "block_seconds" in outputs:
            self._generated.block_seconds += outputs["block_seconds"]
            self._generated.decode_seconds += outputs.get("decode_seconds", 0.0)
        else:
            self._generated.undivided_seconds += _now(pl_module) - self._batch_start

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = _prediction_figures(gather(self._generated))
        log_writing.scalars(trainer, figures, log_writing.current_step(trainer))

    def _count(self, interval: _Interval, pl_module: LightningModule, batch: Any) -> None:
        if self._peak is not None:
            interval.flops += float(getattr(pl_module, "flops_per_batch", None) or 0.0)
        tensors = batch if isinstance(batch, dict) else {}
        latents, video = tensors.get(self.latents), tensors.get(self.video)
        interval.with_vae = not _has_frames(latents)
        if _has_frames(latents):
            interval.frames += len(latents) * (1 + self.temporal_compression_ratio * (latents.shape[1] - 1))
        elif _has_frames(video):
            interval.frames += video.shape[0] * video.shape[1]


def _has_frames(value: Any) -> TypeGuard[Tensor]:
    """Tell whether it may be a batch of videos or latents, `[B, T, ...]`."""
    return isinstance(value, Tensor) and value.ndim >= 2


def _now(pl_module: LightningModule) -> float:
    """Seconds, once the device has done all that it was given."""
    if pl_module.device.type != "cpu":
        torch.accelerator.synchronize(pl_module.device)
    return perf_counter()


def _training_figures(
    interval: _Interval, seconds: float, peak: float | None, device: torch.device
) -> dict[str, float]:
    own = torch.tensor([interval.frames, interval.flops, seconds], device=device)
    frames, flops, all_seconds = sum_over_ranks(own).tolist()
    mean_seconds = all_seconds / world_size()
    figures = {"steps_per_second": interval.steps / mean_seconds}
    if frames:
        figures[_WITH_VAE if interval.with_vae else _WITHOUT_VAE] = frames / mean_seconds
    if peak is not None and flops:
        figures["flop_utilization"] = flops / all_seconds / peak
    return {f"throughput/train/{name}": value for name, value in figures.items()}


def _prediction_figures(of_ranks: list[_Generated]) -> dict[str, float]:
    frames = sum(of_rank.frames for of_rank in of_ranks)
    blocks = [seconds for of_rank in of_ranks for seconds in of_rank.block_seconds]
    decoding = sum(of_rank.decode_seconds for of_rank in of_ranks)
    undivided = sum(of_rank.undivided_seconds for of_rank in of_ranks)
    figures = {}
    if blocks and not undivided:
        figures[_WITHOUT_VAE] = frames / (sum(blocks) / len(of_ranks))
        median, tail = torch.tensor(blocks, dtype=torch.float64).quantile(torch.tensor([0.5, 0.95]).double()).tolist()
        figures |= {"block_seconds_p50": median, "block_seconds_p95": tail}
    if decoding or undivided:
        figures[_WITH_VAE] = frames / ((sum(blocks) + decoding + undivided) / len(of_ranks))
    return {f"throughput/predict/{name}": value for name, value in figures.items()}
