"""Locator of an object of a colour of its own in a video."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_action.ranges import require_numbers


class ColorLocator:
    """Finds an object by its hue: the centre of all pixels that have it, weighed by how much of it they have.

    The hue of a pixel is its colour minus its mean over red, green and blue; its share of the object's hue is their
    product over the square of the object's. So white, grey and black have a share of 0, and a pixel that the object
    half covers has a half, on a grey background. Objects of another hue do not matter while their share is below
    `threshold`, which what is above is measured from. The definition is this project's own.

    Args:
        color: Red, green and blue of the object, from 0 to 255.
        threshold: Share of the object's hue from which on a pixel counts.
        min_area: Number of pixels, weighed, from which on the object is there.

    Raises:
        ValueError: The colour is a grey, which has no hue, or an argument is out of range.
    """

    def __init__(self, color: Sequence[int], threshold: float = 0.3, min_area: float = 1.0) -> None:
        if len(color) != 3:
            raise ValueError(f"expected a color of red, green and blue, got {color!r}")
        require_numbers({f"color[{place}]": value for place, value in enumerate(color)}, 0, 255)
        require_numbers({"threshold": threshold}, 0, 1, without_high=True)
        require_numbers({"min_area": min_area}, 0, without_low=True)
        hue = _hue(torch.tensor(color, dtype=torch.float32) / 127.5)
        if not bool(hue.any()):
            raise ValueError(f"the color {list(color)} is a grey, and a grey object cannot be told by its hue")
        self._share = hue / hue.square().sum()
        self.threshold, self.min_area = threshold, min_area

    def __call__(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Locate the object.

        Args:
            video: Videos `[B, T, 3, H, W]` in [-1, 1].

        Returns:
            Positions (x, y) in pixels, pixel i between i and i + 1, `[B, T, 2]`, the middle of the frame where the
            object is not found; and whether it is, `[B, T]` bool.
        """
        share = torch.einsum("c, bthwc -> bthw", self._share.to(video), _hue(video.movedim(2, -1)))
        weight = (share - self.threshold).clamp_min(0)
        columns, rows = (torch.arange(side, device=video.device) + 0.5 for side in (video.shape[-1], video.shape[-2]))
        area = weight.sum((-1, -2))
        found = area >= self.min_area
        middle = torch.tensor([video.shape[-1] / 2, video.shape[-2] / 2], device=video.device)
        moments = torch.stack([(weight * columns).sum((-1, -2)), (weight * rows[:, None]).sum((-1, -2))], dim=-1)
        position = torch.where(found[..., None], moments / area.clamp_min(self.min_area)[..., None], middle)
        return position.float(), found


def _hue(color: Tensor) -> Tensor:
    """Take the grey out of colours `[..., 3]`."""
    return color - color.mean(dim=-1, keepdim=True)
