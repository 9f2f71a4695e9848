"""Realism of an object that moves by chance: as strong, as small and as fast as in true videos.

No video of it can be right or wrong, so distributions are compared. A model that predicts the mean of the futures shows
a smear: of less contrast, larger, and slower than any one future.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

# Share of the object's area that must be seen for its place to count.
_SEEN = 0.25
# Shares below are not the object's: what else is there mixes a little of every colour.
_FLOOR = 0.1
_NUM_QUANTILES = 1000


class RandomObject(NamedTuple):
    """Observation of an object in each frame.

    Args:
        contrast: Mean share of the object in the pixels that show it most, as many as half of its area, `[B, T]`.
        size: Number of pixels that it is spread over, `[B, T]`; NaN where it is not seen.
        position: Centre in pixels (x, y), `[B, T, 2]`; NaN where it is not seen.
    """

    contrast: Tensor
    size: Tensor
    position: Tensor


def object_share(video: Tensor, background: Tensor, color: Tensor, other: Tensor) -> Tensor:
    """Compute how much of each pixel is the object, where pixels mix a background, the object and another one.

    Least squares over red, green and blue: `pixel - background = s (color - background) + o (other - background)`.

    Args:
        video: Videos `[B, T, 3, H, W]`.
        background: Pictures behind both, `[B, 3, H, W]`.
        color: Colour of the object, `[3]`.
        other: Colour of the other one, `[B, 3]`.

    Returns:
        The share s, `[B, T, H, W]`, cut to 0 to 1.
    """
    behind = background[:, None]
    own, its, seen = color[:, None, None] - behind, other[:, None, :, None, None] - behind, video - behind

    def dot(one: Tensor, two: Tensor) -> Tensor:
        return (one * two).sum(dim=2)

    both = dot(own, its)
    determinant = dot(own, own) * dot(its, its) - both.square()
    share = (dot(its, its) * dot(own, seen) - both * dot(its, seen)) / determinant.clamp_min(1e-6)
    return share.clamp(0, 1)


def look_at(share: Tensor, area: float) -> RandomObject:
    """Measure an object of a known area, in pixels, by its share of each pixel, `[B, T, H, W]`.

    The size is `(sum s)^2 / sum s^2`: the area of a disc that is there, and more for one that is spread out. Size and
    place are those of what is more than a trace.
    """
    contrast = share.flatten(2).topk(max(1, round(area / 2)), dim=-1).values.mean(dim=-1)
    share = torch.where(share < _FLOOR, 0, share)
    flat = share.flatten(2)
    mass = flat.sum(dim=-1)
    seen = mass > _SEEN * area
    size = mass.square() / flat.square().sum(dim=-1).clamp_min(1e-6)
    rows, columns = (torch.arange(side, dtype=share.dtype) + 0.5 for side in share.shape[-2:])
    center = torch.stack([(share.sum(2) * columns).sum(-1), (share.sum(3) * rows).sum(-1)], dim=-1)
    position = center / mass.clamp_min(1e-6)[..., None]
    return RandomObject(contrast, torch.where(seen, size, torch.nan), torch.where(seen[..., None], position, torch.nan))


def displacements(found: RandomObject, num_frames: int) -> Tensor:
    """Measure how far the object has gone after some frames, wherever it was seen at both ends, in pixels, `[N]`."""
    moved = found.position[:, num_frames:] - found.position[:, :-num_frames]
    return _seen(moved.norm(dim=-1).flatten())


def wasserstein(one: Tensor, other: Tensor) -> float:
    """Wasserstein-1 distance of two sets of numbers: the mean distance of their quantiles, of sets of any size."""
    if not len(one) or not len(other):
        return float("nan")
    places = (torch.arange(_NUM_QUANTILES, dtype=torch.float64) + 0.5) / _NUM_QUANTILES
    quantiles = [_at(values.double().sort().values, places) for values in (one, other)]
    return float((quantiles[0] - quantiles[1]).abs().mean())


def _at(ordered: Tensor, places: Tensor) -> Tensor:
    """The value of the empirical distribution at each place in (0, 1)."""
    return ordered[(places * len(ordered)).long().clamp_max(len(ordered) - 1)]


def realism(generated: RandomObject, true: RandomObject, num_frames: int) -> Mapping[str, float]:
    """Compare what is seen of the object in generated and in true videos.

    Args:
        generated: Observation of it in generated frames.
        true: Observation of it in as many true ones.
        num_frames: Number of frames that displacements are measured over.

    Returns:
        `realism_distance`, the mean of three Wasserstein distances, each over the true mean: of contrasts, sizes and
        displacements (ideal 0). And these three, and the generated means over the true ones: `contrast`, `size` and
        `displacement` (ideal 1).
    """
    pairs = {
        "contrast": (generated.contrast.flatten(), true.contrast.flatten()),
        "size": (_seen(generated.size), _seen(true.size)),
        "displacement": (displacements(generated, num_frames), displacements(true, num_frames)),
    }
    distances = {name: wasserstein(*pair) / float(pair[1].mean()) for name, pair in pairs.items()}
    means = {name: float(pair[0].mean()) / float(pair[1].mean()) for name, pair in pairs.items()}
    apart = {f"{name}_distance": distance for name, distance in distances.items()}
    return {"realism_distance": sum(distances.values()) / len(distances), **means, **apart}


def _seen(values: Tensor) -> Tensor:
    return values[~values.isnan()]


def determined_psnr(video: Tensor, truth: Tensor, by_chance: Tensor) -> float:
    """PSNR in dB of what is not left to chance, of videos `[B, T, 3, H, W]` in [0, 1].

    Args:
        video: Generated videos.
        truth: True ones.
        by_chance: Pixels that show the random object in either, `[B, T, H, W]` bool, which do not count.
    """
    error = (video - truth).square().mean(dim=2)[~by_chance].mean()
    return float(-10 * error.log10())
