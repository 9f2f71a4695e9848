"""What other actions change, of videos in which it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.counterfactuals import CounterfactualDivergence, CrossSwap
from tests.support.moving_dot import assert_ranks_are_one, dot_paths, dot_video

PATHS, OTHER_PATHS = dot_paths(0), dot_paths(1)
TRUTH, TRUTH_OTHER = dot_video(PATHS), dot_video(OTHER_PATHS)
COPY = TRUTH[:, :1].expand_as(TRUTH)


def divergence(
    video: Tensor, video_other: Tensor, *more: Tensor | None, num_initial_frames: int = 1
) -> dict[str, float]:
    metric = CounterfactualDivergence(num_initial_frames)
    metric.update(video, video_other, *more)
    result: dict[str, float] = metric.compute()
    return result


def test_a_perfect_simulator() -> None:
    result = divergence(TRUTH, TRUTH_OTHER, TRUTH, TRUTH_OTHER)
    assert result["counterfactual_divergence"] == result["counterfactual_ratio"] == 0
    expected = (TRUTH - TRUTH_OTHER)[:, 1:].abs().mean().item()
    assert result["generated_difference"] == result["true_difference"] == pytest.approx(expected)


def test_what_is_wrong_alike_cancels() -> None:
    result = divergence(TRUTH + 0.1, TRUTH_OTHER + 0.1, TRUTH, TRUTH_OTHER)
    assert result["counterfactual_ratio"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("blind", [COPY, TRUTH, torch.rand(TRUTH.shape)])
def test_copying_and_blind_models_have_a_ratio_of_one(blind: Tensor) -> None:
    result = divergence(blind, blind, TRUTH, TRUTH_OTHER)
    assert result["counterfactual_ratio"] == 1
    assert result["generated_difference"] == 0


def test_a_large_ground_does_not_hide_a_small_object() -> None:
    def on_a_large_ground(video: Tensor) -> Tensor:
        large = torch.full((*video.shape[:-2], 200, 240), 0.2)
        large[..., :20, :24] = video
        return large

    seen, other, still = (on_a_large_ground(video) for video in (TRUTH, TRUTH_OTHER, COPY))
    follows = divergence(seen, other, seen)
    assert follows["generated_difference"] < 0.002 and follows["generated_difference_moving"] > 0.05
    assert divergence(still, still, seen)["generated_difference_moving"] == 0
    assert math.isnan(divergence(seen, other)["generated_difference_moving"])


def test_half_the_effect_and_the_opposite() -> None:
    middle = (TRUTH + TRUTH_OTHER) / 2
    half = divergence((TRUTH + middle) / 2, (TRUTH_OTHER + middle) / 2, TRUTH, TRUTH_OTHER)
    assert half["counterfactual_ratio"] == pytest.approx(0.5, rel=1e-5)
    opposite = divergence(TRUTH_OTHER, TRUTH, TRUTH, TRUTH_OTHER)
    assert opposite["counterfactual_ratio"] == pytest.approx(2)
    assert opposite["generated_difference"] == opposite["true_difference"]


def test_noise_that_is_not_matched_is_difference_but_not_obedience() -> None:
    random = torch.Generator().manual_seed(0)
    noises = torch.rand(2, *TRUTH.shape, generator=random)
    result = divergence(*noises, TRUTH, TRUTH_OTHER)
    assert result["generated_difference"] > result["true_difference"]
    assert result["counterfactual_ratio"] > 1


def test_videos_differ_from_where_the_actions_do() -> None:
    """Actions of sample 0 differ from pixel frame 5 on, those of sample 1 from 9 on, all by 0.25."""
    first = torch.tensor([5, 9])
    change = 0.25 * (torch.arange(13) >= first[:, None])[:, :, None, None, None].expand(2, 13, 3, 4, 6)
    start = torch.zeros(2, 13, 3, 4, 6)
    causal = divergence(start, start + change, start, start + change, first)
    assert (causal["difference_before"], causal["generated_difference"]) == (0, 0.25)
    early = divergence(start, start + change.roll(-1, dims=1), start, start + change, first)
    # The last frame comes from the front of the roll, which has no change.
    assert early["difference_before"] == pytest.approx((0.25 / 4 + 0.25 / 8) / 2)
    assert early["counterfactual_divergence"] == pytest.approx((0.25 / 8 + 0.25 / 4) / 2)
    # Given frames do not count, neither before nor after.
    given = divergence(start, start + change.roll(-1, dims=1), start, start + change, first, num_initial_frames=5)
    assert given["difference_before"] == pytest.approx(0.25 / 4)
    later = divergence(start, start + change, start, start + change, torch.zeros(2), num_initial_frames=9)
    assert later["generated_difference"] == 0.25 and math.isnan(later["difference_before"])


def test_without_a_simulator_the_difference_is_left() -> None:
    result = divergence(TRUTH, TRUTH_OTHER, TRUTH)
    assert result["generated_difference"] > 0
    for name in ("counterfactual_divergence", "counterfactual_ratio", "true_difference"):
        assert math.isnan(result[name])


def test_ranks() -> None:
    videos = [dot_video(dot_paths(seed)) for seed in range(8)]
    assert_ranks_are_one(CounterfactualDivergence, videos[:4], videos[4:])
    paths = [dot_paths(seed) for seed in range(6)]
    assert_ranks_are_one(CrossSwap, paths[:3], paths[3:])


def swap(positions: Tensor) -> dict[str, float]:
    """Starts belong to `OTHER_PATHS`, actions to `PATHS`."""
    metric = CrossSwap()
    metric.update(positions, PATHS, OTHER_PATHS)
    result: dict[str, float] = metric.compute()
    return result


def test_a_video_follows_the_owner_of_the_actions() -> None:
    elsewhere = PATHS + torch.tensor([3.0, -2.0])
    result = swap(elsewhere)
    assert result["cross_swap_accuracy"] == 1
    assert result["error_to_action_owner_px"] == pytest.approx(0, abs=1e-12)
    assert result["error_to_start_owner_px"] > 1


def test_a_blind_video_follows_the_owner_of_the_start() -> None:
    assert swap(OTHER_PATHS)["cross_swap_accuracy"] == 0


def test_a_video_that_moves_at_random_is_at_chance() -> None:
    metric = CrossSwap()
    metric.update(*(dot_paths(seed, batch_size=1000) for seed in range(3)))
    # Three standard errors.
    assert metric.compute()["cross_swap_accuracy"] == pytest.approx(0.5, abs=0.05)


def test_a_tie_counts_half_and_a_lost_object_not_at_all() -> None:
    metric = CrossSwap()
    positions = PATHS.clone()
    positions[1, 4] = math.nan
    metric.update(positions, torch.stack([PATHS[0], PATHS[1], OTHER_PATHS[2]]), torch.stack([PATHS[0], *PATHS[1:]]))
    assert metric.per_episode()["cross_swap_accuracy"].tolist()[::2] == [0.5, 0]
    assert metric.compute()["cross_swap_accuracy"] == 0.25


def test_paths_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"positions \[B, T, 2\] of one shape, got \[\[3, 13, 2\], \[3, 12, 2\]"):
        CrossSwap().update(PATHS, PATHS[:, :12], PATHS)
