from __future__ import annotations

import numpy as np
import pytest

from lightning_action.action.schema import ActionSchema
from lightning_action.recordings.frame_fit import FrameFit
from lightning_action.recordings.recorded_clip import RecordedClip, Timing
from lightning_action.recordings.recording import Episode
from tests.support.written_videos import numbered_frames


def clip(recorded_fps: float, fps: float, alignment: str = "transition", count: int = 31) -> RecordedClip:
    rows = np.stack([np.arange(count), np.arange(count) + 100], axis=1).astype(np.float32)
    cameras = (numbered_frames(count).__getitem__,) * 2
    episode = Episode(0, "a", "", cameras, count, ((32, 48), (32, 48)), rows)
    timing, fit = Timing(recorded_fps, fps), FrameFit.of((32, 48), None, 16)
    return RecordedClip(episode, timing, alignment, fit)  # type: ignore[arg-type]


def frame_numbers(made: RecordedClip, start: int, count: int) -> list[int]:
    video = made.video(start, count)
    assert video.shape == (count, 3, 32, 96)
    return ((video.mean(dim=(1, 2, 3)) + 1) * 127.5 / 5).round().int().tolist()


def test_at_the_recorded_rate_nothing_changes() -> None:
    made = clip(10, 10)
    assert made.num_frames == 31
    assert frame_numbers(made, 4, 5) == [4, 5, 6, 7, 8]
    assert made.action(4, 5)[:, 0].tolist() == [4, 5, 6, 7]
    assert clip(10, 10, "state").action(4, 5)[:, 0].tolist() == [4, 5, 6, 7, 8]
    assert made.action(4, 5)[:, 1].tolist() == [104, 105, 106, 107]


def test_a_third_of_the_rate_keeps_all_rows() -> None:
    made = clip(30, 10)
    assert made.num_frames == 11 and made.timing.divides
    assert frame_numbers(made, 2, 5) == [6, 9, 12, 15, 18]
    assert made.action(2, 5)[:, 0].tolist() == list(range(6, 18))
    assert clip(30, 10, "state").action(2, 5)[:, 0].tolist() == list(range(6, 19))
    schema = ActionSchema(rows_per_frame=made.timing.rows_per_frame)
    assert schema.num_rows(2) == len(made.action(2, 5)) == 12


def test_a_rate_that_does_not_divide_takes_what_is_in_force() -> None:
    made = clip(30, 20)
    assert made.timing.rows_per_frame == 2 and not made.timing.divides
    assert frame_numbers(made, 0, 5) == [0, 1, 3, 4, 6]
    assert made.action(0, 5)[:, 0].tolist() == [0, 0, 1, 2, 3, 3, 4, 5]


@pytest.mark.parametrize(("recorded", "fps"), [(10, 10), (30, 10), (30, 20), (29.97, 10), (50, 16), (25, 24)])
def test_the_last_window_is_inside_the_recording(recorded: float, fps: float) -> None:
    for alignment in ("transition", "state"):
        made = clip(recorded, fps, alignment)
        assert made.num_frames >= 5
        frame_numbers(made, made.num_frames - 5, 5)
        rows = made.action(made.num_frames - 5, 5)
        assert len(rows) == 4 * made.timing.rows_per_frame + (alignment == "state")


@pytest.mark.parametrize("fps", [0, -1, 11])
def test_a_rate_above_the_recorded_one_is_refused(fps: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < fps <= 10, the rate of the recording"):
        Timing(10, fps)


@pytest.mark.parametrize(("recorded", "fps", "step"), [(30000 / 1001, 29.97, 1), (30000 / 1001, 30, 1), (29.97, 10, 3)])
def test_rates_that_differ_by_a_thousandth_are_the_same(recorded: float, fps: float, step: int) -> None:
    timing = Timing(recorded, fps)
    assert timing.divides and timing.rows_per_frame == step
    assert timing.num_frames(6001 * step) == 6001
    assert timing.frames(5990, 11) == [step * frame for frame in range(5990, 6001)]
    assert timing.rows(5990, 11, "state") == list(range(5990 * step, 6000 * step + 1))
