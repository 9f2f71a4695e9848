"""Videos in TensorBoard: what the model generates, and what its actions do to it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .action_scan import draw_scan, held_throughout, scaled_rows, scan_picture, strip_frames
from .support import log_writing, pictures, probing
from .support.arguments import check_actions, check_at_least, check_scales
from .support.files import make_folder, write_bytes
from .support.validation_interval import EveryNValidations

# Smallest side of a frame on which an action can be drawn and still be looked past.
_MIN_SIDE = 200
_GRID_COLUMNS = 4
# After the start. Few, because TensorBoard first shows a picture a few hundred pixels wide.
_STRIP_FRAMES = 5
_SCAN_FRAMES = 2
_MAX_CLASSES = 4
_STRIP_SUBTITLE = "each row has other actions, the truth its own; time runs from left to right"
_ROW_LABELS = {
    "truth": "recorded",
    "own actions": "generated",
    "other actions": "of another sample",
    "no action": "the null action",
}


class RolloutLogger(EveryNValidations):
    """Logs videos and pictures of generated rollouts at the end of a validation, and before training if asked to.

    All start from the first samples of the first validation dataloader, the same at every validation. There are four
    panels, always in this order:

    - `rollout/1_truth/sample_<i>`: a video, generated beside true, with the actions drawn on it;
    - `rollout/2_counterfactual/sample_<i>`: a picture of film strips from one start and one noise: the truth, and what
      is generated under the sample's own actions, under those of the sample before, and under none;
    - `rollout/3_probe_script`: a video, one start under actions that are always the same: hold (all zeros; not with
      classes), each of `actions` throughout, the first two in turn, and none;
    - `rollout/4_action_scan`: a picture of each of `actions` at each of `scales`; not with actions that are whole
      numbers, which are classes. What follows its actions differs from row to row, more so to the right.

    Videos go to TensorBoard as GIFs among the images, which needs Pillow and nothing else. They are also written as
    files, so that runs without TensorBoard have them.

    It works with any LightningModule that has a method `generate(batch)`, which returns videos `[B, T, 3, H, W]` in
    [0, 1], and whose validation batches are dicts with an `action` `[B, rows, columns]`, which `generate` may find to
    be None. A `video` `[B, T, 3, H, W]` in [-1, 1] in the batch is taken for the truth if it has the shape of what is
    generated. All ranks generate the same, because those of a sharded model wait for one another; the first one draws.
    Training is not touched: random states and modes are as if nothing had happened.

    Args:
        every_n_validations: Validations from one rollout to the next.
        num_samples: Number of samples in panels 1 and 2; panels 3 and 4 show the first.
        actions: Name of each action and its row. Default: `+x`, `-x`, `+y` and `-y`, plus and minus one in the first
            two columns, or up to four of the rows in the data if they are whole numbers.
        scales: Numbers that actions are multiplied by in panel 4.
        alternate_every: Number of rows after which the probe script changes from the first action to the second.
        fps: Frames per second of the videos.
        max_frames: Number of frames, from the first, that videos show.
        max_side: Largest number of pixels of a video's longer side; larger ones are shrunk.
        num_videos_at_once: Largest number of videos generated in one batch.
        time_budget: Seconds to take in each validation. A panel whose videos would take longer, going by the time that
            those before took, is left out; a warning says so once.
        write_files: True writes files, into `rollouts/step_<step>` in the log folder.
        at_start: True also shows what the model makes before the fit's first step.

    Raises:
        ValueError: An argument is out of range.
        MisconfigurationException: The LightningModule, its batches or what it generates do not fit.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.RolloutLogger
              init_args:
                every_n_validations: 2
                actions: {right: [0.5, 0.0], left: [-0.5, 0.0]}
    """

    def __init__(
        self,
        every_n_validations: int = 1,
        num_samples: int = 2,
        actions: dict[str, list[float]] | None = None,
        scales: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
        alternate_every: int = 4,
        fps: int = 8,
        max_frames: int = 49,
        max_side: int = 320,
        num_videos_at_once: int = 8,
        time_budget: float = 120.0,
        write_files: bool = True,
        at_start: bool = False,
    ) -> None:
        super().__init__(every_n_validations)
        check_at_least(1, num_samples=num_samples, alternate_every=alternate_every, fps=fps)
        check_at_least(1, max_frames=max_frames, num_videos_at_once=num_videos_at_once)
        check_at_least(_MIN_SIDE, max_side=max_side)
        if actions is not None:
            check_actions(actions)
        check_scales(scales)
        if time_budget <= 0:
            raise ValueError(f"time_budget must be above 0, got {time_budget}")
        self.num_samples = num_samples
        self.actions = actions
        self.scales = list(scales)
        self.alternate_every = alternate_every
        self.fps = fps
        self.max_frames = max_frames
        self.max_side = max_side
        self.num_videos_at_once = num_videos_at_once
        self.time_budget = time_budget
        self.write_files = write_files
        self.at_start = at_start

        # These are known only during a run.
        self._folder: Path | None = None
        self._samples: probing.Batch | None = None
        self._seconds_per_video = 0.0
        self._deadline = 0.0
        self._warned = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage not in ("fit", "validate"):
            return
        probing.require_method(pl_module, "RolloutLogger", probing.GENERATE)
        self._samples, self._warned = None, False
        log_folder = Path(trainer.log_dir or trainer.default_root_dir)
        writes = self.write_files and not trainer.fast_dev_run  # type: ignore[attr-defined]
        self._folder = log_folder / "rollouts" if writes else None
        if self._folder is not None and trainer.is_global_zero:
            make_folder(self._folder, "The log folder of RolloutLogger (or set write_files: false)")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse batches without actions, or with others than its own, now rather than at the first validation."""
        for batch in probing.first_validation_samples(trainer, self.num_samples, "RolloutLogger")[:1]:
            self._take_samples(trainer, batch)
            if self.at_start:
                self._log_panels(trainer, pl_module)
        # Taken again as they pass by in a validation, where other callbacks may have touched them.
        self._samples = None

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        # Kept as the first batch of the first dataloader passes by, so that no data is loaded twice.
        if self._samples is None and not any(indices):
            self._take_samples(trainer, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._samples is not None and self.is_due(trainer):
            self._log_panels(trainer, pl_module)

    def _take_samples(self, trainer: Trainer, batch: probing.Batch) -> None:
        samples = probing.take_samples(batch, slice(self.num_samples), "RolloutLogger")
        self._samples = trainer.strategy.broadcast(samples)
        probing.check_action_width("RolloutLogger", self._samples["action"], scaled_rows(self._actions(), [1.0]))

    def _log_panels(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._samples is not None
        self._deadline = time.monotonic() + self.time_budget
        with probing.leaving_no_trace(pl_module), trainer.precision_plugin.val_step_context():
            self._log_samples(trainer, pl_module, self._samples)
            first = probing.take_sample(self._samples, 0, "RolloutLogger")
            self._log_probe_script(trainer, pl_module, first)
            if first["action"].is_floating_point():
                self._log_scan(trainer, pl_module, first)

    def _log_samples(self, trainer: Trainer, pl_module: LightningModule, samples: probing.Batch) -> None:
        """Panels 1 and 2."""
        action = samples["action"]
        variants = {"own actions": action, "other actions": probing.other_actions(action), "no action": None}
        generated = {name: self._generate(trainer, pl_module, samples, rows) for name, rows in variants.items()}
        videos = {name: video for name, video in generated.items() if video is not None}
        if "own actions" not in videos or not trainer.is_global_zero:
            return
        truth = _truth(pl_module, samples)
        if truth is not None and truth.shape == videos["own actions"].shape:
            videos = {"truth": pictures.to_uint8(truth), **videos}
        for index in range(len(action)):
            of_sample = {name: of_all[index] for name, of_all in videos.items()}
            beside = self._draw_beside_truth(of_sample["own actions"], of_sample.get("truth"), action[index])
            self._show_video(trainer, f"1_truth/sample_{index}", beside)
            self._show_picture(trainer, f"2_counterfactual/sample_{index}", self._draw_strips(of_sample))

    def _log_probe_script(self, trainer: Trainer, pl_module: LightningModule, sample: probing.Batch) -> None:
        """Panel 3."""
        script = probe_script(sample["action"], self._actions(), self.alternate_every)
        batch = probing.with_actions(sample, torch.stack(list(script.values())))
        videos = self._generate(trainer, pl_module, batch, batch["action"])
        without = None if videos is None else self._generate(trainer, pl_module, sample, None)
        if videos is None or not trainer.is_global_zero:
            return
        tiles = {name: (video, rows) for (name, rows), video in zip(script.items(), videos, strict=True)}
        if without is not None and without.shape[1] == videos.shape[1]:
            tiles["no action"] = without[0], sample["action"][0, :0]
        drawn = [self._draw_actions(*tile) for tile in tiles.values()]
        self._show_video(trainer, "3_probe_script", pictures.in_grid(drawn, list(tiles), _GRID_COLUMNS))

    def _log_scan(self, trainer: Trainer, pl_module: LightningModule, sample: probing.Batch) -> None:
        """Panel 4."""
        actions = self._actions()
        batch = held_throughout(sample, scaled_rows(actions, self.scales))
        videos = self._generate(trainer, pl_module, batch, batch["action"])
        if videos is not None and trainer.is_global_zero:
            picture = scan_picture(videos[:, : self.max_frames], actions, self.scales, _SCAN_FRAMES)
            self._show_picture(trainer, "4_action_scan", picture)

    def _actions(self) -> dict[str, list[float]]:
        """Rows of the actions to show."""
        assert self._samples is not None
        return self.actions or default_actions(self._samples["action"])

    def _generate(
        self, trainer: Trainer, pl_module: LightningModule, samples: probing.Batch, action: Tensor | None
    ) -> Tensor | None:
        """Videos of samples under these actions, uint8 on the CPU; None if there is no time. The same on all ranks."""
        count = len(samples["action"])
        started = time.monotonic()
        if not trainer.strategy.broadcast(started + count * self._seconds_per_video <= self._deadline):
            if not self._warned:
                self._warned = True
                rank_zero_warn(
                    f"RolloutLogger: a video takes {self._seconds_per_video:.1f} seconds, so that not all of them fit "
                    f"into the time_budget of {self.time_budget:g} seconds, and the last panels are left out. Allow "
                    "more time, or ask for fewer num_samples, actions or scales."
                )
            return None
        parts = []
        for start in range(0, count, self.num_videos_at_once):
            some = slice(start, start + self.num_videos_at_once)
            batch = probing.take_samples(samples, some, "RolloutLogger")
            num_videos = len(batch["action"])
            batch["action"] = None if action is None else action[some]
            parts.append(pictures.to_uint8(probing.generate(pl_module, batch, num_videos, "RolloutLogger")))
        self._seconds_per_video = (time.monotonic() - started) / count
        return torch.cat(parts)

    def _draw_beside_truth(self, video: Tensor, truth: Tensor | None, action: Tensor) -> Tensor:
        video, action = pictures.first_frames(video, action, self.max_frames)
        truth = None if truth is None else pictures.shrink(truth[: self.max_frames], self.max_side)
        return pictures.beside_truth(pictures.shrink(video, self.max_side), truth, action)

    def _draw_actions(self, video: Tensor, action: Tensor) -> Tensor:
        video, action = pictures.first_frames(video, action, self.max_frames)
        return pictures.draw_actions(pictures.enlarge(pictures.shrink(video, self.max_side), _MIN_SIDE), action)

    def _draw_strips(self, videos: Mapping[str, Tensor]) -> Tensor:
        length = min(self.max_frames, *map(len, videos.values()))
        frames = strip_frames(length, _STRIP_FRAMES)
        strips = torch.stack([video[frames] for video in videos.values()])
        return draw_scan(strips, frames, [(name, _ROW_LABELS[name]) for name in videos], [""], _STRIP_SUBTITLE)

    def _show_video(self, trainer: Trainer, name: str, frames: Tensor) -> None:
        step, gif = log_writing.current_step(trainer), pictures.encode_gif(frames, self.fps)
        log_writing.gif(trainer, f"rollout/{name}", gif, height=frames.shape[-2], width=frames.shape[-1], step=step)
        if self._folder is not None:
            write_bytes(_file(self._folder, step, f"{name}.gif"), gif)

    def _show_picture(self, trainer: Trainer, name: str, picture: Tensor) -> None:
        step = log_writing.current_step(trainer)
        log_writing.image(trainer, f"rollout/{name}", picture, step)
        if self._folder is not None:
            pictures.write_png(_file(self._folder, step, f"{name}.png"), picture)


def _truth(pl_module: LightningModule, samples: probing.Batch) -> Tensor | None:
    """Videos of the samples themselves, in [0, 1]; None where nothing shows them."""
    if "video" in samples:
        return samples["video"].float() / 2 + 0.5
    return pl_module.true_video(samples) if hasattr(pl_module, "true_video") else None  # type: ignore[operator]


def _file(folder: Path, step: int, name: str) -> Path:
    path = folder / f"step_{step:08d}" / name.replace("/", "_")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def default_actions(action: Tensor) -> dict[str, list[float]]:
    """Rows of actions to try with samples of actions `[B, rows, columns]`, by name.

    Where these are whole numbers, thus classes, some of the rows are taken.
    """
    if not action.is_floating_point():
        return {probing.format_row(row): row for row in action.flatten(0, 1).unique(dim=0)[:_MAX_CLASSES].tolist()}
    units = zip("xy", torch.eye(action.shape[-1]), strict=False)
    return {f"{sign}{axis}": (one * unit).tolist() for axis, unit in units for sign, one in (("+", 1), ("-", -1))}


def probe_script(action: Tensor, actions: Mapping[str, Sequence[float]], alternate_every: int) -> dict[str, Tensor]:
    """Rows `[rows, columns]` of each part of the script, by name, in the type of the sample's own `[1, rows, columns]`.

    Each of `actions`, at least one, is held; the first two are also taken in turn, `alternate_every` rows each.
    """
    num_rows = action.shape[1]
    held = scaled_rows(actions, [1.0])
    script = {name: row.expand(num_rows, -1) for name, row in zip(actions, held, strict=True)}
    if action.is_floating_point():
        script = {"hold": torch.zeros(num_rows, action.shape[-1], dtype=torch.float64), **script}
    if len(actions) > 1:
        script["alternate"] = held[torch.arange(num_rows) // alternate_every % 2]
    return {name: rows.to(action.dtype) for name, rows in script.items()}
