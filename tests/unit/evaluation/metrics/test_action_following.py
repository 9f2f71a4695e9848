"""Figures of obedience, against motions whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.action_following import (
    MAX_LAG,
    ActionFollowing,
    best_lag,
    correlation,
    gain_and_r2,
    hold_last_found,
    identity_r2,
    partial_slopes,
    sign_accuracy,
    slope_shares,
)
from tests.support.moving_dot import assert_ranks_are_one

BATCH, RATIO, NUM_LATENTS = 3, 4, 8
NUM_FRAMES = 1 + RATIO * (NUM_LATENTS - 1)


def motion(seed: int = 0, num_frames: int = NUM_FRAMES, batch_size: int = BATCH) -> Tensor:
    """A random walk `[B, T, 2]` in eighths of a pixel, so that sums are exact."""
    random = torch.Generator().manual_seed(seed)
    steps = torch.randint(-12, 13, (batch_size, num_frames, 2), generator=random, dtype=torch.float64) / 8
    return 16 + steps.cumsum(1)


def everywhere(positions: Tensor) -> Tensor:
    return torch.ones(positions.shape[:2], dtype=torch.bool)


def figures(predicted: Tensor, target: Tensor, found: Tensor | None = None, **arguments: float) -> dict[str, float]:
    metric = ActionFollowing(**{"temporal_compression_ratio": RATIO, **arguments})  # type: ignore[arg-type]
    metric.update(predicted, target, everywhere(target) if found is None else found)
    result: dict[str, float] = metric.compute()
    return result


def response(*slopes: float) -> dict[str, float]:
    return {f"response_phase_{phase}": float(slope) for phase, slope in enumerate(slopes, start=1)}


def test_a_perfect_prediction() -> None:
    result = figures(motion(), motion())
    ones = {f"{name}_{axis}": 1.0 for name in ("gain", "r2", "identity_r2", "sign_accuracy") for axis in "xy"}
    zeros = {"ade_px": 0.0, "fde_px": 0.0, "lag_frames": 0.0, "missing_rate": 0.0}
    exact = {**ones, **zeros, "sign_accuracy": 1.0, "lag_correlation": pytest.approx(1.0), "episodes": 3.0}
    assert {name: result[name] for name in exact} == exact
    by_speed = {f"{name}_speed_q{q}": 1.0 for name in ("gain", "r2", "sign_accuracy") for q in range(1, 5)}
    fitted = {**by_speed, **response(1, 1, 1, 1), "cross_talk_x_to_y": 0.0, "cross_talk_y_to_x": 0.0}
    assert {name: result[name] for name in fitted} == pytest.approx(fitted, abs=1e-12)
    speeds = [result[f"speed_q{q}_px"] for q in range(1, 5)]
    assert sorted(speeds) == speeds and len(result) == len(exact) + len(fitted) + len(speeds)


def test_half_the_motion() -> None:
    target = motion()
    result = figures(target[:, :1] + 0.5 * (target - target[:, :1]), target)
    for axis, name in enumerate("xy"):
        assert result[f"gain_{name}"] == pytest.approx(0.5, abs=1e-12)
        assert result[f"r2_{name}"] == pytest.approx(1.0, abs=1e-12)
        true = target[:, ::RATIO, axis].diff(dim=1)
        expected = 1 - 0.25 * true.square().sum() / (true - true.mean()).square().sum()
        assert result[f"identity_r2_{name}"] == pytest.approx(expected.item(), abs=1e-12)
    assert result["sign_accuracy"] == 1
    assert result["lag_frames"] == 0


def test_the_opposite_motion() -> None:
    target = motion()
    result = figures(2 * target[:, :1] - target, target)
    assert result["sign_accuracy"] == result["sign_accuracy_x"] == result["sign_accuracy_y"] == 0
    assert result["gain_x"] == result["gain_y"] == -1
    assert result["r2_x"] == result["r2_y"] == 1
    assert result["identity_r2_x"] < -2


def test_no_motion_at_all() -> None:
    target = motion()
    result = figures(target[:, :1].expand_as(target), target)
    zeros = ("sign_accuracy", "gain_x", "gain_y", "r2_x", "r2_y", "lag_frames", "gain_speed_q4", "r2_speed_q1")
    for name in (*zeros, "cross_talk_x_to_y", *response(0, 0, 0, 0)):
        assert result[name] == 0
    error = (target - target[:, :1])[:, 1:].norm(dim=-1)
    assert result["ade_px"] == pytest.approx(error.mean().item())
    assert result["fde_px"] == pytest.approx(error[:, -1].mean().item())


def test_axes_are_told_apart() -> None:
    target = motion()
    predicted = target.clone()
    predicted[..., 1] = target[:, :1, 1] - 0.25 * (target[..., 1] - target[:, :1, 1])
    result = figures(predicted, target)
    assert result["gain_x"] == 1
    assert result["gain_y"] == pytest.approx(-0.25, abs=1e-12)
    assert (result["sign_accuracy_x"], result["sign_accuracy_y"]) == (1, 0)
    assert 0 < result["sign_accuracy"] < 1


def test_swapped_axes_are_cross_talk() -> None:
    target = motion(batch_size=40)
    result = figures(target.flip(-1), target)
    assert (result["cross_talk_x_to_y"], result["cross_talk_y_to_x"]) == pytest.approx((1, 1))
    assert abs(result["gain_x"]) < 0.2 and abs(result["gain_y"]) < 0.2


def test_an_axis_that_leaks_into_the_other() -> None:
    target = motion()
    predicted = target.clone()
    predicted[..., 1] += 0.25 * target[..., 0]
    result = figures(predicted, target)
    assert (result["cross_talk_x_to_y"], result["cross_talk_y_to_x"]) == pytest.approx((0.25, 0), abs=1e-12)
    alone = target.clone()
    alone[..., 1] = 7  # the commands are pure x, so what y does is unknown
    predicted[..., 1] = 0.25 * target[..., 0]
    result = figures(predicted, alone)
    assert result["cross_talk_x_to_y"] == pytest.approx(0.25) and np.isnan(result["cross_talk_y_to_x"])


def spread(displacements: Tensor) -> Tensor:
    """Positions `[B, T, 2]` that move by so much over each latent frame, evenly, `[B, F, 2]`."""
    steps = (displacements / RATIO).repeat_interleave(RATIO, dim=1)
    return torch.cat([torch.zeros_like(steps[:, :1]), steps.cumsum(dim=1)], dim=1)


@pytest.mark.parametrize(
    "weights", [(0, 0, 0, 1), (0, 0, 0, 4), (1, 0, 0, 0), (-1, -1, -1, -1), (0.5, 1, 1, 1.5), (0, 0, 0, 0)]
)
def test_which_of_four_actions_act(weights: tuple[float, ...]) -> None:
    target = motion(batch_size=5)
    steps = target.diff(dim=1).unflatten(1, (-1, RATIO))
    predicted = spread((steps * torch.tensor(weights)[:, None]).sum(dim=2))
    result = figures(predicted, target)
    assert {name: result[name] for name in response(*weights)} == pytest.approx(response(*weights), abs=1e-10)


def test_a_frame_late_the_last_action_comes_in_the_next_latent_frame() -> None:
    whole = motion(num_frames=NUM_FRAMES + 1, batch_size=400)
    result = figures(whole[:, :-1], whole[:, 1:])
    assert result["lag_frames"] == 1
    # The action before is independent noise here: 5,600 displacements, standard error 0.013.
    assert {name: result[name] for name in response(1, 1, 1, 0)} == pytest.approx(response(1, 1, 1, 0), abs=0.06)


def test_actions_that_are_held_do_not_tell_the_phases() -> None:
    target = spread(motion()[:, :NUM_LATENTS])
    assert all(np.isnan(figures(target, target)[name]) for name in response(1, 1, 1, 1))
    assert figures(target, target, temporal_compression_ratio=1)["response_phase_1"] == pytest.approx(1)


def test_slow_motion_that_is_lost() -> None:
    """Speeds of 1, 2, 4 and 8 pixels a latent frame, in either direction of either axis; the slowest do not move."""
    directions = torch.tensor([[1, 0], [-1, 0], [0, 1], [0, -1]])
    speeds = torch.tensor([1.0, 2.0, 4.0, 8.0, 0.0])
    displacements = (speeds[:, None, None] * directions)[:, :, None].expand(-1, -1, 3, -1).flatten(0, 1)
    gains = torch.tensor([0.0, 0.5, 1.0, -1.0, 1.0]).repeat_interleave(4)[:, None, None]
    result = figures(spread(gains * displacements), spread(displacements), threshold_px=1.5)
    assert [result[f"speed_q{q}_px"] for q in range(1, 5)] == pytest.approx([1, 2, 4, 8])
    assert [result[f"gain_speed_q{q}"] for q in range(1, 5)] == pytest.approx([0, 0.5, 1, -1], abs=1e-6)
    assert [result[f"r2_speed_q{q}"] for q in range(1, 5)] == pytest.approx([0, 1, 1, 1])
    accuracies = [result[f"sign_accuracy_speed_q{q}"] for q in range(1, 5)]
    assert np.isnan(accuracies[0]) and accuracies[1:] == [1, 1, 0]


@pytest.mark.parametrize("lag", [-7, -2, -1, 0, 1, 3, 8])
def test_motion_that_comes_late_or_early(lag: int) -> None:
    whole = motion(num_frames=NUM_FRAMES + 20)
    target, predicted = (whole[:, 10 - shift : 10 - shift + NUM_FRAMES] for shift in (0, lag))
    assert figures(predicted, target)["lag_frames"] == lag
    assert best_lag(predicted.diff(dim=1), target.diff(dim=1))[0] == lag


def test_a_lag_beyond_reach_is_not_reported() -> None:
    whole = motion(num_frames=NUM_FRAMES + 20)
    late, target = whole[:, : NUM_FRAMES - 1], whole[:, 9 : NUM_FRAMES + 8]
    steps = late.diff(dim=1), target.diff(dim=1)
    assert best_lag(*steps, max_lag=9)[0] == 9
    assert abs(best_lag(*steps)[0]) <= MAX_LAG == 8
    assert best_lag(*steps, max_lag=0)[0] == 0


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_videos_too_short_for_a_lag_have_none(num_steps: int) -> None:
    steps = motion().diff(dim=1)[:, :num_steps]
    assert best_lag(steps, steps)[0] == 0


def test_no_lag_is_the_answer_when_all_are_equally_good() -> None:
    assert best_lag(torch.zeros(BATCH, 12, 2), motion().diff(dim=1)[:, :12])[0] == 0


def test_by_hand() -> None:
    """Two videos of 5 frames, two pixel frames in a latent frame, threshold 1 px."""
    target = torch.tensor([[[0, 0], [1, 0], [2, 0], [3, 1], [4, 2]], [[9, 9], [9, 8], [9, 7], [8, 7], [7.5, 7]]])
    predicted = torch.tensor([[[0, 0], [1, 0], [1, 0], [1, 1], [0, 3]], [[9, 9], [9, 9], [9, 9], [9, 9], [6, 9]]])
    result = figures(predicted, target, temporal_compression_ratio=2)
    # True displacements x: 2, 2, 0, -1.5; y: 0, 2, -2, 0. Generated x: 1, -1, 0, -3; y: 0, 3, 0, 0.
    assert result["sign_accuracy_x"] == pytest.approx(2 / 3)  # 2 -> 1 and -1.5 -> -3 are right, 2 -> -1 is wrong
    assert result["sign_accuracy_y"] == 1 / 2
    assert result["sign_accuracy"] == pytest.approx(3 / 5)
    # x: mean true 0.625, mean generated -0.75; sum xy = 2 - 2 + 4.5 - 4 * 0.625 * -0.75, sum xx = 10.25 - 4 * 0.625^2.
    assert result["gain_x"] == pytest.approx(6.375 / 8.6875)
    # y: means 0 and 0.75; sum xy = 6, sum xx = 8, sum yy = 9 - 4 * 0.75^2.
    assert result["gain_y"] == pytest.approx(6 / 8)
    assert result["r2_y"] == pytest.approx(6**2 / (8 * 6.75))
    assert result["identity_r2_y"] == pytest.approx(1 - (1 + 4) / 8)
    errors = [0, 1, 2, 17**0.5, 1, 2, 5**0.5, 6.25**0.5]
    assert result["ade_px"] == pytest.approx(sum(errors) / 8)
    assert result["fde_px"] == pytest.approx((17**0.5 + 6.25**0.5) / 2)
    assert (result["missing_rate"], result["episodes"]) == (0, 2)


def test_gain_and_r2_are_those_of_a_fitted_line() -> None:
    random = torch.Generator().manual_seed(0)
    target = torch.randn(200, generator=random, dtype=torch.float64)
    predicted = 0.7 * target + 0.4 * torch.randn(200, generator=random, dtype=torch.float64) + 3
    gain, r2 = gain_and_r2(predicted, target)
    assert gain == pytest.approx(np.polyfit(target.numpy(), predicted.numpy(), 1)[0], rel=1e-10)
    assert r2 == pytest.approx(np.corrcoef(target.numpy(), predicted.numpy())[0, 1] ** 2, rel=1e-10)
    assert correlation(target, predicted) == pytest.approx(np.corrcoef(target.numpy(), predicted.numpy())[0, 1])
    assert 0.5 < gain < 0.9 and 0.5 < r2 < 0.95
    error = (predicted - target).square().sum() / (target - target.mean()).square().sum()
    assert identity_r2(predicted, target) == pytest.approx(1 - error.item())


def test_partial_slopes_are_those_of_least_squares() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(50, size, generator=random, dtype=torch.float64) for size in (3, 1))
    expected = np.linalg.lstsq(np.column_stack([x, np.ones(50)]), y[:, 0].numpy(), rcond=None)[0]
    assert partial_slopes(y[:, 0], x) == pytest.approx(expected[:3].tolist())
    together = torch.column_stack([x[:, 0], 2 * x[:, 0], x[:, 1], torch.ones(50)])
    slopes = partial_slopes(3 * x[:, 1], together)
    assert slopes == pytest.approx([np.nan, np.nan, 3, np.nan], nan_ok=True)
    assert np.isnan(partial_slopes(torch.zeros(0), torch.zeros(0, 2))).all()


def test_displacements_up_to_the_threshold_are_left_out_of_the_sign() -> None:
    target = torch.tensor([1.0, -1.0, 1.5, -2.0, 0.0])
    wrong_but_small = torch.tensor([-1.0, 1.0, 1.0, -1.0, 5.0])
    assert sign_accuracy(wrong_but_small, target, threshold=1.0) == 1.0
    assert sign_accuracy(wrong_but_small, target, threshold=0.99) == 0.5
    assert sign_accuracy(torch.zeros(5), target, threshold=1.0) == 0.0


def test_where_nothing_should_move_there_is_no_sign() -> None:
    still = torch.full((BATCH, NUM_FRAMES, 2), 5.0)
    result = figures(still, still)
    assert np.isnan(result["sign_accuracy"]) and np.isnan(result["gain_x"]) and np.isnan(result["identity_r2_y"])
    assert result["ade_px"] == result["lag_frames"] == result["r2_x"] == 0


def test_missing_positions_stay_where_the_object_was_last_seen() -> None:
    positions = torch.arange(2 * 6 * 2, dtype=torch.float64).reshape(2, 6, 2)
    found = torch.tensor([[True, True, False, False, True, False], [False, False, True, True, True, False]])
    held = hold_last_found(positions, found)
    for sample, frames in enumerate([[0, 1, 1, 1, 4, 4], [0, 0, 2, 3, 4, 4]]):
        assert torch.equal(held[sample], positions[sample, frames])


def test_a_vanished_object_counts_as_one_that_stands_still() -> None:
    target = motion()
    found = everywhere(target)
    found[:, 10:] = False
    lost = target.clone()
    lost[:, 10:] = float("nan")  # whatever was read there does not matter
    stopped = target.clone()
    stopped[:, 10:] = target[:, 9:10]
    result = figures(lost, target, found)
    assert {**result, "missing_rate": 0.0} == figures(stopped, target)
    assert result["missing_rate"] == pytest.approx((NUM_FRAMES - 10) / (NUM_FRAMES - 1))
    assert result["sign_accuracy"] < 1


def test_given_frames_do_not_count() -> None:
    target = motion()
    predicted = 0.5 * target
    found = everywhere(target)
    whole = figures(predicted, target, found)
    wrong = predicted.clone()
    wrong[:, :4] = 1000.0
    found[:, :5] = False
    found[:, 4] = True  # the last given frame is where motion is measured from
    later = figures(wrong, target, found, num_initial_frames=5)
    assert later["missing_rate"] == 0
    assert later == figures(predicted[:, 4:], target[:, 4:], num_initial_frames=1)
    assert later["ade_px"] != whole["ade_px"]


def test_two_batches_are_one_batch() -> None:
    target, predicted = motion(batch_size=5), motion(seed=1, batch_size=5)
    found = torch.rand(5, NUM_FRAMES, generator=torch.Generator().manual_seed(2)) > 0.2
    metric = ActionFollowing(RATIO)
    for part in (slice(0, 2), slice(2, 5)):
        metric.update(predicted[part], target[part], found[part])
    assert metric.compute() == figures(predicted, target, found)
    assert 0 < metric.compute()["missing_rate"] < 1
    metric.reset()
    metric.update(target, target, everywhere(target))
    assert metric.compute()["ade_px"] == 0


def test_correlation_needs_variation() -> None:
    steps = torch.tensor([1.0, 2.0, 4.0])
    assert correlation(steps, 3 - 2 * steps) == pytest.approx(-1)
    assert correlation(steps, torch.ones(3)) == 0


def test_each_episode_has_its_share_of_the_slopes() -> None:
    """Also where an episode is too short for slopes of its own."""
    random = torch.Generator().manual_seed(0)
    commands, noise = torch.randn(6, 2, 2, generator=random), torch.randn(6, 2, generator=random)
    exact = slope_shares(3 * commands[..., 0] - 2 * commands[..., 1], commands)
    assert exact.flatten().tolist() == pytest.approx([3, -2] * 6)
    moved = 3 * commands[..., 0] + noise
    shares = slope_shares(moved, commands)
    assert shares.mean(dim=0).tolist() == pytest.approx(partial_slopes(moved.flatten(), commands.flatten(0, 1)))
    # To first order it is what the slopes lose with an episode.
    lost = [partial_slopes(moved[kept].flatten(), commands[kept].flatten(0, 1)) for kept in 1 - torch.eye(6) > 0]
    change = torch.tensor(lost).double() - shares.mean(dim=0)
    assert torch.corrcoef(torch.stack([change[:, 0], shares[:, 0]]))[0, 1] < -0.9
    alone = slope_shares(moved, torch.cat([commands[..., :1], 0 * commands[..., 1:]], dim=-1))
    assert alone[:, 1].isnan().all() and not alone[:, 0].isnan().any()
    metric = ActionFollowing()
    path = torch.cat([torch.zeros(6, 1, 2), commands.repeat_interleave(4, dim=1).cumsum(dim=1)], dim=1)
    metric.update(path.flip(-1), path, torch.ones(6, 9, dtype=torch.bool))
    assert metric.per_episode()["cross_talk_x_to_y"].tolist() == pytest.approx([1] * 6)


def test_motion_that_never_varies_has_no_slope() -> None:
    """Positions are rounded, and a slope on rounding would be any number."""
    time = torch.arange(17.0)[None, :, None]
    target = torch.tensor([31.7, 5.0]) + torch.cat([0.3 * time, (0.7 * time).sin()], dim=-1)
    target = target.expand(3, -1, -1) + torch.tensor([11.1, 3.3, 57.9])[:, None, None]
    metric = ActionFollowing()
    metric.update(target + 0.2 * torch.rand(3, 17, 2), target, torch.ones(3, 17, dtype=torch.bool))
    figures = metric.compute()
    assert math.isnan(figures["gain_x"]) and math.isnan(figures["cross_talk_x_to_y"])
    assert math.isnan(figures["identity_r2_x"]) and figures["gain_y"] == pytest.approx(1, abs=0.2)


def test_ranks() -> None:
    parts = [[motion(seed), motion(seed + 1), torch.rand(BATCH, NUM_FRAMES) > 0.2] for seed in (0, 5)]
    assert_ranks_are_one(ActionFollowing, *parts)


def test_each_episode_has_its_figures() -> None:
    target = motion()
    predicted = target.clone()
    predicted[1] = target[1, :1] - 2 * (target[1] - target[1, :1])
    metric = ActionFollowing(RATIO)
    metric.update(predicted, target, everywhere(target))
    per_episode = metric.per_episode()
    assert per_episode["gain_x"].tolist() == pytest.approx([1, -2, 1])
    assert per_episode["sign_accuracy"].tolist() == [1, 0, 1]
    assert per_episode["fde_px"][1].item() == pytest.approx(3 * (target[1, -1] - target[1, 0]).norm().item())
