"""A user's own actions, start image and prompt, as a DataModule for `predict`."""

from __future__ import annotations

import csv
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.batch import Batch


class ActionFileDataModule(L.LightningDataModule):
    """One video from files, for `predict`.

    Args:
        actions: `.npy` of shape [rows, columns], or `.csv` with one row a line; a first line of names is skipped. Rows
            are as the model's `schema` says.
        image: picture that the video starts from (PNG, JPEG, ...); None starts from the prompt alone.
        prompt: what the video shows.
        frame_size: height and width; an image of another size is refused, and without an image it is required.
        sample_id: chooses the noise, and names the output files.
    """

    def __init__(
        self,
        actions: str,
        image: str | None = None,
        prompt: str = "",
        frame_size: tuple[int, int] | None = None,
        sample_id: int = 0,
    ) -> None:
        super().__init__()
        self.actions, self.image, self.prompt = actions, image, prompt
        self.frame_size, self.sample_id = frame_size, sample_id

    def setup(self, stage: str) -> None:
        """Read the files, before anything is written.

        Raises:
            ValueError: a file holds something else, or there is neither an image nor a frame size.
        """
        if stage != "predict":
            raise ValueError(f"ActionFileDataModule is for predict only, not for {stage}")
        if self.image is None and self.frame_size is None:
            raise ValueError("give a start image (image) or the size of the video (frame_size: [height, width])")
        self._batch: Batch = {
            "action": read_actions(self.actions)[None],
            "prompt": [self.prompt],
            "sample_id": torch.tensor([self.sample_id]),
        }
        if self.image is None:
            self._batch["frame_size"] = torch.tensor([self.frame_size])
        else:
            self._batch["video"] = read_image(self.image, self.frame_size)[None, None]

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The one sample."""
        samples: Any = [self._batch]  # one item, which is a whole batch
        return DataLoader(samples, collate_fn=itemgetter(0))


def read_actions(path: str | Path) -> Tensor:
    """Action rows `[rows, columns]`, float32, from `.npy` or `.csv`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is of another kind, or not a table of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no actions at {path}: give the path of a .npy or .csv file")
    if path.suffix == ".npy":
        table = np.load(path, allow_pickle=False)
    elif path.suffix == ".csv":
        table = _read_csv(path)
    else:
        raise ValueError(f"actions are read from .npy or .csv files, got {path.name}")
    if table.ndim != 2 or not table.size or table.dtype.kind not in "fiub":
        raise ValueError(f"{path} must hold numbers [rows, columns], got {table.dtype} of shape {list(table.shape)}")
    return torch.from_numpy(table.astype(np.float32))


def read_image(path: str | Path, frame_size: tuple[int, int] | None) -> Tensor:
    """A picture as pixels `[3, H, W]` in [-1, 1].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no picture, or not of `frame_size`.
    """
    from PIL import Image, UnidentifiedImageError

    if not Path(path).is_file():
        raise FileNotFoundError(f"no image at {path}")
    try:
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")))
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that can be read") from error
    if frame_size is not None and tuple(pixels.shape[:2]) != tuple(frame_size):
        raise ValueError(f"{path} is {pixels.shape[0]} x {pixels.shape[1]}, expected {frame_size[0]} x {frame_size[1]}")
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _read_csv(path: Path) -> np.ndarray:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if row]
    if rows and not any(_is_number(value) for value in rows[0]):
        rows = rows[1:]
    if not rows:
        raise ValueError(f"{path} holds no action rows")
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        raise ValueError(f"{path} has lines of {sorted(widths)} values: expected the same number on each")
    try:
        return np.array([[float(value) for value in row] for row in rows])
    except ValueError as error:
        raise ValueError(f"{path} holds something that is not a number: {error}") from error


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
