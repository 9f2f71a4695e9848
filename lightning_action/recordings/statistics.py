"""Figures of the columns of recorded actions, computed in one pass, and the schema that follows from them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lightning_action.action.schema import ActionPart, ActionSchema, Alignment, Combine

# Classes that a column of whole numbers may have, to be taken for discrete.
_MAX_CLASSES = 64
# What `ActionPart` warns of, in halves of the range from q01 to q99.
_FAR_OUTSIDE = 4
_FULL_TURNS = (2 * math.pi, 360.0)
_GRIPPER, _ANGLE = re.compile("grip|claw", re.IGNORECASE), re.compile("yaw|pitch|roll|angle|theta|rot", re.IGNORECASE)


@dataclass(frozen=True)
class ColumnStatistics:
    """Figures of one column of the action rows.

    Args:
        name: Name of the column.
        mean: Mean.
        std: Standard deviation.
        low: Smallest value.
        high: Largest value.
        q01: First percentile.
        q99: Last percentile.
        num_values: Number of different values, counted up to three.
        largest_step: Largest change from one row to the next.
        is_whole: True if all values are whole numbers.
    """

    name: str
    mean: float
    std: float
    low: float
    high: float
    q01: float
    q99: float
    num_values: int
    largest_step: float
    is_whole: bool

    @property
    def is_constant(self) -> bool:
        """True if the column has one value alone."""
        return self.low == self.high

    def bounds(self) -> tuple[float, float]:
        """Return what maps to -1 and to 1: the percentiles, or the extremes where most values are one and the same."""
        low, high = (self.q01, self.q99) if self.q01 < self.q99 else (self.low, self.high)
        if np.float32(low) < np.float32(high):
            return low, high
        return low - 1, high + 1

    def remarks(self) -> list[str]:
        """Name what a user should know before training."""
        found = []
        if self.is_constant:
            found.append(f"{self.name} is constant ({self.low:g}): it says nothing, and encodes as 0")
        low, high = self.bounds()
        middle, half = (low + high) / 2, (high - low) / 2
        if max(self.high - middle, middle - self.low) > _FAR_OUTSIDE * half:
            found.append(f"{self.name} has outliers: from {self.low:g} to {self.high:g}, 98 % in [{low:g}, {high:g}]")
        if self.num_values == 2 or (_GRIPPER.search(self.name) and not self.is_constant):
            kind = "two values alone" if self.num_values == 2 else "by its name"
            found.append(f"{self.name} seems to be a gripper or a switch ({kind}): {self.low:g} and {self.high:g}")
        span = self.high - self.low
        wraps = any(0.9 * turn < self.largest_step <= span <= 1.02 * turn for turn in _FULL_TURNS)
        if wraps:
            found.append(f"{self.name} is an angle that wraps around: neighbours at its ends encode as opposites")
        elif _ANGLE.search(self.name):
            found.append(f"{self.name} seems to be an angle, by its name: see that it does not wrap around")
        return found


def measure(episodes: Iterable[np.ndarray], names: Sequence[str], num_rows: int) -> list[ColumnStatistics]:
    """Measure the columns of action rows, in one pass.

    A percentile needs its own tail alone, so 2 % of the rows are held, however many there are.

    Args:
        episodes: Action rows of each episode, `[rows, columns]`.
        names: Names of the columns.
        num_rows: Number of rows of all episodes.

    Raises:
        ValueError: The rows are none, or more or fewer than `num_rows`.
    """
    tail = 2 + int(0.01 * num_rows)
    width = len(names)
    smallest = largest = np.zeros((0, width))
    mean, squares, step = np.zeros(width), np.zeros(width), np.zeros(width)
    whole = np.ones(width, bool)
    values: list[set[float]] = [set() for _ in names]
    count = 0
    for rows in episodes:
        if not len(rows):
            continue
        rows = rows.astype(np.float64)
        # Moments of two parts joined: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".
        total = count + len(rows)
        shift = rows.mean(0) - mean
        squares += ((rows - rows.mean(0)) ** 2).sum(0) + shift**2 * count * len(rows) / total
        mean, count = mean + shift * len(rows) / total, total
        smallest = np.sort(np.concatenate([smallest, rows]), axis=0)[:tail]
        largest = np.sort(np.concatenate([largest, rows]), axis=0)[-tail:]
        step = np.maximum(step, np.abs(np.diff(rows, axis=0)).max(0, initial=0))
        whole &= (rows == rows.round()).all(0)
        for column, seen in enumerate(values):
            if len(seen) < 3:
                seen.update(np.unique(rows[:, column])[: 3 + len(seen)].tolist())
    if count != num_rows or not count:
        raise ValueError(f"expected {num_rows} action rows to measure, at least one, got {count}")
    position = 0.01 * (count - 1)
    q01 = _between(smallest, position)
    q99 = _between(largest, len(largest) - 1 - position)
    return [
        ColumnStatistics(
            name=name,
            mean=float(mean[i]),
            std=float(math.sqrt(squares[i] / count)),
            low=float(smallest[0, i]),
            high=float(largest[-1, i]),
            q01=float(q01[i]),
            q99=float(q99[i]),
            num_values=min(3, len(values[i])),
            largest_step=float(step[i]),
            is_whole=bool(whole[i]),
        )
        for i, name in enumerate(names)
    ]


def count_classes(episodes: Iterable[np.ndarray]) -> list[int] | None:
    """Count the classes of each column of action rows.

    Classes are a vocabulary and not a statistic: all episodes are counted, those that nothing trains on included.

    Args:
        episodes: Action rows of each episode, `[rows, columns]`.

    Returns:
        The largest value of each column, plus 1; None if values are no whole numbers from 0 to 255.
    """
    largest: np.ndarray | int = 0
    for rows in episodes:
        if (rows != rows.round()).any() or rows.min() < 0 or rows.max() >= _MAX_CLASSES:
            return None
        largest = np.maximum(largest, rows.max(0))
    return [int(value) + 1 for value in np.atleast_1d(largest)]


def schema_from(
    statistics: Sequence[ColumnStatistics],
    num_classes: Sequence[int] | None,
    alignment: Alignment,
    combine: Combine,
    temporal_compression_ratio: int,
    rows_per_frame: int,
) -> ActionSchema:
    """Make the schema of measured actions.

    Args:
        statistics: Figures of the columns.
        num_classes: Number of classes of each column; None if their values are no classes.
        alignment: Rule of which rows belong to which latent frame.
        combine: Way in which the rows of a latent frame become one vector.
        temporal_compression_ratio: Number of pixel frames of a latent frame.
        rows_per_frame: Number of action rows of a pixel frame.
    """
    if num_classes is not None:
        parts = [ActionPart(each.name, "discrete", count) for each, count in zip(statistics, num_classes, strict=True)]
    else:
        bounds = [each.bounds() for each in statistics]
        low, high = ([_rounded(value) for value in side] for side in zip(*bounds, strict=True))
        names = [each.name for each in statistics]
        labels = names if len(set(names)) == len(names) else None
        parts = [ActionPart("action", "continuous", len(bounds), low, high, labels)]
    return ActionSchema(parts, alignment, combine, temporal_compression_ratio, rows_per_frame)


def _between(sorted_rows: np.ndarray, position: float) -> np.ndarray:
    """Interpolate between neighbours, as `numpy.quantile` does."""
    below = math.floor(position)
    above = min(below + 1, len(sorted_rows) - 1)
    lower: np.ndarray = sorted_rows[below] + (position - below) * (sorted_rows[above] - sorted_rows[below])
    return lower


def _rounded(value: float) -> float:
    """Keep six digits, which is what a reader of a configuration can take in."""
    return float(f"{value:.6g}")
