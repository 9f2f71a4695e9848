"""Write generated videos to files while they are generated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .support import prediction_records as records
from .support.arguments import check_at_least
from .support.collectives import gather
from .support.files import make_folder, replacing, write_bytes
from .support.part_names import is_named
from .support.pictures import beside_truth, to_uint8, write_mp4

_EXPECTED = "'video' [B, T, 3, H, W], floats in [0, 1] and 'sample_id' [B], whole numbers from 0 on"
_PER_SAMPLE = ("latents", "action", "has_action", "truth", "prompt", "prompt_switches")
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
    - `000007.json` to read: prompts, seed, generation settings, checkpoint, action rows, shapes, names of the files and
      their sizes in bytes.

    The json comes last, and no file is ever seen half written: where there is a json, the sample is complete. Every
    rank writes its own samples; `output_dir` must be one folder for all of them. When all samples are written, the
    first rank joins their json to `manifest.jsonl`, a line for each `sample_id`, once even if a distributed sampler
    gave it to two ranks.

    It works with any LightningModule whose `predict_step` returns a dict with `video` `[B, T, 3, H, W]` in [0, 1] and
    `sample_id` `[B]`, and, as far as it has them, `latents` `[B, F, C, h, w]`, `action` `[B, rows, columns]`, `truth`
    (as `video`), `prompt` (a list of B strings), `prompt_switches` (for each sample what follows on it), `seed` (int)
    and `generation` (a dict of numbers and strings). Nothing is kept in memory; call
    `trainer.predict(..., return_predictions=False)` so that the Trainer keeps nothing either.

    A prediction that was stopped goes on where it stopped if the LightningModule has a method `generation_settings()`,
    which returns the `seed` and `generation` that its predictions will have, and the LightningDataModule a method
    `select_predict_samples(is_wanted)`, which is called after its `setup`. Its next `predict_dataloader`, where the
    checkpoint is known, has only those samples for which `is_wanted(sample)` is true, and shares them between the ranks
    as it always does. `sample` is a dict with `sample_id` and, if batches have them, `action`, `prompt` and
    `prompt_switches`; all ranks ask for the same ones.

    Then samples are left out whose files are complete and were made for the same `sample_id`, action and prompts with
    the same checkpoint (path, size and time of change), seed, generation settings, precision, averages of weights and
    arguments of the writer. So `predict_step` must hand on the action and the prompts that the data has. Nothing else
    of the data is compared: after a change of first frames, say `resume: false`.
    A prediction without `ckpt_path` does everything anew, as nothing says which weights it has.

    Two samples of one `sample_id` are an error (on different ranks only where they are more than a distributed sampler
    repeats to give every rank as many), and so are two predictions into one folder at a time.

    With the Trainer's `fast_dev_run` nothing is written or removed.

    Args:
        output_dir: Folder for the files. Default: `predictions` in the Trainer's `default_root_dir`.
        fps: Frames per second of the mp4.
        write_latents: True puts the latents into the pt file.
        draw_actions: True shows the commanded action in the mp4.
        resume: True leaves out samples whose files are complete.

    Raises:
        ValueError: `fps` is below 1.
        MisconfigurationException: The folder cannot be written to or another prediction writes to it, two samples have
            one `sample_id`, or `predict_step` does not return what it should.

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
        check_at_least(1, fps=fps)
        self.output_dir = output_dir
        self.fps = fps
        self.write_latents = write_latents
        self.draw_actions = draw_actions
        self.resume = resume

        # These are known only during a prediction.
        self._is_dry_run = False
        self._folder = Path()
        self._circumstances: records.Record = {}
        self._written: set[int] = set()
        self._claim: records.FolderClaim | None = None
        self._asked_for: set[int] = set()
        self._left_out: set[int] = set()
        self._complete: dict[int, records.Record] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._is_dry_run = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if stage != "predict" or self._is_dry_run:
            return
        self._folder = Path(self.output_dir or Path(trainer.default_root_dir) / "predictions")
        make_folder(self._folder, "PredictionWriter(output_dir=...)")
        self._written, self._asked_for, self._left_out, self._complete = set(), set(), set(), None
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
        self._say_what_is_left_out()
        self._circumstances = trainer.strategy.broadcast(self._describe_circumstances(trainer))
        if trainer.is_global_zero:
            self._claim = records.FolderClaim(self._folder)
            # That of an earlier prediction says nothing about this one.
            self._manifest.unlink(missing_ok=True)

    def write_on_batch_end(self, trainer: Trainer, pl_module: LightningModule, prediction: Any, *_: Any) -> None:
        if problem := _find_problem(prediction):
            raise MisconfigurationException(
                f"PredictionWriter expects predict_step to return a dict with {_EXPECTED}; {problem}"
            )
        if self._is_dry_run:
            return
        sample_ids = prediction["sample_id"].tolist()
        for sample_id in sample_ids:
            # Before the second overwrites the files of the first.
            if sample_id in self._written:
                raise MisconfigurationException(_two_of_one_name(sample_id))
            self._written.add(sample_id)
        for index, sample_id in enumerate(sample_ids):
            self._write_sample(sample_id, _take_sample(prediction, index))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_dry_run:
            return
        times = Counter(chain.from_iterable(gather(self._written)))
        repeated = [sample_id for sample_id in times if times[sample_id] > 1]
        # To share samples out evenly, a distributed sampler gives some out twice, but fewer than there are ranks.
        if len(repeated) >= trainer.world_size:
            raise MisconfigurationException(_two_of_one_name(repeated[0]))
        if trainer.is_global_zero:
            self._write_manifest(times.keys() | self._left_out)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        nothing_to_do = self._left_out and self._left_out == self._asked_for
        # The Trainer skips a prediction of no samples, with all of its hooks.
        if stage == "predict" and nothing_to_do and trainer.is_global_zero:
            self._claim = records.FolderClaim(self._folder)
            self._say_what_is_left_out()
            self._write_manifest(self._left_out)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    @property
    def _manifest(self) -> Path:
        return self._folder / "manifest.jsonl"

    def _record(self, sample_id: int) -> Path:
        return self._folder / f"{sample_id:06d}.json"

    def _is_wanted(self, trainer: Trainer, pl_module: LightningModule, sample: Mapping[str, Any]) -> bool:
        if self._complete is None:
            self._complete = self._find_complete(trainer, pl_module)
        sample_id = int(sample["sample_id"])
        self._asked_for.add(sample_id)
        if sample_id not in self._complete:
            return True
        # The module got it in this precision, and handed on what it got.
        if not _commands_fit(self._complete[sample_id], trainer.precision_plugin.convert_input(sample)):
            return True
        self._left_out.add(sample_id)
        return False

    def _release(self) -> None:
        if self._claim is not None:
            self._claim.release()
            self._claim = None

    def _find_complete(self, trainer: Trainer, pl_module: LightningModule) -> dict[int, records.Record]:
        """Records by sample_id of what is complete and made as this prediction makes it; the same on all ranks."""
        settings: dict[str, Any] = pl_module.generation_settings()  # type: ignore[operator]
        wanted = records.as_json({**settings, **self._describe_circumstances(trainer)})
        found = records.whole_records(self._folder) if self.resume and wanted["checkpoint"] is not None else []
        complete = {record["sample_id"]: record for record in found if wanted.items() <= record.items()}
        return trainer.strategy.broadcast(complete)

    def _describe_circumstances(self, trainer: Trainer) -> records.Record:
        """Describe what files depend on besides the sample and the settings of its generation."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        averages = [type(each).__name__ for each in callbacks if any(is_named(each, name) for name in _AVERAGES)]
        return {
            "run": {"precision": str(trainer.precision), "averages": averages},
            "checkpoint": records.identify_checkpoint(trainer.ckpt_path),
            "writer": {"fps": self.fps, "write_latents": self.write_latents, "draw_actions": self.draw_actions},
        }

    def _say_what_is_left_out(self) -> None:
        if self._left_out:
            rank_zero_info(
                f"PredictionWriter: {len(self._left_out)} of {len(self._asked_for)} samples are complete in "
                f"{self._folder} and left out; resume: false generates them again."
            )

    def _write_manifest(self, sample_ids: Iterable[int]) -> None:
        written = [records.read_record(self._record(sample_id)) for sample_id in sorted(sample_ids)]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in written)
        write_bytes(self._manifest, lines.encode())

    def _write_sample(self, sample_id: int, sample: dict[str, Any]) -> None:
        names = ("video", "latents", "action") if self.write_latents else ("video", "action")
        tensors = {"sample_id": sample_id, **{name: sample[name] for name in names if name in sample}}
        paths = {kind: self._folder / f"{sample_id:06d}.{kind}" for kind in ("mp4", "pt")}
        # First, so that nothing is written if JSON cannot hold it.
        record = records.as_json(
            {
                "sample_id": sample_id,
                "prompt": sample.get("prompt"),
                **{name: sample[name] for name in ("prompt_switches",) if name in sample},
                "seed": sample.get("seed"),
                "generation": sample.get("generation"),
                **self._circumstances,
                "files": {kind: path.name for kind, path in paths.items()},
                "shapes": {name: list(value.shape) for name, value in tensors.items() if isinstance(value, Tensor)},
                "action": sample.get("action"),
            }
        )
        # That of an earlier prediction must not stand beside the files of this one.
        self._record(sample_id).unlink(missing_ok=True)
        shown = sample.get("action") if self.draw_actions else None
        write_mp4(paths["mp4"], beside_truth(sample["video"], sample.get("truth"), shown), self.fps)
        with replacing(paths["pt"]) as temporary:
            torch.save(tensors, temporary)
        record["sizes"] = {kind: path.stat().st_size for kind, path in paths.items()}
        records.write_record(self._record(sample_id), record)


def _commands_fit(record: records.Record, sample: Mapping[str, Any]) -> bool:
    """Tell whether the action and the prompts in a record are those of a sample; None is none."""
    names = ("action", "prompt", "prompt_switches")
    # Compared as text, in which NaN equals itself.
    return json.dumps({name: record.get(name) for name in names}) == json.dumps(
        records.as_json({name: sample.get(name) for name in names})
    )


def _two_of_one_name(sample_id: int) -> str:
    return (
        f"PredictionWriter names files by sample_id, and two samples have sample_id {sample_id}: give every sample of "
        "predict_dataloader a sample_id of its own (the number of an episode is not enough where it has several)"
    )


def _find_problem(prediction: Any) -> str:
    """Say what is wrong with a prediction; empty if nothing is."""
    if not isinstance(prediction, dict):
        return f"got {type(prediction).__name__}"
    missing = [name for name in ("video", "sample_id") if name not in prediction]
    if missing:
        return f"missing: {missing}, got: {sorted(map(str, prediction))}"
    video, sample_id, truth = prediction["video"], prediction["sample_id"], prediction.get("truth")
    is_video = isinstance(video, Tensor) and video.ndim == 5 and video.shape[2] == 3 and video.is_floating_point()
    if not is_video:
        return f"got as video {_summarize(video)}"
    low, high = video.min().item(), video.max().item()
    if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):  # written so that NaN is refused, too
        return f"got a video with values from {low:g} to {high:g}"
    is_numbers = isinstance(sample_id, Tensor) and not sample_id.is_floating_point()
    if not is_numbers or sample_id.shape != video.shape[:1] or bool((sample_id < 0).any()):
        return f"got for {len(video)} videos as sample_id {_summarize(sample_id)}"
    for name in _PER_SAMPLE:
        if prediction.get(name) is not None and len(prediction[name]) != len(video):
            return f"expected one entry of '{name}' for each of {len(video)} videos, got {len(prediction[name])}"
    if truth is not None and truth.shape != video.shape:
        return f"expected 'truth' in the shape of 'video', {tuple(video.shape)}, got {tuple(truth.shape)}"
    return ""


def _summarize(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _take_sample(prediction: dict[str, Any], index: int) -> dict[str, Any]:
    """One sample of a batch, on the CPU; what the prediction does not have is not in it."""
    sample = {name: prediction[name] for name in ("seed", "generation") if prediction.get(name) is not None}
    for name in _PER_SAMPLE:
        if prediction.get(name) is not None:
            value = prediction[name][index]
            # A copy, because a slice is saved with all of the batch it is a slice of.
            sample[name] = value.detach().cpu().clone() if isinstance(value, Tensor) else value
    if not sample.pop("has_action", True):
        sample.pop("action", None)  # rows that fill the batch, and mean nothing
    return sample | {"video": to_uint8(prediction["video"][index])}
