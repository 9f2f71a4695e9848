"""Actions that were read off videos, rightly and wrongly, column by column."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.metrics.inverse_dynamics_model import Column
from lightning_action.evaluation.metrics.read_actions import ActionsReadBack, ReadingQuality
from tests.support.moving_dot import assert_ranks_are_one

COLUMNS = (Column("x", "continuous", 3), Column("y", "continuous", 3), Column("key", "discrete", 4))
RATIO = 3
EXACT = pytest.approx(1, abs=1e-6)


def actions(seed: int = 0, episodes: int = 6, rows: int = 30) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    move = torch.randn(episodes, rows, 2, generator=random) * torch.tensor([1.0, 5.0])
    return torch.cat([move, torch.randint(4, (episodes, rows, 1), generator=random).float()], dim=-1)


def figures(read: Callable[[Tensor], Tensor], real: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, float]:
    metric = ActionsReadBack(COLUMNS, RATIO)
    own, other = actions(), actions(7)
    metric.update(read(own), real(own), own, read(other), other)
    result: dict[str, float] = metric.compute()
    return result


def test_actions_that_are_read_as_they_were_given() -> None:
    result = figures(lambda given: given)
    assert all(
        result[f"{name}_{column.name}"] == EXACT for name in ("idm_gain", "idm_gain_other") for column in COLUMNS
    )
    assert result["idm_correlation"] == result["idm_correlation_real"] == EXACT
    assert (result["idm_lag_frames"], result["idm_lag_correlation"]) == (0, EXACT)
    assert result["idm_cross_talk_x_to_y"] == pytest.approx(0, abs=1e-6)


def test_a_video_that_says_nothing() -> None:
    result = figures(lambda given: torch.ones_like(given))
    assert all(result[f"idm_gain_{column.name}"] == 0 for column in COLUMNS)
    assert result["idm_correlation"] == 0 < result["idm_correlation_real"]


def test_a_column_that_is_inverted_weak_or_cut() -> None:
    result = figures(lambda given: given * torch.tensor([-1.0, 0.5, 0.0]))
    assert [result[f"idm_gain_{name}"] for name in ("x", "y", "key")] == pytest.approx([-1, 0.5, 0], abs=1e-6)
    assert result["idm_correlation_y"] == EXACT


def test_the_gain_is_measured_by_what_is_read_off_real_videos() -> None:
    """A reader that shrinks all it reads is no fault of the video."""
    shrinks = torch.tensor([0.7, 0.7, 1.0])
    assert figures(lambda given: shrinks * given, lambda given: shrinks * given)["idm_gain_x"] == EXACT


def test_swapped_columns_talk_across() -> None:
    deviations = actions().unflatten(1, (-1, RATIO)).mean(dim=2).flatten(0, 1).std(dim=0)
    deviations[2] = 1
    swapped = [1, 0, 2]
    result = figures(lambda given: (given / deviations)[..., swapped] * deviations)
    assert result["idm_cross_talk_x_to_y"] == EXACT and result["idm_cross_talk_y_to_x"] == EXACT
    assert abs(result["idm_gain_x"]) < 0.2


def test_what_comes_late() -> None:
    assert figures(lambda given: given.roll(2, dims=1))["idm_lag_frames"] == 2
    metric = ActionsReadBack(COLUMNS, RATIO, rows_per_frame=2)
    own = actions()
    late = own.roll(2, dims=1)
    metric.update(late, own, own, late, own)
    assert metric.compute()["idm_lag_frames"] == 1


def test_who_tells_from_the_start_what_will_be_done() -> None:
    metric = ActionsReadBack(COLUMNS, RATIO)
    own, other = actions(), actions(7)
    metric.update(own, own, own, own, other)
    result = metric.compute()
    assert result["idm_gain_x"] == EXACT and abs(result["idm_gain_other_x"]) < 0.2


def test_a_column_that_is_not_read_off_real_videos_has_no_gain() -> None:
    result = figures(lambda given: given, lambda given: 0 * given)
    assert result["idm_correlation_real"] == 0 and math.isnan(result["idm_gain_x"])


def test_a_column_that_is_never_given_another_value_is_left_out() -> None:
    metric, own = ActionsReadBack(COLUMNS, RATIO), actions()
    # What rounds differently in each row is no other value.
    own[..., 1] = 3.1 + 1e-6 * torch.rand(6, 30)
    late = own.roll(2, dims=1) + torch.tensor([0.0, 1.0, 0.0]) * torch.randn(6, 30, 3)
    metric.update(late, own, own, late, own)
    result = metric.compute()
    names = ["idm_gain_y", "idm_correlation_y", "idm_correlation_real_y", "idm_cross_talk_x_to_y"]
    assert all(math.isnan(result[name]) for name in (*names, "idm_cross_talk_y_to_x"))
    assert result["idm_correlation_real"] == EXACT
    assert result["idm_lag_frames"] == 2 and result["idm_lag_correlation"] > 0.95
    assert all(math.isnan(value) for value in metric.per_episode()["idm_gain_y"])


def test_columns_that_nobody_reads_do_not_hide_a_lag() -> None:
    columns = [Column(f"joint_{index}", "continuous", 3) for index in range(8)]
    random = torch.Generator().manual_seed(0)
    own, noise = (torch.randn(6, 30, 8, generator=random) for _ in range(2))
    reads = torch.arange(8) < 2
    metric = ActionsReadBack(columns, RATIO)
    late = torch.where(reads, own.roll(1, dims=1), noise)
    metric.update(late, torch.where(reads, own, noise), own, late, own)
    result = metric.compute()
    assert result["idm_lag_frames"] == 1 and result["idm_lag_correlation"] > 0.9


def test_quality_beside_what_can_be_had_without_looking() -> None:
    given = actions()
    half = torch.arange(30) % 2 == 0
    read = torch.where(half[:, None], given, given.flatten(0, 1).mean(dim=0))
    read[..., 2] = torch.where(half, given[..., 2], (given[..., 2] + 1) % 4)
    quality = ReadingQuality(COLUMNS)
    quality.update(read, given)
    result = quality.compute()
    assert result["accuracy_key"] == 0.5 and abs(result["correlation_key"] - 1 / 3) < 0.1
    assert result["chance_key"] == given[..., 2].flatten().long().bincount().max().item() / 180
    wrong = (read - given)[..., 0].square().sum() / (given - given.mean(dim=(0, 1)))[..., 0].square().sum()
    assert result["r2_x"] == pytest.approx(1 - wrong.item()) and 0.3 < result["r2_x"] < 0.7


def test_each_episode_has_its_correlation() -> None:
    own = actions()
    metric = ActionsReadBack(COLUMNS, RATIO)
    metric.update(torch.cat([own[:3], 0 * own[3:]]), own, own, own, own)
    assert metric.per_episode()["idm_correlation"].tolist() == pytest.approx([1, 1, 1, 0, 0, 0], abs=1e-5)


def test_each_episode_has_its_share_of_the_gain() -> None:
    """Also where actions never vary within an episode."""
    own, other = actions(), actions(7)
    held = own[:, :1].expand_as(own)
    half = torch.tensor([0.5, 1.0, 1.0])
    metric = ActionsReadBack(COLUMNS, RATIO)
    metric.update(torch.cat([half * held[:3], held[3:]]), held, held, other, other)
    shares, gain = metric.per_episode()["idm_gain_x"], metric.compute()["idm_gain_x"]
    assert shares.mean().item() == pytest.approx(gain) and 0.5 < gain < 1
    assert metric.per_episode()["idm_gain_y"].tolist() == pytest.approx([1] * 6)
    assert metric.per_episode()["idm_gain_other_x"].tolist() == pytest.approx([1] * 6)


@pytest.mark.parametrize("shape", [(0, 30, 3), (2, RATIO - 1, 3)])
def test_without_a_latent_frame_that_has_actions_nothing_is_told(shape: tuple[int, ...]) -> None:
    metric, none = ActionsReadBack(COLUMNS, RATIO), torch.zeros(shape)
    metric.update(none, none, none, none, none)
    assert math.isnan(metric.compute()["idm_gain_x"]) and math.isnan(metric.compute()["idm_cross_talk_x_to_y"])
    assert len(metric.per_episode().get("idm_gain_x", [])) == len(none)


def test_ranks() -> None:
    first, second = ([actions(seed + each) for each in range(5)] for seed in (0, 9))
    assert_ranks_are_one(partial(ActionsReadBack, COLUMNS, RATIO), first, second)
    assert_ranks_are_one(partial(ReadingQuality, COLUMNS), first[:2], second[:2])


def test_what_is_smeared_within_a_latent_frame_counts_whole() -> None:
    def smeared(given: Tensor) -> Tensor:
        return given.unflatten(1, (-1, RATIO)).mean(dim=2).repeat_interleave(RATIO, dim=1)

    metric = ActionsReadBack(COLUMNS[:2], RATIO)
    own = actions()[..., :2]
    metric.update(smeared(own), own, own, smeared(own), own)
    assert [metric.compute()[name] for name in ("idm_gain_x", "idm_correlation_y")] == [EXACT, EXACT]
