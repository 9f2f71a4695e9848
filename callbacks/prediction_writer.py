"""Write generated videos to files while they are generated."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .support.collectives import gather
from .support.files import make_folder, replacing
from .support.part_names import is_named
from .support.pictures import beside_truth, enlarge, mp4_writer, to_uint8, write_mp4
from .support.prediction_records import (
    FolderClaim,
    as_json,
    digest_sample,
    identify_checkpoint,
    read_record,
    whole_records,
    write_record,
    write_text,
)

_EXPECTED = {"video": "[B, T, 3, H, W], floats in [0, 1]", "sample_id": "[B], whole numbers from 0 on"}
_PER_SAMPLE = ("latents", "action", "truth", "prompt")
# A decoder in half precision may miss the ends of the range by a rounding error.
_TOLERANCE = 0.01
# Callbacks that evaluate with averages in place of the weights of the checkpoint.
_AVERAGES = ("EMA", "WeightAveraging", "StochasticWeightAveraging")


class PredictionWriter(BasePredictionWriter):
    """Writes every generated video as soon as its batch is done, and what it was generated from.

    A sample becomes three files, named by its `sample_id`:

    - `000007.mp4` to look at: the generated video, enlarged if it is small, with the commanded action in its corner,
      and the true video beside it if there is one;
    - `000007.pt` to compute with: `torch.load(path, weights_only=True)` gives a dict of `sample_id`, `video`
      `[T, 3, H, W]` uint8, and, if there are any, `latents` `[F, C, h, w]` and `action` `[rows, columns]`;
    - `000007.json` to read: prompt, seed, generation settings, checkpoint, action rows, shapes, names of the files and
      their sizes in bytes.

    The json comes last, and no file is ever seen half written: where there is a json, the sample is complete. Every
    rank writes its own samples; `output_dir` must be one folder for all of them. When all samples are written, the
    first rank joins their json to `manifest.jsonl`, a line for each `sample_id`, once even if a distributed sampler
    gave it to two ranks.

    It works with any LightningModule whose `predict_step` returns a dict with `video` `[B, T, 3, H, W]` in [0, 1] and
    `sample_id` `[B]`, and, as far as it has them, `latents` `[B, F, C, h, w]`, `action` `[B, rows, columns]`, `truth`
    (as `video`), `prompt` (a list of B strings), `seed` (int) and `generation` (a dict of numbers and strings). Nothing
    is kept in memory; call `trainer.predict(..., return_predictions=False)` so that the Trainer keeps nothing either.

    A video that is too long for memory comes as `video_blocks` in place of `video`: an iterator of its next frames,
    `[B, t, 3, H, W]` in [0, 1]. They are written as they come, without the actions drawn on them, and the pt file holds
    no video.

    A prediction that was stopped goes on where it stopped if two things are there:

    - the LightningModule has a method `generation_settings()`, which returns the `seed` and `generation` that its
      predictions will have, as a dict;
    - the LightningDataModule has a method `select_predict_samples(is_wanted)`, which is called after its `setup`. Its
      next `predict_dataloader`, where the checkpoint is known, has only those samples for which `is_wanted(sample)` is
      true, and shares them between the ranks as it always does. `sample` is a dict with `sample_id` and all that the
      generated video depends on (tensors, or what JSON can hold); all ranks ask for the same ones.

    Then samples are left out whose files are complete and were made from the same sample with the same checkpoint
    (path, size and time of change), seed, generation settings, precision, averages of weights and arguments of the
    writer. A prediction without `ckpt_path` does everything anew, as nothing says which weights it has.

    Two samples of one `sample_id`, and two predictions into one folder at a time, are errors.

    With the Trainer's `fast_dev_run` nothing is written or removed.

    Args:
        output_dir: Folder for the files. Default: `predictions` in the Trainer's `default_root_dir`.
        fps: Frames per second of the mp4.
        write_latents: Whether the latents go into the pt file.
        draw_actions: Whether the mp4 shows the commanded action.
        resume: Whether to leave out samples whose files are complete.

    Raises:
        ValueError: `fps` is below 1.
        MisconfigurationException: The folder cannot be written to or another prediction writes to it, two samples
            have one `sample_id`, or `predict_step` returns something else.

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
        resume: bool = True,
    ) -> None:
        super().__init__("batch")
        if fps < 1:
            raise ValueError(f"fps must be at least 1, got {fps}")
        self.output_dir = output_dir
        self.fps = fps
        self.write_latents = write_latents
        self.draw_actions = draw_actions
        self.resume = resume

        # These are known only during a prediction.
        self._is_dry_run = False
        self._folder = Path()
        self._run: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] | None = None
        self._written: dict[int, str] = {}
        self._claim: FolderClaim | None = None
        self._left_out: list[int] = []
        self._digests: dict[int, str] = {}
        self._complete: dict[int, str] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._is_dry_run = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if stage != "predict" or self._is_dry_run:
            return
        self._folder = Path(self.output_dir or Path(trainer.default_root_dir) / "predictions")
        make_folder(self._folder, "PredictionWriter(output_dir=...)")
        self._written, self._left_out, self._digests, self._complete = {}, [], {}, None
        select = getattr(trainer.datamodule, "select_predict_samples", None)  # type: ignore[attr-defined]
        if callable(select) and callable(getattr(pl_module, "generation_settings", None)):
            select(partial(self._is_wanted, trainer, pl_module))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if len(trainer.num_predict_batches) > 1:
            raise MisconfigurationException(
                "PredictionWriter names files by sample_id, which two dataloaders may both use: expected one predict "
                f"dataloader, got {len(trainer.num_predict_batches)}. Predict with one at a time, each with its own "
                "output_dir."
            )
        if self._is_dry_run:
            return
        if trainer.is_global_zero:
            self._claim = FolderClaim(self._folder)
        self._say_what_is_left_out()
        self._run = _describe_run(trainer)
        self._checkpoint = trainer.strategy.broadcast(identify_checkpoint(trainer.ckpt_path))
        if trainer.is_global_zero:
            # That of an earlier prediction says nothing about this one.
            self._manifest.unlink(missing_ok=True)

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
        if isinstance(prediction, dict) and "video_blocks" in prediction:
            if self._is_dry_run:
                deque(prediction["video_blocks"], maxlen=0)
                return
            self._remember(prediction)
            self._write_blocks(prediction)
        else:
            _check_prediction(prediction)
            if self._is_dry_run:
                return
            self._remember(prediction)
            for index, sample_id in enumerate(prediction["sample_id"].tolist()):
                self._write_sample(sample_id, _take_sample(prediction, index))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_dry_run:
            return
        written: dict[int, str] = {}
        for of_rank in gather(self._written):
            for sample_id in written.keys() & of_rank.keys():
                # A distributed sampler gives the same sample to two ranks, to share them out evenly.
                if written[sample_id] != of_rank[sample_id]:
                    raise MisconfigurationException(_two_of_one_name(sample_id))
            written |= of_rank
        if trainer.is_global_zero:
            self._write_manifest(written.keys() | set(self._left_out))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        nothing_to_do = self._left_out and len(self._left_out) == len(self._digests)
        # The Trainer skips a prediction of no samples, with all of its hooks.
        if stage == "predict" and nothing_to_do and trainer.is_global_zero:
            self._claim = FolderClaim(self._folder)
            self._say_what_is_left_out()
            self._write_manifest(self._left_out)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    @property
    def _manifest(self) -> Path:
        return self._folder / "manifest.jsonl"

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"fps": self.fps, "write_latents": self.write_latents, "draw_actions": self.draw_actions}

    def _record(self, sample_id: int) -> Path:
        return self._folder / f"{sample_id:06d}.json"

    def _is_wanted(self, trainer: Trainer, pl_module: LightningModule, sample: Mapping[str, Any]) -> bool:
        if self._complete is None:
            self._complete = self._find_complete(trainer, pl_module)
        sample_id = int(sample["sample_id"])
        self._digests[sample_id] = digest_sample(sample)
        if self._complete.get(sample_id) != self._digests[sample_id]:
            return True
        self._left_out.append(sample_id)
        return False

    def _remember(self, prediction: Mapping[str, Any]) -> None:
        """Refuse samples of one name before the second overwrites the files of the first."""
        for index, sample_id in enumerate(prediction["sample_id"].tolist()):
            if sample_id in self._written:
                raise MisconfigurationException(_two_of_one_name(sample_id))
            told = {name: prediction[name][index] for name in ("prompt", "action") if prediction.get(name) is not None}
            self._written[sample_id] = digest_sample(told)

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _find_complete(self, trainer: Trainer, pl_module: LightningModule) -> dict[int, str]:
        """Digests by sample_id of what is complete and made as this prediction makes it; the same on all ranks."""
        settings: dict[str, Any] = pl_module.generation_settings()  # type: ignore[operator]
        checkpoint = identify_checkpoint(trainer.ckpt_path)
        run = _describe_run(trainer)
        wanted = as_json({**settings, "run": run, "checkpoint": checkpoint, "writer": self._arguments})
        records = whole_records(self._folder) if self.resume and checkpoint is not None else []
        complete = {r["sample_id"]: r["sample"] for r in records if wanted.items() <= r.items()}
        return trainer.strategy.broadcast(complete)

    def _say_what_is_left_out(self) -> None:
        if self._left_out:
            rank_zero_info(
                f"PredictionWriter: {len(self._left_out)} of {len(self._digests)} samples are complete in "
                f"{self._folder} and left out; resume: false generates them again."
            )

    def _write_manifest(self, sample_ids: Iterable[int]) -> None:
        records = [read_record(self._record(sample_id)) for sample_id in sorted(sample_ids)]
        write_text(self._manifest, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))

    def _write_sample(self, sample_id: int, sample: dict[str, Any]) -> None:
        tensors, record = self._prepare(sample_id, sample)
        write_mp4(self._folder / record["files"]["mp4"], self._draw(sample), self.fps)
        self._finish(sample_id, tensors, record)

    def _write_blocks(self, prediction: dict[str, Any]) -> None:
        """Write the videos of a batch side by side, as their frames come."""
        sample_ids = prediction["sample_id"].tolist()
        prepared = [self._prepare(number, _take_sample(prediction, index)) for index, number in enumerate(sample_ids)]
        with ExitStack() as stack:
            paths = [self._folder / record["files"]["mp4"] for _, record in prepared]
            writers = [stack.enter_context(mp4_writer(path, self.fps)) for path in paths]
            for block in prediction["video_blocks"]:
                for add, frames in zip(writers, block, strict=True):
                    add(enlarge(to_uint8(frames)))
        for sample_id, (tensors, record) in zip(sample_ids, prepared, strict=True):
            self._finish(sample_id, tensors, record)

    def _prepare(self, sample_id: int, sample: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Prepare the content of pt file and record first, so that nothing is written if that cannot be."""
        names = ("video", "latents", "action") if self.write_latents else ("video", "action")
        tensors = {"sample_id": sample_id, **{name: sample[name] for name in names if name in sample}}
        files = {kind: f"{sample_id:06d}.{kind}" for kind in ("mp4", "pt")}
        record = as_json(self._describe(sample_id, sample, tensors, files))
        # That of an earlier prediction must not stand beside the files of this one.
        self._record(sample_id).unlink(missing_ok=True)
        return tensors, record

    def _finish(self, sample_id: int, tensors: dict[str, Any], record: dict[str, Any]) -> None:
        with replacing(self._folder / record["files"]["pt"]) as temporary:
            torch.save(tensors, temporary)
        record["sizes"] = {kind: (self._folder / name).stat().st_size for kind, name in record["files"].items()}
        write_record(self._record(sample_id), record)

    def _describe(
        self, sample_id: int, sample: dict[str, Any], tensors: dict[str, Any], files: dict[str, str]
    ) -> dict[str, Any]:
        return {
            "sample_id": sample_id,
            "prompt": sample.get("prompt"),
            "seed": sample.get("seed"),
            "generation": sample.get("generation"),
            "run": self._run,
            "checkpoint": self._checkpoint,
            "sample": self._digests.get(sample_id),
            "writer": self._arguments,
            "files": files,
            "shapes": {name: list(value.shape) for name, value in tensors.items() if isinstance(value, Tensor)},
            "action": sample.get("action"),
        }

    def _draw(self, sample: dict[str, Any]) -> Tensor:
        return beside_truth(sample["video"], sample.get("truth"), sample.get("action") if self.draw_actions else None)


def _describe_run(trainer: Trainer) -> dict[str, Any]:
    """Settings of a Trainer that the videos depend on."""
    averages = [type(each).__name__ for each in trainer.callbacks if any(is_named(each, name) for name in _AVERAGES)]  # type: ignore[attr-defined]
    return {"precision": str(trainer.precision), "averages": averages}


def _two_of_one_name(sample_id: int) -> str:
    return (
        f"PredictionWriter names files by sample_id, and two samples have sample_id {sample_id}: give every sample of "
        "predict_dataloader a sample_id of its own (the number of an episode is not enough where it has several)"
    )


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
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # written so that NaN is refused, too
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
    return sample | {"video": to_uint8(prediction["video"][index])} if "video" in prediction else sample
