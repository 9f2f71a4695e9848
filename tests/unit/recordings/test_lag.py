from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.data.sprite_data import SpriteDataset
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.recordings.lag import LagEstimate, estimate_lag


def recorded(late: int, count: int = 16, **world: object) -> list[tuple[Tensor, Tensor]]:
    """Videos whose pixels answer their action rows `late` frames too late; negative is too early."""
    batch = SpriteDataset(MovingSpriteWorld(**world), "train", 0, count, 33).batch(range(count))  # type: ignore[arg-type]
    action = batch["action"] if batch["action"].is_floating_point() else F.one_hot(batch["action"][..., 0], 5)
    pairs = zip(batch["video"], action, strict=True)
    if late < 0:
        return [(video[-late:], rows[:late]) for video, rows in pairs]
    return [(video[: len(video) - late], rows[late:]) for video, rows in pairs]


@pytest.mark.parametrize("late", [-2, -1, 0, 1, 3])
def test_a_shift_is_found(late: int) -> None:
    found = estimate_lag(recorded(late))
    assert (found.lag, found.is_certain) == (late, True)
    assert found.scores[late] > 0.5


@pytest.mark.parametrize("world", [{"background": "busy"}, {"action_kind": "discrete"}], ids=["busy", "discrete"])
def test_other_worlds(world: dict[str, object]) -> None:
    found = estimate_lag(recorded(1, 24, **world))
    assert (found.lag, found.is_certain) == (1, True)


def test_actions_of_other_videos_tell_nothing() -> None:
    pairs = recorded(0)
    mixed = [(video, rows) for (video, _), (_, rows) in zip(pairs, pairs[5:] + pairs[:5], strict=True)]
    found = estimate_lag(mixed)
    assert not found.is_certain and found.verdict().startswith("cannot tell: motion explains")


def test_few_clips_of_a_clean_picture_are_enough() -> None:
    """A cell that nothing enters in one half of the clips does not spoil what the other half says."""
    found = estimate_lag(recorded(1, 7))
    assert (found.lag, found.is_certain) == (1, True)


def test_an_answer_at_several_lags_is_not_certain() -> None:
    found = LagEstimate({-1: 0.1, 0: 0.5, 1: 0.6, 2: 0.58})
    assert not found.is_certain
    assert "up to 60%, at the lags 0, 1, 2: things answer slowly" in found.verdict()


def test_the_largest_lag_is_not_certain() -> None:
    assert not estimate_lag(recorded(4)).is_certain
    assert "at lag 4, the largest that is tried" in estimate_lag(recorded(4)).verdict()


def test_a_video_that_stands_still_tells_nothing() -> None:
    pairs = [(video[:1].expand_as(video), rows) for video, rows in recorded(0, 8)]
    assert not estimate_lag(pairs).is_certain


@pytest.mark.parametrize(
    ("lag", "said"),
    [
        (0, "explains 60% of the actions of row k, as alignment: transition says"),
        (-1, "of row k + 1, recorded when it was over: alignment: state fits better than transition"),
        (2, "of row k - 2: pixels answer 2 frames late. Shift the action rows"),
        (-3, "of row k + 3. Shift the action rows"),
    ],
)
def test_the_verdict_says_what_to_do(lag: int, said: str) -> None:
    scores = {other: 0.6 if other == lag else 0.1 for other in range(-4, 5)}
    assert said in LagEstimate(scores).verdict()


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least two clips of more than 11 frames, got 1"):
        estimate_lag(recorded(0, 1))
    with pytest.raises(ValueError, match="got 0"):
        estimate_lag([(torch.zeros(11, 3, 8, 8), torch.zeros(10, 2))] * 3)
    with pytest.raises(ValueError, match="144 motions between frames are too few, expected at least 150"):
        estimate_lag(recorded(0, 6))
    assert estimate_lag(recorded(0, 7)).scores.keys() == set(range(-4, 5))
