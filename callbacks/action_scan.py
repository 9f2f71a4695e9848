"""One picture of what a world model does with one start and many actions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from .support import probing
from .support.arguments import check_actions, check_at_least, check_scales
from .support.files import make_folder
from .support.pictures import enlarge, font, from_image, shrink, to_image, to_uint8, write_png

_SCALES = (0.0, 0.5, 1.0, 2.0)
_MAX_ACTIONS = 32
# Frames are small enough that a picture of 20 side by side can be looked at as a whole.
_FRAME_MIN_SIDE = 72
_FRAME_MAX_SIDE = 192
_FRAME_GAP = 3
_CELL_GAP = 18
_ROW_LABEL_HEIGHT = 60
_HEADER_HEIGHT = 144
_MARGIN = 20
_LARGE, _SMALL = 24, 16
_BLACK, _GREY = (0, 0, 0), (110, 110, 110)
_TITLE = "One start, one noise: only the action differs"
_SUBTITLE = "each row holds one action throughout, each column scales it; time runs from left to right"


class ActionScan(Callback):
    """Draws what a set of actions, each at several strengths, makes of one and the same start.

    When a prediction ends, it takes the first sample of the first predict dataloader, has a video generated for every
    action at every scale, and writes one picture: a row for each action, a column for each scale, and in each cell some
    frames of the video from left to right. Start and `sample_id`, and so the noise, are the same everywhere: whatever
    differs between two cells is the doing of the action. A prediction of which a PredictionWriter leaves samples out,
    because they are written already, has only the others to start from.

    It works with any LightningModule that has a method `generate(batch)`, which returns videos `[B, T, 3, H, W]` in
    [0, 1], and whose predict batches are dicts with an `action` `[B, rows, columns]`. What else in the batch has B
    entries has one for each sample; all the rest is handed on as it is. Without `actions`, the module also has a method
    `probe_actions(strength)`, which returns the rows by name, and whether they can be scaled.

    Args:
        actions: Name of each action and its row, for example `{"right": [1.0, 0.0]}`. The row is held throughout.
            Default: what the module says, as ours does of its schema: each number up and down, each switch, and each
            class, with all else at rest; the first 32 of them.
        scales: Numbers that every action is multiplied by. At 0, all actions should give the same video. Default: 0,
            0.5, 1 and 2; 1 alone where the module says that rows cannot be scaled.
        output: Path of the picture. Default: `action_scan.png` in the Trainer's `default_root_dir`.
        num_strip_frames: Number of frames in a cell after the start, evenly spaced up to the last.
        sample: Index of the sample of the first batch to start from; the last one is taken if the batch has fewer.
        strength: Share of the way from rest to a bound that numbers go at scale 1, without `actions`; with the default
            scales at most 0.5 stays within bounds.
        num_videos_at_once: Largest number of videos generated in one batch.

    Raises:
        ValueError: The actions or scales are none, actions differ in width, or a number is out of range.
        MisconfigurationException: The LightningModule or its batches do not fit, or the picture cannot be written.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.ActionScan
              init_args:
                actions: {right: [1.0, 0.0], left: [-1.0, 0.0], up: [0.0, -1.0], down: [0.0, 1.0]}
                scales: [0.0, 0.5, 1.0, 2.0]
    """

    def __init__(
        self,
        actions: dict[str, list[float]] | None = None,
        scales: Sequence[float] | None = None,
        output: str | None = None,
        num_strip_frames: int = 4,
        sample: int = 0,
        strength: float = 0.5,
        num_videos_at_once: int = 16,
    ) -> None:
        super().__init__()
        if actions is not None:
            check_actions(actions)
        if scales is not None:
            check_scales(scales)
        check_at_least(1, num_strip_frames=num_strip_frames, num_videos_at_once=num_videos_at_once)
        check_at_least(0, sample=sample)
        if not 0 < strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, got {strength}")
        self.actions = actions
        self.scales = scales
        self.output = output
        self.num_strip_frames = num_strip_frames
        self.sample = sample
        self.strength = strength
        self.num_videos_at_once = num_videos_at_once

        # These are known only during a prediction.
        self._path = Path()
        self._actions: Mapping[str, Sequence[float]] = {}
        self._scales: Sequence[float] = ()
        self._sample: probing.Batch | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "predict":
            return
        probing.require_method(pl_module, "ActionScan", probing.GENERATE)
        if self.actions is None:
            probing.require_method(pl_module, "ActionScan without actions", probing.PROBE_ACTIONS)
        self._path = Path(self.output or Path(trainer.default_root_dir) / "action_scan.png")
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            make_folder(self._path.parent, "The folder of ActionScan(output=...)")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: what actions are may follow from a checkpoint or the data.
        scalable = True
        if self.actions is not None:
            self._actions = self.actions
        else:
            offered, scalable = pl_module.probe_actions(self.strength)  # type: ignore[operator]
            self._actions = dict(islice(offered.items(), _MAX_ACTIONS))
            if len(offered) > _MAX_ACTIONS:
                rank_zero_info(f"ActionScan shows {_MAX_ACTIONS} of {len(offered)} actions: give `actions` for others")
        self._scales = self.scales or (_SCALES if scalable else (1.0,))

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *indices: int
    ) -> None:
        # Kept as the first batch of the first dataloader passes by, so that no data is loaded twice; and after the
        # module has accepted it, so that a batch with wrong actions is not blamed on this callback.
        if not any(indices):
            self._sample = probing.take_sample(batch, self.sample, "ActionScan")
            rows = scaled_rows(self._actions, self._scales)
            probing.check_action_width("ActionScan", self._sample["action"], rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # All ranks generate, and all the same, because those of a sharded model wait for one another.
        sample = trainer.strategy.broadcast(self._sample)
        self._sample = None
        if sample is None:
            raise MisconfigurationException("ActionScan needs a sample, and the first predict dataloader gave no batch")
        videos = []
        for rows in scaled_rows(self._actions, self._scales).split(self.num_videos_at_once):
            batch = held_throughout(sample, rows)
            with trainer.precision_plugin.predict_step_context():
                videos.append(to_uint8(probing.generate(pl_module, batch, len(rows), "ActionScan")))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_png(self._path, scan_picture(torch.cat(videos), self._actions, self._scales, self.num_strip_frames))
            rank_zero_info(f"ActionScan: wrote {self._path}")


def scaled_rows(actions: Mapping[str, Sequence[float]], scales: Sequence[float]) -> Tensor:
    """Every action row at every scale, float64 `[actions * scales, columns]`, scales fastest."""
    rows = torch.tensor(list(actions.values()), dtype=torch.float64)
    return (rows[:, None] * rows.new_tensor(scales)[:, None]).flatten(0, 1)


def held_throughout(sample: probing.Batch, rows: Tensor) -> probing.Batch:
    """A batch with one sample for every row `[N, columns]`, which is its action from the first row to the last."""
    return probing.with_actions(sample, rows[:, None].repeat(1, sample["action"].shape[1], 1))


def scan_picture(
    videos: Tensor, actions: Mapping[str, Sequence[float]], scales: Sequence[float], num_later: int
) -> Tensor:
    """Draw videos `[actions * scales, T, 3, H, W]`: the start of each and `num_later` frames after it."""
    frames = strip_frames(videos.shape[1], num_later)
    row_labels = [(name, probing.format_row(row)) for name, row in actions.items()]
    return draw_scan(to_uint8(videos[:, frames]), frames, row_labels, [f"scale {scale:g}" for scale in scales])


class ScanLayout(NamedTuple):
    """Places of things in the picture, in pixels."""

    num_rows: int
    num_columns: int
    frames_in_cell: int
    frame_height: int
    frame_width: int
    left: int

    @property
    def cell_width(self) -> int:
        return self.frames_in_cell * (self.frame_width + _FRAME_GAP) - _FRAME_GAP

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        last_left, last_top = self.corner(self.num_rows - 1, self.num_columns - 1)
        return last_left + self.cell_width + _MARGIN, last_top + self.frame_height + _MARGIN

    def corner(self, row: int, column: int, frame: int = 0) -> tuple[int, int]:
        """Left and top of a frame in a cell."""
        left = self.left + column * (self.cell_width + _CELL_GAP) + frame * (self.frame_width + _FRAME_GAP)
        return left, _HEADER_HEIGHT + row * (max(self.frame_height, _ROW_LABEL_HEIGHT) + _CELL_GAP)


def draw_scan(
    strips: Tensor,
    frame_numbers: Sequence[int],
    row_labels: Sequence[tuple[str, str]],
    column_labels: Sequence[str],
    subtitle: str = _SUBTITLE,
) -> Tensor:
    """Draw film strips in rows and columns, with headers.

    Args:
        strips: Uint8 `[rows * columns, frames, 3, H, W]`, columns fastest.
        frame_numbers: Numbers to write above the frames of the strips.
        row_labels: Name and description of each row.
        column_labels: Name of each column.
        subtitle: Explanation of rows and columns.

    Returns:
        The picture, uint8 `[3, height, width]`.
    """
    from PIL import Image, ImageDraw

    strips = torch.stack([to_uint8(shrink(enlarge(strip, _FRAME_MIN_SIDE), _FRAME_MAX_SIDE)) for strip in strips])
    left = 2 * _MARGIN + max(_text_width(*label) for label in row_labels)
    layout = ScanLayout(len(row_labels), len(column_labels), strips.shape[1], strips.shape[-2], strips.shape[-1], left)
    width, height = layout.size
    image = Image.new("RGB", (max(width, left + _text_width(_TITLE, subtitle) + _MARGIN), height), "white")
    draw = ImageDraw.Draw(image)
    draw.text((left, _MARGIN), _TITLE, fill=_BLACK, font=font(_LARGE))
    draw.text((left, _MARGIN + 32), subtitle, fill=_GREY, font=font(_SMALL))
    for row, (name, description) in enumerate(row_labels):
        right, middle = layout.left - _MARGIN, layout.corner(row, 0)[1] + layout.frame_height // 2
        draw.text((right, middle), name, fill=_BLACK, font=font(_LARGE), anchor="rd")
        draw.text((right, middle + 4), description, fill=_GREY, font=font(_SMALL), anchor="ra")
    for column, label in enumerate(column_labels):
        centre = layout.corner(0, column)[0] + layout.cell_width / 2
        draw.text((centre, _HEADER_HEIGHT - 30), label, fill=_BLACK, font=font(_LARGE), anchor="md")
        for index, number in enumerate(frame_numbers):
            centre = layout.corner(0, column, index)[0] + layout.frame_width / 2
            text = "start" if number == 0 else f"frame {number}"
            draw.text((centre, _HEADER_HEIGHT - 6), text, fill=_GREY, font=font(_SMALL), anchor="md")
    for cell, strip in enumerate(strips):
        for index, frame in enumerate(strip):
            image.paste(to_image(frame), layout.corner(*divmod(cell, layout.num_columns), index))
    return from_image(image)


def strip_frames(num_frames: int, num_later: int) -> list[int]:
    """The start and later frames, evenly spaced up to the last; all frames if there are not that many."""
    num_later = min(num_later, num_frames - 1)
    return [0, *(round(index * (num_frames - 1) / num_later) for index in range(1, num_later + 1))]


def _text_width(large: str, small: str) -> int:
    return math.ceil(max(font(_LARGE).getlength(large), font(_SMALL).getlength(small)))
