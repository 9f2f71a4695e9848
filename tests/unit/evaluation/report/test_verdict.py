"""Models that are wrong on purpose are told by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.action_following import ActionFollowing
from lightning_action.evaluation.report.verdict import Thresholds, judge

RATIO, NUM_FRAMES, NUM_EPISODES = 4, 41, 24


def steps_of(seed: int = 0, num_episodes: int = NUM_EPISODES) -> Tensor:
    """True displacements of each pixel frame, `[B, T - 1, 2]`."""
    random = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(num_episodes, NUM_FRAMES - 1, 2, generator=random, dtype=torch.float64)


def figures(steps: Tensor, moved: Tensor, found: float = 1.0, win_rate: float = 1.0) -> dict[str, Any]:
    """Of an object that should move by `steps`, and does by `moved`."""
    true, generated = (torch.cat([x[:, :1] * 0, x.cumsum(dim=1)], dim=1) for x in (steps, moved))
    metric = ActionFollowing(RATIO)
    there = torch.arange(NUM_FRAMES) < found * NUM_FRAMES
    metric.update(generated, true, there.expand(len(true), -1))
    return {**metric.compute(), "swapped_win_rate": win_rate, "delta_psnr_all_frames_db": 3.0}


def only_the_last(steps: Tensor) -> Tensor:
    grouped = steps.unflatten(1, (-1, RATIO))
    return grouped[:, :, -1:].expand(-1, -1, RATIO, -1).flatten(1, 2)


def slow_ones_stand_still(steps: Tensor) -> Tensor:
    grouped = steps.unflatten(1, (-1, RATIO))
    speed = grouped.sum(dim=2, keepdim=True).norm(dim=-1, keepdim=True)
    return torch.where(speed < speed.quantile(0.25), 0.2 * grouped, grouped).flatten(1, 2)


WRONG: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "shifted by a frame": (lambda x: x.roll(1, dims=1), "motion comes 1 frames late"),
    "shifted by a latent frame": (lambda x: x.roll(RATIO, dims=1), "motion comes 4 frames late"),
    "swapped columns": (lambda x: x.flip(-1), "x and y are swapped"),
    "inverted": (lambda x: x * torch.tensor([-1.0, 1.0]), "x moves the wrong way (gain -1.00)"),
    "a column cut": (lambda x: x * torch.tensor([1.0, 0.0]), "y does not respond (gain 0.00)"),
    "too weak": (lambda x: 0.5 * x, "x moves too little (gain 0.50)"),
    "too strong": (lambda x: 1.5 * x, "y moves too far (gain 1.50)"),
    "a leak": (lambda x: torch.stack([x[..., 0], x[..., 1] + 0.3 * x[..., 0]], dim=-1), "x leaks into y (0.30 px"),
    "the last action alone": (only_the_last, "only the last of 4 actions of a latent frame acts"),
    "slow ones": (slow_ones_stand_still, "are followed less (gain"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(name: str) -> None:
    damage, told = WRONG[name]
    steps = steps_of()
    verdict = judge(figures(steps, damage(steps)))
    assert verdict.label == "partly" and any(told in reason for reason in verdict.reasons), verdict
    assert told in str(verdict)


def test_a_perfect_simulator_obeys_and_a_noisy_one_too() -> None:
    steps = steps_of()
    for moved in (steps, 1.05 * steps + 0.3 * steps_of(1)):
        verdict = judge(figures(steps, moved))
        assert verdict.label == "obeys" and "lag 0" in verdict.reasons[0]


@pytest.mark.parametrize("moved", [0 * steps_of(), steps_of(5)], ids=["still", "of another sample"])
def test_a_blind_model_ignores(moved: Tensor) -> None:
    assert judge(figures(steps_of(), moved, win_rate=0.5)).label == "ignores"
    knows = judge(figures(steps_of(), moved, win_rate=0.9))
    assert knows.label == "partly" and "rollouts do not follow them" in knows.reasons[0]


def test_what_cannot_be_told() -> None:
    steps = steps_of()
    few = judge(figures(steps[:7], steps[:7]))
    assert few.label == "cannot tell" and few.reasons == ("7 episodes are fewer than 8",)
    assert judge(figures(steps[:7], steps[:7]), Thresholds(episodes=7)).label == "obeys"
    lost = judge(figures(steps, steps, found=0.3))
    assert lost.label == "cannot tell" and "not found in" in lost.reasons[0]
    still = judge(figures(0.01 * steps, steps))
    assert still.label == "cannot tell" and still.reasons == ("nothing should move by more than a pixel",)
    alike = judge(figures(torch.ones_like(steps), steps))
    assert alike.label == "cannot tell" and "all should move alike at all times" in alike.reasons[0]


@pytest.mark.parametrize(
    ("win_rate", "difference", "label"), [(0.5, 0.0, "ignores"), (0.9, 0.0, "cannot tell"), (0.5, 0.1, "cannot tell")]
)
def test_without_positions_losses_show_that_actions_are_ignored_and_no_more(
    win_rate: float, difference: float, label: str
) -> None:
    """A small object may follow, and leave the PSNR of the whole frame as it is."""
    of_videos = {"episodes": 24.0, "delta_psnr_all_frames_db": 0.0, "generated_difference": difference}
    verdict = judge({"swapped_win_rate": win_rate, **of_videos})
    assert verdict.label == label and f"{win_rate:.2f}" in verdict.reasons[0]
    few = judge({"swapped_win_rate": win_rate, **of_videos, "episodes": 7.0})
    assert few.label == "cannot tell" and few.reasons == ("7 episodes are fewer than 8",)
    unknown = judge({"episodes": 24.0, "swapped_win_rate": math.nan, "delta_psnr_all_frames_db": math.nan})
    assert unknown.label == "cannot tell" and "nothing was made under other actions" in unknown.reasons[0]


def test_losses_that_are_always_lower_under_other_actions_depend_on_them() -> None:
    """As those of a model that was trained on inverted actions."""
    alike = {"episodes": 24.0, "delta_psnr_all_frames_db": 0.0, "generated_difference": 0.0}
    assert judge({"swapped_win_rate": 0.0, **alike}).label == "cannot tell"


def test_a_response_that_chance_may_make_is_none() -> None:
    steps = steps_of()
    blind = figures(steps, steps_of(5), win_rate=0.5) | {"gain_x": 0.3, "cross_talk_x_to_y": 0.25}
    assert judge(blind).label == "partly"
    chance = {"gain_x": [-0.1, 0.6], "cross_talk_x_to_y": [-0.1, 0.5]}
    assert judge({**blind, "intervals": chance}).label == "ignores"
    # A win rate of 0.625 is five of eight.
    guessed = {**blind, "swapped_win_rate": 0.625, "intervals": {**chance, "swapped_win_rate": [0.25, 0.875]}}
    assert judge(guessed).label == "ignores"
    assert judge({**guessed, "intervals": {**chance, "swapped_win_rate": [0.55, 0.875]}}).label == "partly"


def test_what_may_be_none_or_all_is_not_told() -> None:
    steps = steps_of()
    for moved, gain in ((steps_of(5), 0.1), (steps, 0.9)):
        noisy = {**figures(steps, moved), "gain_x": gain, "intervals": {"gain_x": [-0.2, 0.95]}}
        told = judge(noisy)
        assert told.label == "cannot tell"
        assert told.reasons == (f"x is not told by these episodes: gain {gain:.2f}, -0.20 to 0.95",)
        assert judge({**noisy, "intervals": {"gain_x": [None, None]}}).label != "cannot tell"


def test_a_lag_that_chance_may_make_is_none() -> None:
    """Slow actions are nearly the same a frame later."""
    late = {**figures(steps_of(), steps_of()), "lag_frames": 1.0}
    assert judge(late).reasons == ("motion comes 1 frames late",)
    assert judge({**late, "intervals": {"lag_frames": [1.0, 2.0]}}).reasons == ("motion comes 1 frames late",)
    assert judge({**late, "intervals": {"lag_frames": [0.0, 1.0]}}).label == "obeys"


VIDEO_FAULTS: dict[str, tuple[dict[str, float], str]] = {
    "slow held ones": (
        {"held_gain_0.04": 0.3, "held_gain_0.08": 0.5, "held_gain_0.15": 0.9},
        "held actions of 0.04, 0.08 of the largest go too little (gain 0.30)",
    ),
    "a drift": ({"held_drift_px": 9.0}, "zero actions drift by 9.0 px, where a fast latent frame is"),
    "wrong pixels": ({"counterfactual_ratio": 1.2}, "no more right than in a copy of the first frame (ratio 1.20)"),
    "some stand still": ({"static_rate": 0.25}, "25% of the videos stand still"),
}
GOOD = {"held_gain_0.04": 0.9, "held_drift_px": 0.2, "counterfactual_ratio": 0.4, "static_rate": 0.04}


@pytest.mark.parametrize("name", VIDEO_FAULTS)
def test_what_is_wrong_with_videos_is_named(name: str) -> None:
    found, told = VIDEO_FAULTS[name]
    follows = figures(steps_of(), steps_of())
    verdict = judge({**follows, **GOOD, **found})
    assert verdict.label == "partly" and len(verdict.reasons) == 1 and told in verdict.reasons[0]
    assert judge({**follows, **GOOD}).label == "obeys"
    assert judge({**follows, **dict.fromkeys(GOOD, math.nan)}).label == "obeys", "undefined is no fault"
    cut = judge({**figures(steps_of(), steps_of() * torch.tensor([1.0, 0.0])), **found})
    assert not any(told in reason for reason in cut.reasons), "it follows from what is wrong with y"


def test_a_model_that_stands_still_is_told() -> None:
    still = {**figures(steps_of(), 0 * steps_of(), win_rate=0.5), "static_rate": 1.0}
    verdict = judge(still)
    assert verdict.label == "ignores" and verdict.reasons[1] == "100% of the videos stand still"
    alike = {"episodes": 24.0, "delta_psnr_all_frames_db": 0.0, "generated_difference": 0.0}
    unknown = judge({"swapped_win_rate": 0.5, **alike, "static_rate": 1.0})
    assert unknown.label == "ignores" and unknown.reasons[1] == "100% of the videos stand still"


def test_videos_that_are_the_same_under_other_actions_ignore_them_though_they_follow_their_own() -> None:
    """As those of a model that tells from the first frame what will be done."""
    follows = figures(steps_of(), steps_of())
    same = judge({**follows, "generated_difference": 0.0, "generated_difference_moving": 0.0})
    assert same.label == "ignores" and "are the same under other actions" in same.reasons[0]
    # What moves may be small.
    small = {"generated_difference": 0.001, "generated_difference_moving": 0.1}
    assert judge({**follows, **small}).label == "obeys"
    unknown = {"episodes": 24.0, "delta_psnr_all_frames_db": 0.1, **small}
    assert judge(unknown).label == "cannot tell"
    assert judge({**unknown, "generated_difference_moving": 0.001}).label == "ignores"


def test_the_moving_region_shows_that_actions_matter() -> None:
    """A small object on a still background hides it from the loss of the whole frame."""
    hidden = {"swapped_win_rate": 0.52, "swapped_win_rate_moving": 0.95, "generated_difference": 0.001}
    hidden |= {"delta_psnr_all_frames_db": 0.01, "episodes": 24.0}
    assert judge(hidden).label == "cannot tell"
    assert judge({**hidden, "swapped_win_rate_moving": 0.49}).label == "ignores"
    knows = judge({**figures(steps_of(), 0 * steps_of(), win_rate=0.5), "swapped_win_rate_moving": 0.9})
    assert knows.label == "partly" and "lower under the true actions in 90%" in knows.reasons[0]
