"""A user's own actions, start image and prompt, as a DataModule for `predict`."""

from __future__ import annotations

from operator import itemgetter
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from lightning_action.batch import Batch
from lightning_action.recordings.image_file import read_image
from lightning_action.recordings.tables import read_actions


class ActionFileDataModule(L.LightningDataModule):
    """One video from files, for `predict`.

    Args:
        actions: File of action rows, `.npy` of shape [rows, columns], or `.csv` with one row a line; a first line of
            names, which have letters, is skipped. `.npz`, `.json` and `.parquet` hold the rows under `action`. Rows are
            as the model's `schema` says.
        image: Picture that the video starts from (PNG, JPEG, WebP, BMP, TIFF, GIF), of one frame, turned as its EXIF
            orientation says, on white where it is transparent; None starts from the prompt alone.
        prompt: Description of what the video shows.
        frame_size: Height and width of the video; an image of another size is refused, and without an image it is
            required.
        sample_id: Number that chooses the noise, and names the output files.
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
            ValueError: A file does not hold what its argument says, or neither an image nor a frame size is given.
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
        """Return the one sample."""
        samples: Any = [self._batch]  # one item, which is a whole batch
        return DataLoader(samples, collate_fn=itemgetter(0))
