"""Estimate of how many frames pixels answer an action late: is the alignment of a recording right?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Cells of a side in which motion is measured.
_CELLS = 4
# Longer side of the frames that motion is measured in.
_SIDE = 64
_RIDGE = 0.3
# Part of the actions' variance that motion must explain for a verdict, and how often as much as at any other lag:
# things that answer slowly, to commands of a place or of a force, answer at several lags about as much.
_LEAST_SCORE, _LEAST_RATIO = 0.05, 1.3
# Motions from which chance alone explains less than that.
_LEAST_MOTIONS = 150
# Part of the mean deviation of features that is taken for that of one which hardly varies, such as a cell that nothing
# enters in one half of the clips.
_LEAST_DEVIATION = 0.3


@dataclass(frozen=True)
class LagEstimate:
    """Part of action row k - lag that motion between frames k and k + 1 tells, for each lag.

    Args:
        scores: Part of the variance of the actions, or of their changes, that motion explains in clips it was not
            fitted to, by lag; 0 is chance, 1 all of it.
    """

    scores: dict[int, float]

    @property
    def lag(self) -> int:
        """Lag with the highest score: 0 where row k leads from frame k to k + 1."""
        return max(self.scores, key=lambda lag: (self.scores[lag], -abs(lag)))

    @property
    def is_certain(self) -> bool:
        """True if motion tells the actions at all, and best at one lag inside those that were tried."""
        others = [score for lag, score in self.scores.items() if lag != self.lag]
        return abs(self.lag) < max(self.scores) and self.scores[self.lag] > max(
            _LEAST_SCORE, _LEAST_RATIO * max(others)
        )

    def verdict(self) -> str:
        """Say in a sentence what follows for the alignment."""
        best = self.scores[self.lag]
        near = [lag for lag, score in self.scores.items() if score > best / _LEAST_RATIO]
        if best <= _LEAST_SCORE:
            return f"cannot tell: motion explains {best:.0%} of the actions at most, at any lag"
        if abs(self.lag) == max(self.scores):
            return (
                f"cannot tell: motion explains {best:.0%} of the actions at lag {self.lag}, the largest that is tried"
            )
        if not self.is_certain:
            return (
                f"cannot tell: motion explains about as much of the actions, up to {best:.0%}, at the lags "
                f"{', '.join(map(str, near))}: things answer slowly, as to commands of a place or a force, or actions "
                "are held long"
            )
        found = f"lag {self.lag}: motion from frame k to k + 1 explains {best:.0%} of the actions of row "
        if self.lag == 0:
            return f"{found}k, as alignment: transition says"
        if self.lag == -1:
            return f"{found}k + 1, recorded when it was over: alignment: state fits better than transition"
        told = f"k - {self.lag}: pixels answer {self.lag} frames late" if self.lag > 0 else f"k + {-self.lag}"
        return f"{found}{told}. Shift the action rows, or see whether the clocks of camera and actions agree"


def estimate_lag(clips: Sequence[tuple[Tensor, Tensor]], max_lag: int = 4) -> LagEstimate:
    """Estimate the lag between pixels and actions, by ridge regression of actions on motion.

    Motion is the product of spatial and temporal derivatives of brightness, summed over the cells of a grid (Lucas and
    Kanade 1981, "An iterative image registration technique", equation 5, its right side), and its amount. The clips of
    odd numbers are explained by the fit to those of even ones, and the other way round.

    Args:
        clips: At least two videos `[T, 3, H, W]` in [-1, 1], with action rows of the transitions, `[T - 1, columns]`.
        max_lag: Largest lag that is tried, in either direction.

    Raises:
        ValueError: Fewer than two clips are long enough, or they have too few frames to tell.
    """
    long_enough = [(video, action) for video, action in clips if len(action) > 2 * max_lag + 2]
    if len(long_enough) < 2:
        raise ValueError(f"expected at least two clips of more than {2 * max_lag + 3} frames, got {len(long_enough)}")
    num_motions = sum(len(action) - 2 * max_lag for _, action in long_enough)
    if num_motions < _LEAST_MOTIONS:
        raise ValueError(
            f"{num_motions} motions between frames are too few, expected at least {_LEAST_MOTIONS} behind the first "
            f"{max_lag} and before the last of each clip"
        )
    motions = [_motion(video) for video, _ in long_enough]
    targets = [_targets(action) for _, action in long_enough]
    reach = range(-max_lag, max_lag + 1)
    return LagEstimate({lag: _score(motions, targets, lag, max_lag) for lag in reach})


def _motion(video: Tensor) -> Tensor:
    """Describe the motion of each transition, `[T - 1, features]`."""
    grey = video.mean(dim=1, keepdim=True)
    factor = max(1, max(grey.shape[-2:]) // _SIDE)
    # Smooth edges: a motion of more pixels than an edge is wide has derivatives that say nothing of it.
    smooth = F.avg_pool2d(F.avg_pool2d(grey, factor), 3, stride=1, padding=1, count_include_pad=False)
    middle = (smooth[1:] + smooth[:-1]) / 2
    change = (smooth[1:] - smooth[:-1])[..., 1:-1, 1:-1]
    along_x = (middle[..., 1:-1, 2:] - middle[..., 1:-1, :-2]) / 2
    along_y = (middle[..., 2:, 1:-1] - middle[..., :-2, 1:-1]) / 2
    products = torch.cat([-along_x * change, -along_y * change, change.abs()], dim=1)
    cells = F.adaptive_avg_pool2d(products, _CELLS)
    # Contrast, which scales the products, differs from clip to clip.
    scale = cells.square().mean(dim=(0, 2, 3), keepdim=True).sqrt().clamp_min(1e-12)
    cells = cells / scale
    return torch.cat([cells.flatten(1), cells.mean(dim=(2, 3))], dim=1).double()


def _targets(action: Tensor) -> Tensor:
    """Actions and their changes, `[T - 1, 2 columns]`: a position that is commanded moves things when it changes."""
    action = action.double()
    change = torch.cat([torch.zeros_like(action[:1]), action.diff(dim=0)])
    return torch.cat([action, change], dim=1)


def _score(motions: Sequence[Tensor], targets: Sequence[Tensor], lag: int, max_lag: int) -> float:
    """Explain row k - lag by motion k; all lags are measured on the same motions."""
    halves: list[tuple[Tensor, Tensor]] = []
    for half in range(2):
        x = torch.cat([motion[max_lag : len(motion) - max_lag] for motion in motions[half::2]])
        y = torch.cat([each[max_lag - lag : len(each) - max_lag - lag] for each in targets[half::2]])
        halves.append((x, y))
    explained = torch.stack([_explained(halves[0], halves[1]), _explained(halves[1], halves[0])]).mean(dim=0)
    rows, changes = explained.clamp_min(0).chunk(2)
    return float(torch.maximum(rows, changes).mean())


def _explained(fitted: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> Tensor:
    """Compute R^2 of each column of a ridge regression, on data that it was not fitted to."""
    x, y = fitted
    mean, deviation = x.mean(dim=0), x.std(dim=0)
    deviation = deviation.clamp_min(float(_LEAST_DEVIATION * deviation.square().mean().sqrt()) + 1e-12)
    x, centre = (x - mean) / deviation, y.mean(dim=0)
    gram = x.T @ x / len(x) + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ (y - centre) / len(x))
    other_x, other_y = held_out
    error = other_y - centre - (other_x - mean) / deviation @ weights
    variance = (other_y - other_y.mean(dim=0)).square().mean(dim=0)
    return torch.where(variance > 0, 1 - error.square().mean(dim=0) / variance.clamp_min(1e-12), 0.0)
