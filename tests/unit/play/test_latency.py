"""Figures of the way from a step to its pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_action.play.latency import Latencies, LatencyLog, as_scalars


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


def test_tensorboard_shows_them_in_the_words_of_the_throughput_monitor(tmp_path: Path) -> None:
    log = LatencyLog(tmp_path)
    log.write({"generate": (0.5, 0.75), "pixels": (1.0, 2.0)}, 16.0, 40)
    log.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    shown = {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}
    assert shown == {
        "throughput/play/video_frames_per_second_with_vae": [(40, 16.0)],
        "throughput/play/block_seconds_p50": [(40, 0.5)],
        "throughput/play/block_seconds_p95": [(40, 0.75)],
        "throughput/play/pixels_seconds_p50": [(40, 1.0)],
        "throughput/play/pixels_seconds_p95": [(40, 2.0)],
    }


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log = LatencyLog(None)
    log.write({"send": (0.5, 0.5)}, 1.0, 1)
    log.close()
    assert not list(tmp_path.iterdir())
    assert as_scalars({}, 2.0) == {"throughput/play/video_frames_per_second_with_vae": 2.0}
