"""Optical flow against flow that is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_action import MovingSpriteWorld, PanningCameraWorld
from lightning_action.batch import to_unit_range
from lightning_action.evaluation.metrics.flow import FlowError, optical_flow, path_by_flow, video_flow, warp
from tests.support.moving_dot import assert_ranks_are_one

SEEDS = [3, 5, 6]


def panning(num_steps: int = 8, sign: float = 1.0, size: int = 48) -> tuple[Tensor, Tensor]:
    """Videos in [0, 1] of a camera, and their flow `[B, T - 1, 2, 1, 1]`."""
    world = PanningCameraWorld(image_size=size, map_size=130)
    start = world.start(SEEDS)
    positions = world.simulate(start, sign * world.sample_actions(SEEDS, num_steps))
    return to_unit_range(world.render(start, positions)), -positions.diff(dim=1)[..., None, None]


def figures(video: Tensor, truth: Tensor, num_initial_frames: int = 1) -> dict[str, float]:
    metric = FlowError(num_initial_frames)
    metric.update(video, truth)
    result: dict[str, float] = metric.compute()
    return result


def test_the_flow_of_a_panning_camera_is_that_of_its_position() -> None:
    video, true = panning()
    flow = video_flow(video)
    assert flow.shape == (3, 8, 2, 48, 48)
    error, speed = (flow - true).norm(dim=2), true.norm(dim=2)
    assert speed.mean() > 0.4
    # At the border the camera shows what was not there before, and flat ground does not tell: measured 0.12.
    assert error[..., 6:-6, 6:-6].mean() < 0.15 * speed.mean()


def test_a_shifted_texture_moves_by_the_shift() -> None:
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(56.0), indexing="ij")

    def texture(x: Tensor, y: Tensor) -> Tensor:
        return (0.5 + 0.2 * (x / 3).sin() * (y / 4).cos() + 0.2 * ((x + y) / 9).sin()).expand(1, 3, -1, -1)

    shift = torch.tensor([3.5, -2.25])
    flow = optical_flow(texture(columns, rows), texture(columns - shift[0], rows - shift[1]))
    assert (flow - shift[:, None, None])[..., 8:-8, 8:-8].norm(dim=1).mean() < 0.1


def test_nothing_moves_between_equal_pictures_or_flat_ones() -> None:
    picture = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    # Looking up a picture where it is, between pixels, rounds.
    assert optical_flow(picture, picture).abs().max() < 1e-5
    assert optical_flow(torch.zeros(1, 3, 20, 24), torch.ones(1, 3, 20, 24)).abs().max() == 0


def test_a_whole_step_looks_up_the_neighbour() -> None:
    picture = torch.rand(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    moved = warp(picture, torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 5, 7))
    torch.testing.assert_close(moved[..., :-1], picture[..., 1:])


def test_the_true_video_is_ideal_and_a_still_one_the_floor() -> None:
    truth, true = panning()
    ideal = figures(truth, truth)
    assert ideal["flow_epe_px"] == 0 and ideal["flow_gain"] == pytest.approx(1)
    assert ideal["flow_cosine"] == pytest.approx(1)
    assert ideal["flow_true_px"] == pytest.approx(true.norm(dim=2).mean().item(), rel=0.15)
    still = figures(truth[:, :1].expand_as(truth), truth)
    assert [still["flow_gain"], still["flow_cosine"]] == pytest.approx([0, 0], abs=1e-3)
    assert still["flow_epe_px"] == pytest.approx(ideal["flow_true_px"]) and ideal["flow_true_px"] > 0.5
    assert still["flow_epe_moving_px"] == pytest.approx(ideal["flow_true_moving_px"])


def test_a_camera_that_goes_backwards_and_one_that_goes_half_as_far() -> None:
    truth, _ = panning()
    backwards = figures(panning(sign=-1)[0], truth)
    assert backwards["flow_gain"] < -0.7 and backwards["flow_cosine"] < -0.8
    half = figures(panning(sign=0.5)[0], truth)
    assert half["flow_gain"] == pytest.approx(0.5, abs=0.1) and half["flow_cosine"] > 0.9


def test_flow_goes_astray_where_the_camera_turns_back() -> None:
    """Five frames as they should be, then backwards at 1.5 px a frame and more: the error is twice that."""
    world = PanningCameraWorld(image_size=48, map_size=130)
    start = world.start(SEEDS)
    rows = torch.tensor([0.9, 0.6]).expand(3, 16, 2)
    truth, other = (
        to_unit_range(world.render(start, world.simulate(start, each)))
        for each in (rows, torch.cat([rows[:, :10], -rows[:, 10:]], dim=1))
    )
    ideal, astray = figures(truth, truth), figures(other, truth)
    assert (ideal["flow_onset_frames"], ideal["flow_diverged_rate"]) == (16, 0)
    # The window of five frames that begins at frame 6 or later holds frame 10.
    assert astray["flow_diverged_rate"] == 1 and 6 <= astray["flow_onset_frames"] <= 10
    few = figures(other[:, :5], truth[:, :5])
    assert math.isnan(few["flow_onset_frames"]) and math.isnan(few["flow_diverged_rate"])


def test_a_path_by_flow_is_the_way_of_the_camera() -> None:
    truth, true = panning()
    way = true[..., 0, 0].cumsum(dim=1)
    path = path_by_flow(truth, truth)
    assert path.shape == (3, 9, 2) and not path[:, 0].any()
    assert (path[:, 1:] - way).norm(dim=-1).mean() < 0.15 * way.norm(dim=-1).mean()
    assert path_by_flow(truth[:, :1].expand_as(truth), truth).abs().max() < 1e-3
    large = path_by_flow(truth, truth, max_side=24)
    assert (large[:, 1:] - way).norm(dim=-1).mean() < 0.25 * way.norm(dim=-1).mean()


def test_one_sprite_on_a_plain_ground() -> None:
    """The walls are far, and the flow of what is inside the sprite is the sprite's."""
    world = MovingSpriteWorld(image_size=48)
    start = world.start(SEEDS)
    actions = 0.5 * world.sample_actions(SEEDS, 6)
    truth, other = (
        to_unit_range(world.render(start, world.simulate(start, scale * actions)))
        for scale in (1.0, torch.tensor([1.0, -1.0]))
    )
    result = figures(other, truth)
    assert abs(result["flow_gain"]) < 0.8 and figures(truth, truth)["flow_gain"] == pytest.approx(1)


def test_given_frames_are_left_out() -> None:
    truth, _ = panning()
    video = torch.cat([truth[:, :5], truth[:, 4:5].expand_as(truth[:, 5:])], dim=1)
    assert figures(video, truth, 5)["flow_gain"] == pytest.approx(0, abs=1e-3)
    assert figures(video, truth)["flow_gain"] > 0.2
    with pytest.raises(ValueError, match="expected more than 9 frames, got 9"):
        figures(video, truth, 9)


def test_large_frames_are_made_smaller_and_their_pixels_counted() -> None:
    truth, _ = panning(3)
    metric = FlowError(max_side=24)
    metric.update(truth, truth)
    assert metric.compute()["flow_true_px"] == pytest.approx(figures(truth, truth)["flow_true_px"], rel=0.15)


def test_an_episode_in_which_nothing_moves_has_no_gain() -> None:
    truth, _ = panning()
    metric = FlowError()
    metric.update(truth, torch.cat([truth[:2], truth[2:, :1].expand_as(truth[2:])]))
    gains = metric.per_episode()["flow_gain"]
    assert gains[:2].tolist() == pytest.approx([1, 1]) and math.isnan(gains[2])
    assert metric.compute()["flow_gain"] == pytest.approx(1)


def test_ranks() -> None:
    truth, _ = panning(2)
    other, _ = panning(2, sign=0.5)
    assert_ranks_are_one(FlowError, [other[:1], truth[:1]], [other[1:2], truth[1:2]])


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected videos \[B, T, 3, H, W\] of one shape"):
        figures(torch.zeros(1, 3, 3, 16, 16), torch.zeros(1, 4, 3, 16, 16))
