from __future__ import annotations

import numpy as np

from lightning_action.recordings.lerobot_statistics import PixelStatistics, column_statistics


def test_pixel_statistics_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    parts = [
        random.integers(3, 200, (5, 7, 9, 3)).astype(np.uint8),
        random.integers(0, 90, (2, 7, 9, 3)).astype(np.uint8),
    ]
    total = PixelStatistics()
    for part in parts:
        other = PixelStatistics()
        for frame in part:
            other.add(frame)
        total.merge(other)
    pixels = np.concatenate(parts).reshape(-1, 3) / 255
    found = {name: np.ravel(value) for name, value in total.statistics().items()}
    for name, expected in (("min", pixels.min(0)), ("max", pixels.max(0)), ("mean", pixels.mean(0))):
        np.testing.assert_allclose(found[name], expected, rtol=1e-12)
    for name, level in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        np.testing.assert_allclose(found[name], np.quantile(pixels, level, axis=0, method="inverted_cdf"), rtol=1e-12)
    assert found["count"] == [7]


def test_whole_numbers_and_switches_have_statistics() -> None:
    whole = column_statistics(np.array([[1], [4], [4]]))
    assert (whole["min"], whole["max"], whole["mean"], whole["count"]) == ([1], [4], [3.0], [3])
    assert column_statistics(np.array([[True], [False]]))["mean"] == [0.5]
