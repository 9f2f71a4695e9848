"""Tests of whether a video does what its actions said: displacements of a known object, against the simulator's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lightning_action.evaluation.metrics.episode_metric import EpisodeMetric, mean, ratio

MAX_LAG = 8
_ROUNDING = 1e-4


class ActionFollowing(EpisodeMetric):
    """State recovery: what the object did, against what the actions said, by a simulator that knows it.

    A displacement is that of the object over one latent frame, unless said otherwise. Positions where the object was
    not found repeat the last place it was seen, so a vanished object counts as one that stood still; `missing_rate`
    says how often that was.

    - `gain_x`, `r2_x`: least-squares slope of generated on true displacement, and R^2 of that line; ideal 1, blind 0.
      `identity_r2_x` fits no line, so that a wrong gain counts. The same for y.
    - `sign_accuracy`: share of displacements per axis with the right sign; ideal 1, chance 0.5, standing still 0.
    - `ade_px`, `fde_px`: average and final displacement error of trajectory forecasting (Gupta et al. 2018,
      arXiv:1803.10892, section 4); ideal 0. Where nothing should move, the latter is the drift.
    - `lag_frames`: shift of highest correlation, as time delays are found (Knapp and Carter 1976,
      doi:10.1109/TASSP.1976.1162830); ideal 0, above 0 where generated motion comes late. `lag_correlation` is that
      correlation; where it is low, the shift means nothing.
    - `cross_talk_x_to_y`: pixels along y for each pixel that was commanded along x, all else equal, and the other way
      round; ideal 0, 1 where the axes are swapped. With the gains it is the matrix of slopes.
    - `gain_speed_q1` to `_q4`, `r2_...`, `sign_accuracy_...`: both axes together, by quartile of the true speed, from
      the slowest; those where nothing should move are left out. `speed_q1_px` is the mean speed, in pixels a latent
      frame.
    - `response_phase_1` to `_r`: slope of the displacement over a latent frame on the true displacement in each of its
      r pixel frames, all else equal; ideal 1 each. A model that uses only the last of four actions has 0 in the first
      three; one that comes a frame late has 0 in the last.

    Metrics without a source are this project's own: regression and correlation of displacements.

    Args:
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        num_initial_frames: Number of pixel frames at the start that were given, not generated.
        threshold_px: True displacements up to this many pixels are left out of the sign accuracy.
    """

    def __init__(
        self, temporal_compression_ratio: int = 4, num_initial_frames: int = 1, threshold_px: float = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(["predicted", "target", "found"], **kwargs)
        self.temporal_compression_ratio = temporal_compression_ratio
        self.num_initial_frames = num_initial_frames
        self.threshold_px = threshold_px

    def update(self, predicted: Tensor, target: Tensor, found: Tensor) -> None:
        """Add videos.

        Args:
            predicted: Positions read off generated videos, in pixels, `[B, T, 2]`.
            target: Positions that the simulator knows, `[B, T, 2]`.
            found: True where the object was there, `[B, T]` bool.
        """
        start = self.num_initial_frames - 1
        held = hold_last_found(predicted, found)
        self._add(predicted=held[:, start:], target=target[:, start:], found=found[:, start + 1 :])

    def figures(self, episodes: dict[str, Tensor]) -> dict[str, float]:
        predicted, target, found = (episodes[name] for name in self.names)
        ratio = self.temporal_compression_ratio
        moved, should_move = (positions[:, ::ratio].diff(dim=1) for positions in (predicted, target))
        error = (predicted - target)[:, 1:].norm(dim=-1)
        lag, lag_correlation = best_lag(predicted.diff(dim=1), target.diff(dim=1))
        result = {
            "sign_accuracy": sign_accuracy(moved, should_move, self.threshold_px),
            "ade_px": error.mean().item(),
            "fde_px": error[:, -1].mean().item(),
            "lag_frames": float(lag),
            "lag_correlation": lag_correlation,
            "missing_rate": 1 - found.float().mean().item(),
            "episodes": float(len(target)),
        }
        for axis, name in enumerate("xy"):
            pair = (moved[..., axis].flatten(), should_move[..., axis].flatten())
            result[f"gain_{name}"], result[f"r2_{name}"] = gain_and_r2(*pair)
            result[f"identity_r2_{name}"] = identity_r2(*pair)
            result[f"sign_accuracy_{name}"] = sign_accuracy(*pair, self.threshold_px)
        return {
            **result,
            **cross_talk(moved, should_move),
            **by_speed(moved, should_move, self.threshold_px),
            **response_by_phase(moved, target, ratio),
        }

    def curves(self) -> dict[str, Tensor]:
        """Give the mean position error of each generated frame, `position_error_px`; every rank must call it."""
        episodes = self.episodes()
        error = (episodes["predicted"] - episodes["target"])[:, 1:].norm(dim=-1)
        return {"position_error_px": error.mean(dim=0)}

    def per_episode(self) -> dict[str, Tensor]:
        episodes, each = self.episodes(), self._figures_of_each(self.figures)
        if not each:
            return each
        ratio = self.temporal_compression_ratio
        moved, should_move = (episodes[name][:, ::ratio].diff(dim=1) for name in ("predicted", "target"))
        # The slopes in one episode alone are those of few latent frames, or none.
        x_to_y, y_to_x = (slope_shares(moved[..., 1 - axis], should_move)[:, axis] for axis in range(2))
        return {**each, "cross_talk_x_to_y": x_to_y, "cross_talk_y_to_x": y_to_x}


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

    Of numbers `[n]`, or of vectors `[n, D]`. A prediction that never moves has gain 0 and R^2 0.
    """
    x, y = centred(target), centred(predicted)
    gain = (x * y).sum() / x.square().sum()
    total = y.square().sum()
    r2 = 1 - (y - gain * x).square().sum() / total if total > 0 else torch.zeros(())
    return gain.item(), r2.item()


def identity_r2(predicted: Tensor, target: Tensor) -> float:
    """Compute `1 - sum (predicted - true)^2 / sum (true - mean)^2`, which is stricter than the R^2 of a fitted line."""
    x, y = target.double(), predicted.double()
    return 1 - ratio((y - x).square().sum().item(), centred(x).square().sum().item())


def best_lag(predicted: Tensor, target: Tensor, max_lag: int = MAX_LAG) -> tuple[int, float]:
    """Find by how many pixel frames generated motion trails the true one: the shift with the highest correlation.

    Args:
        predicted: Displacements of each pixel frame, `[B, T, 2]`.
        target: Displacements that the simulator knows, `[B, T, 2]`.
        max_lag: Largest shift tried in either direction.

    Returns:
        The shift, and the correlation.
    """
    steps = target.shape[1]
    reach = max(0, min(max_lag, steps - 2))
    scores = {}
    for lag in range(-reach, reach + 1):
        late = predicted[:, max(lag, 0) : steps + min(lag, 0)]
        early = target[:, max(-lag, 0) : steps + min(-lag, 0)]
        scores[lag] = correlation(late.flatten(), early.flatten())
    best = max(scores, key=lambda lag: (scores[lag], -abs(lag)))
    return best, scores[best]


def cross_talk(predicted: Tensor, target: Tensor) -> dict[str, float]:
    """Compute how much moves along one axis for each pixel that the other one should, of displacements `[..., 2]`."""
    commands = target.flatten(end_dim=-2)
    from_x_and_y = [partial_slopes(predicted[..., axis].flatten(), commands) for axis in range(2)]
    return {"cross_talk_x_to_y": from_x_and_y[1][0], "cross_talk_y_to_x": from_x_and_y[0][1]}


def by_speed(predicted: Tensor, target: Tensor, threshold: float) -> dict[str, float]:
    """Compute gain, R^2 and sign accuracy in each quartile of the true speed, of displacements `[..., 2]`."""
    predicted, target = predicted.flatten(end_dim=-2), target.flatten(end_dim=-2)
    speed = target.norm(dim=-1)
    predicted, target, speed = (each[speed > 0] for each in (predicted, target, speed))
    borders = speed.quantile(torch.tensor([0.25, 0.5, 0.75]).to(speed)) if len(speed) else speed.new_zeros(3)
    quartile = torch.bucketize(speed, borders)
    result = {}
    for index in range(4):
        inside = quartile == index
        pair = predicted[inside].flatten(), target[inside].flatten()
        gain, r2 = gain_and_r2(*pair)
        result[f"speed_q{index + 1}_px"] = mean(speed[inside])
        result[f"gain_speed_q{index + 1}"] = gain
        result[f"r2_speed_q{index + 1}"] = math.nan if math.isnan(gain) else r2
        result[f"sign_accuracy_speed_q{index + 1}"] = sign_accuracy(*pair, threshold)
    return result


def response_by_phase(moved: Tensor, target: Tensor, temporal_compression_ratio: int) -> dict[str, float]:
    """Compute the part that the true motion in each pixel frame of a latent frame has in the generated one over it.

    Args:
        moved: Generated displacements over latent frames, `[B, F, 2]`.
        target: True positions from the pixel frame at which they begin, `[B, 1 + r F, 2]` or longer.
        temporal_compression_ratio: Number r of pixel frames of a latent frame.
    """
    count = moved.shape[1] * temporal_compression_ratio
    steps = target.diff(dim=1)[:, :count].unflatten(1, (-1, temporal_compression_ratio))
    slopes = partial_slopes(moved.flatten(), steps.movedim(2, -1).flatten(end_dim=-2))
    return {f"response_phase_{phase}": slope for phase, slope in enumerate(slopes, start=1)}


def partial_slopes(predicted: Tensor, target: Tensor) -> list[float]:
    """Fit the slopes of one variable on several others, by least squares and with an intercept.

    Args:
        predicted: Values of the one, `[n]`.
        target: Values of the others, `[n, k]`.

    Returns:
        Slopes `[k]`, NaN where the values do not tell them: one does not vary, or only together with others.
    """
    x, y = (centred(values.cpu()) for values in (target, predicted))
    return _slopes(x, y)[0].tolist()


def slope_shares(predicted: Tensor, target: Tensor) -> Tensor:
    """Share the slopes of `partial_slopes` among episodes, by what each does to them, to first order.

    A share is the slope plus its influence function (Hampel 1974, "The influence curve and its role in robust
    estimation") at the episode.

    Args:
        predicted: Values of the one, `[B, n]`.
        target: Values of the others, `[B, n, k]`.

    Returns:
        `[B, k]`, whose means over the episodes are the slopes; NaN where those are.
    """
    x, y = centred(target.flatten(0, 1).cpu()), centred(predicted.flatten().cpu())
    slopes, inverse = _slopes(x, y)
    by_episode = (inverse * (y - x @ slopes.nan_to_num())).unflatten(1, predicted.shape).sum(dim=-1)
    return slopes + len(predicted) * by_episode.T


def _slopes(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes `[k]` of centred values `[n]` on others `[n, k]`, NaN where they are not told, and the pseudo-inverse."""
    inverse = torch.linalg.pinv(x, rtol=1e-4)
    told = (inverse @ x).diagonal() > 0.999
    return torch.where(told, inverse @ y, math.nan), inverse


def centred(values: Tensor) -> Tensor:
    """Subtract the mean of numbers `[n]`, or of each component of vectors `[n, D]`, in double precision.

    What differs by less than a ten-thousandth of its size does not vary: positions are rounded, and a slope on rounding
    would be any number.
    """
    values = values.double()
    apart = values - values.mean(dim=0)
    if not values.shape[0]:
        return apart
    spread, size = (vector_norm(each, math.inf, dim=0) for each in (apart, values))
    return torch.where(spread > _ROUNDING * size, apart, 0.0)


def correlation(a: Tensor, b: Tensor) -> float:
    """Compute Pearson's r of numbers `[n]`, or of all numbers of vectors `[n, D]`; 0 where one side does not vary."""
    a, b = centred(a), centred(b)
    scale = vector_norm(a) * vector_norm(b)
    return ((a * b).sum() / scale).item() if scale > 0 else 0.0
