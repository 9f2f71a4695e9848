"""Figures of the way from a step to its pixels."""

from __future__ import annotations

import pytest

from lightning_action.play.latency import Latencies, as_scalars


def test_median_and_tail_of_what_was_measured() -> None:
    latencies = Latencies()
    assert latencies.quantiles() == {}
    for value in range(101):
        latencies.add({"generate": float(value)})
    latencies.add({"key": 0.25})
    assert latencies.quantiles() == {"generate": (50.0, 95.0), "key": (0.25, 0.25)}


def test_the_last_ones_are_kept_alone() -> None:
    latencies = Latencies()
    for value in [1.0] * 1000 + [3.0] * 512:
        latencies.add({"send": value})
    assert latencies.quantiles() == {"send": (3.0, 3.0)}


def test_a_part_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError):
        Latencies().add({"think": 1.0})


def test_tensorboard_shows_them_in_the_words_of_the_throughput_monitor() -> None:
    assert as_scalars({"generate": (0.5, 0.75), "pixels": (1.0, 2.0)}, 16.0) == {
        "throughput/play/video_frames_per_second_with_vae": 16.0,
        "throughput/play/block_seconds_p50": 0.5,
        "throughput/play/block_seconds_p95": 0.75,
        "throughput/play/pixels_seconds_p50": 1.0,
        "throughput/play/pixels_seconds_p95": 2.0,
    }
    assert as_scalars({}, 2.0) == {"throughput/play/video_frames_per_second_with_vae": 2.0}
