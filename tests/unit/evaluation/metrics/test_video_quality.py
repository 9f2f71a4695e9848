"""PSNR, SSIM and delta PSNR of videos whose errors are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from lightning_action.evaluation.metrics.motion import moving_region
from lightning_action.evaluation.metrics.video_quality import DeltaPsnr, VideoQuality, psnr, ssim_map
from tests.support.moving_dot import assert_ranks_are_one, dot_paths, dot_video

TRUTH = dot_video(dot_paths(speed=2.0))
COPY = TRUTH[:, :1].expand_as(TRUTH)


def quality(video: Tensor, truth: Tensor = TRUTH, num_initial_frames: int = 1) -> dict[str, float]:
    metric = VideoQuality(num_initial_frames)
    metric.update(video, truth)
    result: dict[str, float] = metric.compute()
    return result


def test_a_perfect_video() -> None:
    result = quality(TRUTH)
    assert len(result) == 12
    for name, value in result.items():
        assert value == pytest.approx(100 if name.endswith("_db") else 1, abs=1e-4), name


def test_the_moving_region_tells_a_copy_from_a_good_video() -> None:
    copy = quality(COPY)
    assert copy["psnr_moving_db"] < copy["psnr_db"] - 3
    assert copy["ssim_moving"] < copy["ssim"] - 0.05
    region = moving_region(TRUTH)[:, 1:]
    error = (COPY - TRUTH)[:, 1:].square().mean(dim=2)
    expected = [
        -10 * math.log10(each[mask].mean())
        for each, mask in zip(error.flatten(0, 1), region.flatten(0, 1), strict=True)
    ]
    assert copy["psnr_moving_db"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_errors_outside_the_moving_region_do_not_count_in_it() -> None:
    video = torch.where(moving_region(TRUTH)[:, :, None], TRUTH, TRUTH + 0.1)
    result = quality(video)
    assert result["psnr_moving_db"] == pytest.approx(100)
    assert 20 < result["psnr_db"] < 25


def test_quality_falls_along_the_horizon() -> None:
    errors = 0.01 * torch.arange(13.0)[None, :, None, None, None]
    metric = VideoQuality(num_initial_frames=5)
    metric.update(TRUTH + errors, TRUTH)
    curve = metric.curves()["psnr_db"]
    assert curve.tolist() == pytest.approx([-20 * math.log10(0.01 * frame) for frame in range(5, 13)], abs=1e-3)
    result = metric.compute()
    assert result["psnr_first_db"] == pytest.approx(-20 * math.log10(0.05), abs=1e-3)
    assert result["psnr_last_db"] == pytest.approx(-20 * math.log10(0.12), abs=1e-3)
    assert result["ssim_first"] > result["ssim_last"]
    assert metric.per_episode()["psnr_db"].tolist() == pytest.approx([result["psnr_db"]] * 3, abs=1e-3)


def test_frames_in_which_nothing_moves_are_left_out() -> None:
    truth = TRUTH.clone()
    truth[:, 6:] = truth[:, 5:6]
    metric = VideoQuality()
    metric.update(truth + 0.1, truth)
    result = metric.compute()
    assert result["psnr_moving_db"] == pytest.approx(20, abs=1e-3)
    assert math.isnan(result["psnr_moving_last_db"]) and math.isnan(result["ssim_moving_last"])
    assert metric.curves()["ssim_moving"].isnan().tolist() == [False] * 5 + [True] * 7


def test_similarity_is_that_of_torchmetrics() -> None:
    video = TRUTH + 0.1 * torch.rand(TRUTH.shape, generator=torch.Generator().manual_seed(0))
    whole = structural_similarity_index_measure(
        video.flatten(0, 1), TRUTH.flatten(0, 1), data_range=1.0, reduction="none"
    )
    assert isinstance(whole, Tensor)
    torch.testing.assert_close(ssim_map(video, TRUTH).mean(dim=(2, 3)).flatten(), whole)


def test_ranks() -> None:
    videos = [dot_video(dot_paths(seed)) for seed in range(6)]
    assert_ranks_are_one(VideoQuality, videos[:2], videos[2:4])
    assert_ranks_are_one(DeltaPsnr, videos[:3], videos[3:])


def delta(video: Tensor, video_other: Tensor, **arguments: int) -> dict[str, float]:
    metric = DeltaPsnr(**arguments)
    metric.update(TRUTH, video, video_other)
    result: dict[str, float] = metric.compute()
    return result


def test_delta_psnr_of_a_perfect_and_of_a_blind_model() -> None:
    assert delta(TRUTH, COPY)["delta_psnr_db"] > 50
    for blind in (COPY, TRUTH):
        result = delta(blind, blind)
        assert result["delta_psnr_db"] == result["delta_psnr_all_frames_db"] == 0
    assert delta(COPY, TRUTH)["delta_psnr_db"] < -50


def test_delta_psnr_is_taken_at_frame_4() -> None:
    errors = torch.full((1, 13, 1, 1, 1), 0.1)
    errors[:, 4] = 0.01
    result = delta(TRUTH + errors, TRUTH + 0.1)
    assert result["delta_psnr_db"] == pytest.approx(20, abs=1e-3)
    assert result["delta_psnr_all_frames_db"] == pytest.approx(20 / 12, abs=1e-3)
    assert result["psnr_db"] == pytest.approx(20 + 20 / 12, abs=1e-3)
    later = delta(TRUTH + errors, TRUTH + 0.1, frame=8, num_initial_frames=5)
    assert later["delta_psnr_db"] == pytest.approx(0, abs=1e-3)


def test_delta_psnr_of_a_given_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a generated frame, 5 or later, got frame 4"):
        DeltaPsnr(num_initial_frames=5)


def test_videos_of_other_lengths_are_refused() -> None:
    for metric in (VideoQuality(), DeltaPsnr()):
        with pytest.raises(ValueError, match="cut them to the same frames"):
            metric.update(TRUTH, *([TRUTH[:, :9]] if isinstance(metric, VideoQuality) else [TRUTH, TRUTH[:, :9]]))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (lambda shape: torch.full(shape, 0.1), 20.0),
        (lambda shape: torch.full(shape, -0.01), 40.0),
        (torch.zeros, 100.0),
    ],
)
def test_psnr_of_an_even_error(error: Callable[[tuple[int, ...]], Tensor], expected: float) -> None:
    target = torch.full((2, 5, 3, 4, 6), 0.5)
    result = psnr(target + error(tuple(target.shape)), target)
    torch.testing.assert_close(result, torch.full((2, 5), expected), atol=1e-4, rtol=0)


def test_psnr_is_of_each_frame_alone() -> None:
    target = torch.zeros(2, 5, 3, 4, 6)
    predicted = target.clone()
    predicted[1, 3, 2, 0, 5] = 1.0  # one of 72 values
    expected = torch.full((2, 5), 100.0)
    expected[1, 3] = 10 * np.log10(72)
    torch.testing.assert_close(psnr(predicted, target), expected, atol=1e-4, rtol=0)


def test_psnr_of_a_region_counts_its_pixels_alone() -> None:
    target = torch.zeros(2, 5, 3, 4, 6)
    predicted = target + 0.1
    region = torch.zeros(2, 5, 4, 6, dtype=torch.bool)
    region[0, 1, 2, 3] = True
    predicted[0, 1, :, 2, 3] = 0.01
    result = psnr(predicted, target, region)
    assert result[0, 1].item() == pytest.approx(40, abs=1e-4)
    assert result.isnan().sum() == 9
