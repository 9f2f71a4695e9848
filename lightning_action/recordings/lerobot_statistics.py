"""Statistics that a LeRobot folder keeps of its columns and pixels, of which neither is held in memory as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np

Statistics = dict[str, list[Any]]

_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def column_statistics(values: np.ndarray) -> Statistics:
    """Return the statistics of each column of `[rows, columns]`."""
    values = values.astype(np.float64) if values.dtype == bool else values
    exact = values.astype(np.float64)
    quantiles = np.quantile(exact, list(_QUANTILES.values()), axis=0)
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": exact.mean(0).tolist(),
        "std": exact.std(0).tolist(),
        "count": [len(values)],
        **{name: row.tolist() for name, row in zip(_QUANTILES, quantiles, strict=True)},
    }


class PixelStatistics:
    """Statistics of the pixels of any number of frames, exact: 8-bit values are counted, not kept."""

    def __init__(self) -> None:
        self.num_frames = 0
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, frame: np.ndarray) -> None:
        """Count the pixels of a frame `[H, W, 3]` of uint8."""
        self.num_frames += 1
        self._counts += [np.bincount(frame[..., channel].ravel(), minlength=256) for channel in range(3)]

    def merge(self, other: PixelStatistics) -> None:
        """Add the frames of another one."""
        self.num_frames += other.num_frames
        self._counts += other._counts

    def statistics(self) -> Statistics:
        """Return the statistics of the three channels, each value as `[3, 1, 1]` in [0, 1]."""
        values = np.arange(256) / 255
        share = self._counts / self._counts.sum(1, keepdims=True)
        mean = share @ values
        cumulated = share.cumsum(1)
        found = {
            "min": values[(share > 0).argmax(1)],
            "max": values[255 - (share > 0)[:, ::-1].argmax(1)],
            "mean": mean,
            "std": np.sqrt((share * (values - mean[:, None]) ** 2).sum(1)),
            # The smallest value that such a share of the pixels does not exceed; sums of shares are rounded.
            **{name: values[(cumulated >= level - 1e-12).argmax(1)] for name, level in _QUANTILES.items()},
        }
        nested = {name: each.reshape(3, 1, 1).tolist() for name, each in found.items()}
        return {**nested, "count": [self.num_frames]}
