"""Does the video do what the actions said? Displacements of a known object, against the simulator's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

MAX_LAG = 8


class ActionFollowing(Metric):
    """State recovery: sign accuracy, gain, R^2, lag and position error of generated motion.

    Average and final displacement error, `ade_px` and `fde_px`, are those of trajectory forecasting (Gupta et al. 2018,
    arXiv:1803.10892, section 4). A displacement is that of the object over one latent frame. Positions where the object
    was not found repeat the last place it was seen, so a vanished object counts as one that stood still; `missing_rate`
    says how often that was.

    Args:
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        num_initial_frames: Number of pixel frames at the start that were given, not generated.
        threshold_px: True displacements up to this many pixels are left out of the sign accuracy.
    """

    predicted: list[Tensor]
    target: list[Tensor]
    found: list[Tensor]

    def __init__(
        self, temporal_compression_ratio: int = 4, num_initial_frames: int = 1, threshold_px: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temporal_compression_ratio = temporal_compression_ratio
        self.num_initial_frames = num_initial_frames
        self.threshold_px = threshold_px
        for name in ("predicted", "target", "found"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predicted: Tensor, target: Tensor, found: Tensor) -> None:
        """Add videos.

        Args:
            predicted: Positions read off generated videos, in pixels, `[B, T, 2]`.
            target: Positions that the simulator knows, `[B, T, 2]`.
            found: True where the object was there, `[B, T]` bool.
        """
        start = self.num_initial_frames - 1
        self.predicted.append(hold_last_found(predicted, found)[:, start:])
        self.target.append(target[:, start:])
        self.found.append(found[:, start + 1 :])

    def compute(self) -> dict[str, float]:
        """Compute all figures; the functions of this module have the formulas."""
        predicted, target, found = (
            torch.cat(state) if isinstance(state, list) else state
            for state in (self.predicted, self.target, self.found)
        )
        ratio = self.temporal_compression_ratio
        moved, should_move = (positions[:, ::ratio].diff(dim=1) for positions in (predicted, target))
        error = (predicted - target)[:, 1:].norm(dim=-1)
        result = {
            "sign_accuracy": sign_accuracy(moved, should_move, self.threshold_px),
            "ade_px": error.mean().item(),
            "fde_px": error[:, -1].mean().item(),
            "lag_frames": float(lag_frames(predicted.diff(dim=1), target.diff(dim=1))),
            "missing_rate": 1 - found.float().mean().item(),
            "episodes": float(len(target)),
        }
        for axis, name in enumerate("xy"):
            pair = (moved[..., axis].flatten(), should_move[..., axis].flatten())
            result[f"gain_{name}"], result[f"r2_{name}"] = gain_and_r2(*pair)
            result[f"identity_r2_{name}"] = identity_r2(*pair)
            result[f"sign_accuracy_{name}"] = sign_accuracy(*pair, self.threshold_px)
        return result


def hold_last_found(positions: Tensor, found: Tensor) -> Tensor:
    """Put the last place where the object was seen where it is missing; before it was ever seen, its first reading."""
    index = torch.where(found, torch.arange(found.shape[1], device=found.device), 0).cummax(dim=1).values
    return positions.gather(1, index[..., None].expand_as(positions))


def sign_accuracy(predicted: Tensor, target: Tensor, threshold: float) -> float:
    """Compute the share of displacements per axis with the right sign, where the true one exceeds `threshold`.

    Chance is 0.5.
    """
    counted = target.abs() > threshold
    return (predicted.sign() == target.sign())[counted].float().mean().item()


def gain_and_r2(predicted: Tensor, target: Tensor) -> tuple[float, float]:
    """Fit the least-squares slope of generated on true displacement (ideal 1), and R^2 of that line.

    A prediction that never moves has gain 0 and R^2 0.
    """
    x, y = target.double() - target.double().mean(), predicted.double() - predicted.double().mean()
    gain = (x * y).sum() / x.square().sum()
    total = y.square().sum()
    r2 = 1 - (y - gain * x).square().sum() / total if total > 0 else torch.zeros(())
    return gain.item(), r2.item()


def identity_r2(predicted: Tensor, target: Tensor) -> float:
    """Compute `1 - sum (predicted - true)^2 / sum (true - mean)^2`, which is stricter than the R^2 of a fitted line."""
    x, y = target.double(), predicted.double()
    return (1 - (y - x).square().sum() / (x - x.mean()).square().sum()).item()


def lag_frames(predicted: Tensor, target: Tensor, max_lag: int = MAX_LAG) -> int:
    """Count pixel frames by which generated motion trails the true one: the shift with the highest correlation.

    Args:
        predicted: Displacements of each pixel frame, `[B, T, 2]`.
        target: Displacements that the simulator knows, `[B, T, 2]`.
        max_lag: Largest shift tried in either direction.
    """
    steps = target.shape[1]
    reach = max(0, min(max_lag, steps - 2))
    scores = {}
    for lag in range(-reach, reach + 1):
        late = predicted[:, max(lag, 0) : steps + min(lag, 0)]
        early = target[:, max(-lag, 0) : steps + min(-lag, 0)]
        scores[lag] = correlation(late.flatten(), early.flatten())
    return max(scores, key=lambda lag: (scores[lag], -abs(lag)))


def correlation(a: Tensor, b: Tensor) -> float:
    """Compute Pearson's r; 0 where one side does not vary."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = a.norm() * b.norm()
    return (a @ b / scale).item() if scale > 0 else 0.0
