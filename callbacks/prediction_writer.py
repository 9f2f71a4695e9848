"""Write generated videos to files while they are generated."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from .pictures import beside_truth, make_folder, replacing, to_uint8, write_mp4

_EXPECTED = {"video": "[B, T, 3, H, W], floats in [0, 1]", "sample_id": "[B], whole numbers from 0 on"}
_PER_SAMPLE = ("latents", "action", "truth", "prompt")
# A decoder in half precision may miss the ends of the range by a rounding error.
_TOLERANCE = 0.01


class PredictionWriter(BasePredictionWriter):
    """Writes every generated video as soon as its batch is done, and what it was generated from.

    A sample becomes three files, named by its `sample_id`:

    - `000007.mp4` to look at: the generated video, enlarged if it is small, with the commanded action in its corner,
      and the true video beside it if there is one;
    - `000007.pt` to compute with: `torch.load(path, weights_only=True)` gives a dict of `sample_id`, `video`
      `[T, 3, H, W]` uint8, and, if there are any, `latents` `[F, C, h, w]` and `action` `[rows, columns]`;
    - `000007.json` to read: prompt, seed, generation settings, action rows, shapes, names of the files.

    The json comes last, and no file is ever seen half written: where there is a json, the sample is complete. When all
    samples are written, `manifest.json` lists them and says how long the predict loop took.

    It works with any LightningModule whose `predict_step` returns a dict with `video` `[B, T, 3, H, W]` in [0, 1] and
    `sample_id` `[B]`, and, as far as it has them, `latents` `[B, F, C, h, w]`, `action` `[B, rows, columns]`, `truth`
    (as `video`), `prompt` (a list of B strings), `seed` (int) and `generation` (a dict of numbers and strings). Nothing
    is kept in memory; call `trainer.predict(..., return_predictions=False)` so that the Trainer keeps nothing either.

    Args:
        output_dir: Folder for the files. Default: `predictions` in the Trainer's `default_root_dir`.
        fps: Frames per second of the mp4.
        write_latents: Whether the latents go into the pt file.
        draw_actions: Whether the mp4 shows the commanded action.

    Raises:
        ValueError: If `fps` is below 1.
        MisconfigurationException: If the folder cannot be written to, or `predict_step` returns something else.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.PredictionWriter
              init_args:
                output_dir: runs/demo/predictions
                fps: 8
    """

    def __init__(
        self,
        output_dir: str | None = None,
        fps: int = 8,
        write_latents: bool = True,
        draw_actions: bool = True,
    ) -> None:
        super().__init__("batch")
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps}")
        self.output_dir = output_dir
        self.fps = fps
        self.write_latents = write_latents
        self.draw_actions = draw_actions

        # Known only during a prediction.
        self._folder = Path()
        self._written: list[int] = []
        self._start = 0.0
        self._seconds = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "predict":
            self._folder = Path(self.output_dir or Path(trainer.default_root_dir) / "predictions")
            make_folder(self._folder, "PredictionWriter(output_dir=...)")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.num_predict_batches) > 1:
            raise MisconfigurationException(
                "PredictionWriter names files by sample_id, which two dataloaders may both use: expected one predict"
                f" dataloader, got {len(trainer.num_predict_batches)}. Predict with one at a time, each with its own"
                " output_dir."
            )
        if trainer.is_global_zero:
            # That of an earlier prediction says nothing about this one.
            self._manifest.unlink(missing_ok=True)
        self._written = []
        self._start = time.monotonic()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        _check_prediction(prediction)
        for index, sample_id in enumerate(prediction["sample_id"].tolist()):
            self._write_sample(sample_id, _take_sample(prediction, index))
            self._written.append(sample_id)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_epoch_end(trainer, pl_module)
        # Here, because other callbacks may generate more videos when the prediction ends.
        self._seconds = time.monotonic() - self._start

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        sample_ids = _gather(trainer, self._written)
        if trainer.is_global_zero:
            samples = [f"{sample_id:06d}.json" for sample_id in sample_ids]
            manifest = {"num_samples": len(samples), "predict_seconds": round(self._seconds, 3), "samples": samples}
            _write_text(self._manifest, _to_json(manifest))

    @property
    def _manifest(self) -> Path:
        return self._folder / "manifest.json"

    def _write_sample(self, sample_id: int, sample: dict[str, Any]) -> None:
        files = {kind: f"{sample_id:06d}.{kind}" for kind in ("mp4", "pt")}
        tensors = {"sample_id": sample_id, "video": sample["video"]}
        tensors |= {name: sample[name] for name in ("latents", "action") if name in sample}
        if not self.write_latents:
            tensors.pop("latents", None)
        description = _to_json(self._describe(sample_id, sample, tensors, files))
        path = self._folder / f"{sample_id:06d}.json"
        # That of an earlier prediction must not stand beside the files of this one.
        path.unlink(missing_ok=True)
        write_mp4(self._folder / files["mp4"], self._draw(sample), self.fps)
        with replacing(self._folder / files["pt"]) as temporary:
            torch.save(tensors, temporary)
        _write_text(path, description)

    def _describe(
        self, sample_id: int, sample: dict[str, Any], tensors: dict[str, Any], files: dict[str, str]
    ) -> dict[str, Any]:
        return {
            "sample_id": sample_id,
            "prompt": sample.get("prompt"),
            "seed": sample.get("seed"),
            "generation": sample.get("generation"),
            "fps": self.fps,
            "files": files,
            "shapes": {name: list(value.shape) for name, value in tensors.items() if isinstance(value, Tensor)},
            "action": sample["action"].tolist() if "action" in sample else None,
        }

    def _draw(self, sample: dict[str, Any]) -> Tensor:
        return beside_truth(sample["video"], sample.get("truth"), sample.get("action") if self.draw_actions else None)


def _check_prediction(prediction: Any) -> None:
    expected = " and ".join(f"'{name}' {what}" for name, what in _EXPECTED.items())
    owner = f"PredictionWriter expects predict_step to return a dict with {expected}"
    if not isinstance(prediction, dict):
        raise MisconfigurationException(f"{owner}, got {type(prediction).__name__}")
    missing = [name for name in _EXPECTED if name not in prediction]
    if missing:
        raise MisconfigurationException(f"{owner}; missing: {missing}, got: {sorted(map(str, prediction))}")
    video, sample_id = prediction["video"], prediction["sample_id"]
    is_video = isinstance(video, Tensor) and video.ndim == 5 and video.shape[2] == 3 and video.is_floating_point()
    if not is_video:
        raise MisconfigurationException(f"{owner}, got as video {_summarize(video)}")
    low, high = video.min().item(), video.max().item()
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # said so that NaN is refused, too
        raise MisconfigurationException(f"{owner}, got a video with values from {low:g} to {high:g}")
    is_numbers = isinstance(sample_id, Tensor) and not sample_id.is_floating_point()
    if not is_numbers or sample_id.shape != video.shape[:1] or bool((sample_id < 0).any()):
        raise MisconfigurationException(f"{owner}, got for {len(video)} videos as sample_id {_summarize(sample_id)}")
    _check_optional(prediction)


def _summarize(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check_optional(prediction: dict[str, Any]) -> None:
    video = prediction["video"]
    for name in _PER_SAMPLE:
        value = prediction.get(name)
        if value is not None and len(value) != len(video):
            raise MisconfigurationException(
                f"PredictionWriter expects one entry of '{name}' for each of {len(video)} videos, got {len(value)}"
            )
    truth = prediction.get("truth")
    if truth is not None and truth.shape != video.shape:
        raise MisconfigurationException(
            f"PredictionWriter expects 'truth' in the shape of 'video', {tuple(video.shape)}, got {tuple(truth.shape)}"
        )


def _take_sample(prediction: dict[str, Any], index: int) -> dict[str, Any]:
    """One sample of a batch, on the CPU; what the prediction does not have is not in it."""
    sample = {name: prediction[name] for name in ("seed", "generation") if prediction.get(name) is not None}
    for name in _PER_SAMPLE:
        if prediction.get(name) is not None:
            value = prediction[name][index]
            # A copy, because a slice is saved with all of the batch it is a slice of.
            sample[name] = value.detach().cpu().clone() if isinstance(value, Tensor) else value
    return sample | {"video": to_uint8(prediction["video"][index])}


def _gather(trainer: Trainer, sample_ids: list[int]) -> list[int]:
    """The samples of all ranks, each once; waits until every rank has written its own."""
    device = trainer.strategy.root_device
    longest = trainer.strategy.reduce(torch.tensor(len(sample_ids), device=device), reduce_op="max")
    # Only equal lengths can be gathered: padding is -1.
    padded = torch.full((int(longest),), -1, dtype=torch.int64, device=device)
    padded[: len(sample_ids)] = torch.tensor(sample_ids, dtype=torch.int64)
    gathered = trainer.strategy.all_gather(padded).flatten().tolist()
    return sorted({sample_id for sample_id in gathered if sample_id >= 0})


def _to_json(content: dict[str, Any]) -> str:
    # A line for each entry: `indent` would give every number of the action rows a line of its own.
    lines = [f"  {json.dumps(name)}: {json.dumps(value, ensure_ascii=False)}" for name, value in content.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
