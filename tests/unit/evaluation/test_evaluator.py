"""What an evaluator gathers; tests/unit/evaluation/test_obedience.py has all figures of whole tests."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_action.evaluation.evaluator import CURVES, Evaluator, Seen
from lightning_action.generator.causality import BlockCausality
from tests.support.moving_dot import dot_paths, dot_video

IDS = torch.tensor([4, 9, 2])


def seen(paths: Tensor, found: Tensor | None = None) -> Seen:
    return Seen(dot_video(paths), paths, found)


def everywhere(paths: Tensor) -> Tensor:
    return torch.ones(paths.shape[:2], dtype=torch.bool)


def test_the_last_place_stands_for_those_where_the_object_is_missing() -> None:
    paths, found = dot_paths(num_frames=4), torch.tensor([[True, True, False, False]] * 3)
    assert torch.equal(seen(paths, found).path, paths[:, [0, 1, 1, 1]])
    assert seen(paths).path is paths and Seen(dot_video(paths)).path is None


def test_samples_of_which_nothing_is_known_are_hidden() -> None:
    whole = seen(dot_paths())
    assert whole.unknown_where(torch.zeros(3, dtype=torch.bool)) is whole
    hidden = whole.unknown_where(torch.tensor([False, True, False]))
    assert hidden.video[1].isnan().all() and torch.equal(hidden.video[::2], whole.video[::2])
    assert hidden.positions is not None and hidden.positions[1].isnan().all() and not hidden.positions[0].isnan().any()
    assert Seen(whole.video).unknown_where(torch.tensor([False, True, False])).positions is None


def test_the_truth_itself_is_without_error() -> None:
    truth, true_other = dot_paths(), dot_paths(seed=1)
    evaluator = Evaluator(4, 1)
    own, other = seen(truth, everywhere(truth)), seen(true_other, everywhere(truth))
    evaluator.update_videos(own, other, seen(truth), seen(true_other), IDS)
    report = evaluator.compute()
    assert report["ade_px"] == 0 and report["counterfactual_ratio"] == 0
    assert report["cross_swap_accuracy"] == 1 and report["delta_psnr_db"] > 0
    assert evaluator.sample_ids() == [4, 9, 2]
    episodes = evaluator.per_episode()
    assert {len(values) for values in episodes.values()} == {3} and episodes["ade_px"] == [0, 0, 0]
    low, high = evaluator.intervals()["delta_psnr_db"]
    assert low <= report["delta_psnr_db"] <= high
    curves = evaluator.curves()
    assert list(curves) == list(CURVES) and {len(curve) for curve in curves.values()} == {12}


def test_what_only_a_simulator_could_tell_is_left_out() -> None:
    truth = dot_paths()
    evaluator = Evaluator(4, 1)
    evaluator.update_videos(Seen(dot_video(truth)), Seen(dot_video(truth)), Seen(dot_video(truth)), None, IDS)
    report = evaluator.compute()
    assert not {"counterfactual_divergence", "counterfactual_ratio", "true_difference"} & report.keys()
    assert "ade_px" not in report and report["delta_psnr_db"] == 0
    assert "position_error_px" not in evaluator.curves()


class SampleLosses(NamedTuple):
    per_frame: Tensor
    timestep: Tensor
    per_frame_moving: Tensor | None = None


def losses(*values: float) -> SampleLosses:
    """Losses of three samples, the same in each of five frames."""
    return SampleLosses(torch.tensor(values)[:, None].expand(3, 5), torch.full((3, 5), 500.0))


def test_losses_under_actions_that_are_the_own_ones_tell_nothing() -> None:
    """Gaps of 1, 2 and 5; the swapped actions of the last sample are its own."""
    evaluator = Evaluator(4, 1)
    same = torch.tensor([False, False, True])
    evaluator.motion.update(torch.zeros(3, 2, 3, 4, 4), torch.ones(3, 2, 3, 4, 4), IDS)
    evaluator.update_losses(
        {"true": losses(1.0, 1.0, 1.0), "swapped": losses(2.0, 3.0, 6.0), "null": losses(2.0, 3.0, 6.0)}, same
    )
    found = {name: value for name, value in evaluator.compute().items() if name in ("swapped_gap", "null_gap")}
    assert found == {"swapped_gap": pytest.approx(1.5), "null_gap": pytest.approx(8 / 3)}
    assert {"swapped_gap", "null_win_rate"} <= evaluator.teacher_forced()
    by_noise = evaluator.loss_by_noise_level()
    assert by_noise.keys() == {"swapped", "null"} and all(len(row) == 4 for row in by_noise["null"])
    assert math.isnan(evaluator.per_episode()["swapped_gap"][2])


@pytest.mark.parametrize(
    ("ratio", "given", "causality", "seams"),
    [
        (1, 1, BlockCausality(1), None),
        (4, 1, BlockCausality(1), (4, 1)),
        (4, 2, BlockCausality(3), (12, 9)),
        (4, 1, BlockCausality(3, independent_first_frame=True), (12, 1)),
    ],
)
def test_seams_are_those_after_the_first_block_that_was_generated_whole(
    ratio: int, given: int, causality: BlockCausality, seams: tuple[int, int] | None
) -> None:
    found = Evaluator(ratio, given, causality).seams
    assert (None if found is None else (found.frames_per_block, found.num_initial_frames)) == seams


def test_without_a_model_that_reads_actions_there_are_none_to_compare() -> None:
    evaluator = Evaluator(4, 1)
    evaluator.update_read_actions(IDS, {"read": torch.zeros(3, 4, 2)})
    assert evaluator.read_back is None and evaluator.compute() == {}
