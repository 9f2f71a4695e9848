"""The one rule by which frames of any size become frames of whole patches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.batch import from_unit_range

_CUT = 16


@dataclass(frozen=True)
class FrameFit:
    """Scale until the frame covers the size that is wanted, keeping its proportions, and cut out the middle.

    A frame that is larger by less than a patch of 16 pixels in both sides is cut without scaling.

    Args:
        height: Number of pixel rows that are wanted.
        width: Number of pixel columns that are wanted.
    """

    height: int
    width: int

    @staticmethod
    def of(source_size: tuple[int, int], frame_size: tuple[int, int] | None, multiple: int) -> FrameFit:
        """Choose the size of the frames.

        Args:
            source_size: Height and width of the frames as they are.
            frame_size: Height and width that are wanted; None takes those of the source, cut to whole patches.
            multiple: Number of pixel rows, and of columns, that a side must be a multiple of.

        Raises:
            ValueError: The size wanted has no whole patches, or the source is smaller than one.
        """
        height, width = frame_size or (side - side % multiple for side in source_size)
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise ValueError(
                f"expected frames with sides of multiples of {multiple}, got {height} x {width}"
                + ("" if frame_size else f" of a source of {source_size[0]} x {source_size[1]}")
            )
        return FrameFit(height, width)

    def scaled_size(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Compute height and width after scaling, before the middle is cut out."""
        source_height, source_width = source_size
        if 0 <= source_height - self.height < _CUT and 0 <= source_width - self.width < _CUT:
            return source_size
        scale = max(self.height / source_height, self.width / source_width)
        return max(self.height, round(source_height * scale)), max(self.width, round(source_width * scale))

    def describe(self, source_size: tuple[int, int]) -> str:
        """Say in words what happens to a frame."""
        scaled = self.scaled_size(source_size)
        steps = [f"{source_size[0]} x {source_size[1]}"]
        if scaled != source_size:
            steps.append(f"scaled to {scaled[0]} x {scaled[1]}")
        if scaled != (self.height, self.width):
            steps.append(f"middle cut to {self.height} x {self.width}")
        return ", ".join(steps)

    def __call__(self, frames: np.ndarray) -> Tensor:
        """Turn frames `[n, H, W, 3]` of uint8 into `[n, 3, height, width]` in [-1, 1]."""
        video = torch.from_numpy(frames).permute(0, 3, 1, 2)
        size = self.scaled_size((frames.shape[1], frames.shape[2]))
        if size != tuple(video.shape[-2:]):
            video = F.interpolate(video, size=size, mode="bilinear", antialias=True)
        top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
        video = video[..., top : top + self.height, left : left + self.width]
        return from_unit_range(video.float() / 255)
