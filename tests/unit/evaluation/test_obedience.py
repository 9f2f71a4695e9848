"""The test of obedience, put to models whose obedience is known."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.batch import Batch, other_actions, to_unit_range, without_actions
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.evaluation.evaluator import Evaluator, Seen
from lightning_action.evaluation.known_state import position_reader, simulator
from lightning_action.evaluation.obedience import BASELINES, ObedienceTest, copy_of_first_frames
from lightning_action.evaluation.report.comparison import compare
from lightning_action.evaluation.report.figures import figures_of
from lightning_action.evaluation.report.report import Report, format_table, null_where_undefined, write_report
from lightning_action.evaluation.report.verdict import judge
from lightning_action.generator.causality import BlockCausality
from lightning_action.losses import Loss
from lightning_action.seeding import generator_for

pytestmark = pytest.mark.usefixtures("few_draws")
QUALITY = {
    *("sign_accuracy", "gain_x", "gain_y", "r2_x", "r2_y", "lag_frames", "ade_px", "episodes"),
    *("delta_psnr_db", "swapped_win_rate", "shuffled_win_rate", "null_win_rate", "swapped_win_rate_moving"),
    *("psnr_moving_db", "ssim", "divergence_onset_frames", "seam_ratio", "motion_ratio", "static_rate"),
    *("counterfactual_ratio", "cross_swap_accuracy"),
}
KINDS = ("swapped", "shuffled", "null")
Generate = Callable[[Batch], Tensor]
# 5 latent frames at ratio 3; two batches, of 4 and 3 videos.
DATA = SpriteDataModule(
    MovingSpriteWorld(image_size=24, sprite_radius=3.5, hold_probability=0.9),
    num_latents=5,
    temporal_compression_ratio=3,
    test_size=7,
    eval_batch_size=4,
)
BATCHES = list(DATA.test_dataloader())


def render(batch: Batch, actions: Tensor) -> Tensor:
    """What the simulator shows under some actions, in [0, 1]."""
    start = DATA.world.start(DATA.dataset("test").seeds(batch["sample_id"].tolist()))
    return DATA.world.render(start, DATA.world.simulate(start, actions)) * 0.5 + 0.5


def obeys(batch: Batch) -> Tensor:
    """Nothing moves when no action is given."""
    null = torch.zeros(len(batch["prompt"]), DATA.num_frames - 1, 2)
    return render(batch, null if batch["action"] is None else batch["action"])


def ignores(batch: Batch) -> Tensor:
    return render(batch, 0.5 * torch.ones(len(batch["prompt"]), DATA.num_frames - 1, 2))


def loss_of_frames(per_frame: Tensor) -> Loss:
    """At noise levels 100 and 900; where something moves it is twice as large."""
    return Loss(per_frame.mean(dim=1), per_frame, torch.tensor([100.0, 900.0]).expand_as(per_frame), 2 * per_frame)


def losses_of_an_obedient_model(batch: Batch) -> dict[str, Loss]:
    true = 0.5 + torch.stack([torch.rand(2, generator=generator_for(sample)) for sample in batch["sample_id"].tolist()])
    factors = {"true": 1.0, "swapped": 1.25, "shuffled": 1.5, "null": 1.125}
    return {name: loss_of_frames(factor * true) for name, factor in factors.items()}


def losses_of_a_model_without_actions(batch: Batch) -> dict[str, Loss]:
    return dict.fromkeys(("true", *KINDS), losses_of_an_obedient_model(batch)["true"])


def measured(
    generate: Generate,
    losses: Callable[[Batch], dict[str, Loss]] = losses_of_an_obedient_model,
    batches: list[Batch] = BATCHES,
    with_positions: bool = True,
    num_initial_latents: int = 1,
    with_simulator: bool = True,
) -> ObedienceTest:
    reader = position_reader(DATA, "test") if with_positions else None
    simulate = simulator(DATA, "test") if with_positions and with_simulator else None
    test = ObedienceTest(
        lambda batch, scale, draw: generate(batch),
        lambda batch: to_unit_range(batch["video"]),
        DATA.action_schema,
        num_initial_latents,
        reader,
        simulate,
        BlockCausality(2, independent_first_frame=True),
    )
    for batch in batches:
        truth = test.add_model(batch, losses(batch))
        test.add_baselines(batch, losses(batch), truth)
    return test


@cache
def report_of_an_obedient_model() -> Report:
    return measured(obeys).report()


def test_a_model_that_obeys() -> None:
    report = report_of_an_obedient_model()
    assert report["sign_accuracy"] == 1
    for name in ("gain_x", "gain_y", "r2_x", "r2_y"):
        # The position is read off pictures to 0.13 px.
        assert report[name] == pytest.approx(1, abs=0.02)
    assert report["lag_frames"] == 0
    assert report["ade_px"] < 0.1
    assert report["missing_rate"] == 0
    assert report["psnr_db"] == pytest.approx(100)  # the cap: not one pixel is wrong
    assert report["delta_psnr_db"] > 10
    assert report["delta_psnr_all_frames_db"] > 10
    assert report["swapped_win_rate"] == 1
    assert report["swapped_relative_gap"] == pytest.approx(0.25)
    assert report["episodes"] == 7


def test_a_rollout_under_own_actions_alone_has_the_same_figures_of_them() -> None:
    both, alone = measured(obeys, batches=[]), measured(obeys, batches=[])
    both.add_model(BATCHES[0], {})
    alone.add_own(BATCHES[0])
    expected, found = both.compute("model"), alone.compute("model")
    assert {name: expected[name] for name in found} == pytest.approx(found, rel=0, abs=0, nan_ok=True)
    assert "gain_x" in found and "delta_psnr_db" in expected.keys() - found.keys()


def test_a_model_that_ignores_actions() -> None:
    report = measured(ignores, losses_of_a_model_without_actions).report()
    assert report["delta_psnr_db"] == report["delta_psnr_all_frames_db"] == 0
    assert report["swapped_win_rate"] == 0.5
    assert report["swapped_relative_gap"] == 0
    assert 0.2 < report["sign_accuracy"] < 0.8
    assert abs(report["gain_x"]) < 0.3
    assert report["ade_px"] > 3


def test_baselines_stand_beside_the_model() -> None:
    report = report_of_an_obedient_model()
    assert set(report["baselines"]) == set(BASELINES) == {"copy_first_frame", "ignore_actions"}
    for baseline in report["baselines"].values():
        assert baseline["sign_accuracy"] == baseline["delta_psnr_db"] == baseline["swapped_relative_gap"] == 0
        assert baseline["swapped_win_rate"] == 0.5
        assert baseline["gain_x"] == pytest.approx(0, abs=1e-6)
        assert baseline["ade_px"] > 1
    # This model stands still without actions, so here the two baselines are one.
    copy, ignore = (report_of_an_obedient_model()["baselines"][name] for name in BASELINES)
    assert copy["psnr_db"] == pytest.approx(ignore["psnr_db"])
    moving = measured(ignores).report()["baselines"]
    assert moving["copy_first_frame"]["psnr_db"] == copy["psnr_db"]
    assert moving["ignore_actions"]["psnr_db"] != copy["psnr_db"]


def test_the_report_has_all_its_keys() -> None:
    report = report_of_an_obedient_model()
    assert report.keys() >= {*QUALITY, "predict_seconds", "baselines", "num_frames", "num_initial_frames", "rollout"}
    for baseline in report["baselines"].values():
        assert baseline.keys() >= QUALITY
        assert baseline.keys() == report.keys() & baseline.keys() and "held_drift_px" not in baseline
    assert (report["num_frames"], report["num_initial_frames"]) == (13, 1)
    assert all(isinstance(report[key], float) for key in QUALITY)
    told = [name for name, value in report.items() if isinstance(value, float) and name != "predict_seconds"]
    protocol = report["protocol"]
    assert sorted([*protocol["teacher_forced"], *protocol["autoregressive"]]) == sorted(told)
    assert "null_gap_moving" in protocol["teacher_forced"] and "gain_x" in protocol["autoregressive"]
    assert report["intervals"].keys() == set(told)


def test_figures_of_each_episode_and_of_each_frame() -> None:
    report = report_of_an_obedient_model()
    assert report["sample_ids"] == list(range(7))
    for figures in (report["per_episode"], *report["baselines_per_episode"].values()):
        assert {len(values) for values in figures.values()} == {7} and figures.keys() >= {"gain_x", "swapped_gap"}
    for name in ("psnr_db", "ade_px", "counterfactual_divergence", "swapped_relative_gap"):
        assert sum(report["per_episode"][name]) / 7 == pytest.approx(report[name])
    assert report["curves"].keys() == {"psnr_db", "ssim", "psnr_moving_db", "position_error_px"}
    for quantity, curves in report["curves"].items():
        assert curves.keys() == {"model", *BASELINES} and {len(curve) for curve in curves.values()} == {12}
        assert curves["model"] != curves["copy_first_frame"], quantity
    error = report["curves"]["position_error_px"]["copy_first_frame"]
    assert sum(error) / 12 == pytest.approx(report["baselines"]["copy_first_frame"]["ade_px"])
    levels = report["loss_by_noise_level"]
    assert levels.keys() == set(KINDS)
    assert [row[:2] for row in levels["null"]] == [[low, low + 200] for low in range(0, 1000, 200)]
    assert levels["swapped"][0][3] == levels["swapped"][4][3] == 1 and levels["swapped"][1][3] is not None
    assert "swapped_gap_0_200" not in report


def test_every_figure_with_an_interval_can_be_compared() -> None:
    """Those of probes too, of the samples that were probed."""
    test = measured(obeys)
    test.add_probes(BATCHES[0])
    report = test.report()
    for key, figure in figures_of(report["intervals"]).items():
        assert figure.better is None or len(report["per_episode"][key]) == 7, key
    drifts = report["per_episode"]["held_drift_px"]
    assert drifts == pytest.approx([0, 0, 0, 0, math.nan, math.nan, math.nan], abs=1e-4, nan_ok=True)
    found = compare(report, report, ("A", "B"))
    assert found.is_paired and not any(change.tested and not change.tested.is_paired for change in found.changes)
    # Undefined in all episodes: noise does nothing here.
    assert [change.figure.key for change in found.changes if change.tested is None] == ["controllability_ratio"]


def test_a_simulator_says_what_other_actions_show() -> None:
    report = report_of_an_obedient_model()
    assert report["counterfactual_divergence"] == pytest.approx(0, abs=1e-6)
    assert report["counterfactual_ratio"] == pytest.approx(0, abs=1e-4)
    assert report["generated_difference"] == pytest.approx(report["true_difference"]) != 0
    assert report["cross_swap_accuracy"] == 1
    for name in BASELINES:
        assert report["baselines"][name]["counterfactual_ratio"] == pytest.approx(1)
    blind = measured(ignores, losses_of_a_model_without_actions).compute("model")
    assert blind["counterfactual_ratio"] == pytest.approx(1) and blind["cross_swap_accuracy"] < 1
    without = measured(obeys, with_simulator=False).compute("model")
    assert "counterfactual_ratio" not in without and without["sign_accuracy"] == 1
    # Its start is its own, which no simulator knows.
    assert "counterfactual_ratio" not in measured(obeys, num_initial_latents=0).compute("model")


@pytest.mark.parametrize("num_initial_latents", [1, 2, 3])
def test_rows_of_given_frames_stay_under_other_actions(num_initial_latents: int) -> None:
    report = measured(obeys, num_initial_latents=num_initial_latents).compute("model")
    assert report["counterfactual_ratio"] == pytest.approx(0, abs=1e-4) and report["cross_swap_accuracy"] == 1


@pytest.mark.parametrize(("num_initial_latents", "own_rows"), [(0, 0), (1, 0), (3, 6)])
def test_other_actions_begin_after_what_is_given(num_initial_latents: int, own_rows: int) -> None:
    seen: list[Tensor] = []

    def generate(batch: Batch) -> Tensor:
        seen.append(batch["action"])
        return obeys(batch)

    measured(generate, batches=BATCHES[:1], num_initial_latents=num_initial_latents)
    action, other = BATCHES[0]["action"], seen[1]
    assert torch.equal(other[:, :own_rows], action[:, :own_rows])
    assert torch.equal(other[:, own_rows:], action.roll(1, 0)[:, own_rows:])


def test_static_videos_are_named() -> None:
    def stops(batch: Batch) -> Tensor:
        video = obeys(batch).clone()
        still = batch["sample_id"] % 3 == 1
        video[still] = video[still, :1]
        return video

    report = measured(stops).report()
    assert report["static_samples"] == [1, 4] and report["static_rate"] == pytest.approx(2 / 7)
    assert report["baselines"]["copy_first_frame"]["static_rate"] == 1


def test_pictures_are_bytes_of_a_few_samples() -> None:
    test = measured(obeys)
    pictures = test.pictures()
    assert pictures.keys() == {"truth", "model", "other", "null"}
    for name, video in pictures.items():
        assert video.shape == (4, 13, 3, 24, 24) and video.dtype == torch.uint8, name
    assert torch.equal(pictures["truth"], pictures["model"])
    assert not torch.equal(pictures["truth"], pictures["other"])
    assert torch.equal(pictures["null"][:, 0], pictures["null"][:, -1])


def test_seams_are_those_of_blocks() -> None:
    """Twice as much moves where a block of two latent frames begins."""
    position = torch.arange(13.0) + torch.tensor([0.0] + [1 + index // 6 for index in range(12)])

    def jumps(batch: Batch) -> Tensor:
        return (0.04 * position)[None, :, None, None, None].expand_as(batch["video"]).clone()

    report = measured(jumps, with_positions=False).compute("model")
    assert report["seam_ratio"] == pytest.approx(2)


def test_a_batch_more_is_counted() -> None:
    first, both = measured(obeys, batches=BATCHES[:1]), measured(obeys)
    assert (first.compute("model")["episodes"], both.compute("model")["episodes"]) == (4, 7)
    assert first.compute("copy_first_frame")["psnr_db"] != both.compute("copy_first_frame")["psnr_db"]


def test_the_model_is_run_with_true_other_and_no_actions() -> None:
    seen: list[Tensor | None] = []

    def generate(batch: Batch) -> Tensor:
        seen.append(batch.get("action"))
        return obeys(batch)

    measured(generate)
    for batch, (true, other, none) in zip(BATCHES, (seen[:3], seen[3:]), strict=True):
        action: Tensor = batch["action"]
        assert true is action
        assert other is not None and torch.equal(other, action.roll(1, 0))
        assert none is None


def test_seconds_are_those_of_the_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(start=100, step=2.5)
    monkeypatch.setattr("lightning_action.evaluation.obedience.time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert measured(obeys).report()["predict_seconds"] == 15  # three rollouts of each of two batches


def test_a_model_that_does_the_opposite() -> None:
    def perverse(batch: Batch) -> Tensor:
        return obeys({**batch, "action": -batch["action"]} if batch["action"] is not None else batch)

    report = measured(perverse).compute("model")
    assert report["sign_accuracy"] < 0.2
    assert report["gain_x"] < 0 and report["gain_y"] < 0  # not -1: the walls stop one and not the other


def test_without_positions_the_rest_is_measured() -> None:
    report = measured(obeys, with_positions=False).report()
    assert report["delta_psnr_db"] > 10
    assert "sign_accuracy" not in report
    assert "sign accuracy" not in format_table(report)
    assert "PSNR" in format_table(report)


def psnr_of_frames(*decibels: float) -> tuple[Tensor, Tensor]:
    """Truth and a video `[1, T, 3, 2, 5]` that misses it by so many decibels in each frame."""
    errors = torch.tensor([10 ** (-value / 20) for value in decibels])
    return torch.zeros(1, len(errors), 3, 2, 5), errors[None, :, None, None, None].expand(1, -1, 3, 2, 5)


@pytest.mark.parametrize(("num_initial_frames", "first_block_end"), [(1, 3), (4, 6)])
def test_delta_psnr_is_taken_at_the_end_of_the_first_generated_block(
    num_initial_frames: int, first_block_end: int
) -> None:
    truth, video = psnr_of_frames(*range(30, 37))
    _, other = psnr_of_frames(*[value - 2 * index for index, value in enumerate(range(30, 37))])
    evaluator = Evaluator(3, num_initial_frames)
    evaluator.update_videos(Seen(video), Seen(other), Seen(truth), None, torch.zeros(1))
    result = evaluator.compute()
    generated = range(num_initial_frames, 7)
    assert result["delta_psnr_db"] == pytest.approx(2 * first_block_end, abs=1e-4)
    assert result["psnr_db"] == pytest.approx(30 + sum(generated) / len(generated), abs=1e-4)
    assert result["delta_psnr_all_frames_db"] == pytest.approx(2 * sum(generated) / len(generated), abs=1e-4)


def test_a_tie_counts_half() -> None:
    evaluator = Evaluator(3, 1)
    for true, swapped in (([1.0, 2.0], [1.5, 2.0]), ([4.0, 1.0, 1.0], [3.0, 2.0, 5.0])):
        losses = {"true": torch.tensor([true]).T, "swapped": torch.tensor([swapped]).T}
        evaluator.update_losses({name: Loss(x[:, 0], x, torch.zeros_like(x)) for name, x in losses.items()})
    result = evaluator.compute()
    assert result["swapped_win_rate"] == pytest.approx((1 + 0.5 + 0 + 1 + 1) / 5)
    assert result["swapped_relative_gap"] == pytest.approx((0.5 + 0 - 0.25 + 1 + 4) / 5)


def test_other_actions_that_are_the_same_tell_nothing() -> None:
    """Else a model that obeys would look like one that ignores its actions, and a simulator like no difference."""
    command = BATCHES[0]["action"][:1]
    alike = [{**batch, "action": command.expand_as(batch["action"])} for batch in BATCHES]
    two, rest = ({**alike[0], "action": torch.cat([-command, -command, command, command])}, alike[1])
    none = measured(obeys, losses_of_a_model_without_actions, alike).report()
    told = ("swapped_win_rate", "delta_psnr_db", "counterfactual_ratio", "generated_difference", "cross_swap_accuracy")
    assert all(math.isnan(none[name]) for name in (*told, "swapped_win_rate_moving"))
    assert none["shuffled_win_rate"] == 0.5 and not math.isnan(none["psnr_db"])
    without = measured(obeys, losses_of_a_model_without_actions, alike, with_positions=False)
    assert judge({"episodes": 9.0, **without.compute("model")}).label == "cannot tell"
    some = measured(obeys, batches=[{**two, "video": 2 * obeys(two) - 1}, rest]).report()
    # Of each batch, the sample before: of the first one, samples 0 and 2 have others.
    defined = [value is not None and not math.isnan(value) for value in some["per_episode"]["delta_psnr_db"]]
    assert defined == [True, False, True, False, False, False, False]
    assert some["swapped_win_rate"] == 1 and some["counterfactual_ratio"] == pytest.approx(0, abs=1e-4)


def test_other_actions_of_samples_without_action_tell_nothing() -> None:
    """The rows that fill a batch for them change neither video nor loss."""
    acts = [torch.arange(len(batch["sample_id"])) != 1 for batch in BATCHES]
    some = [{**batch, "has_action": its} for batch, its in zip(BATCHES, acts, strict=True)]
    found = measured(obeys, batches=some).report()["per_episode"]["delta_psnr_db"]
    assert [value is not None and not math.isnan(value) for value in found] == torch.cat(acts).tolist()


@pytest.mark.parametrize("num_initial_latents", [0, 1, 2, 3])
def test_frames_that_were_given_do_not_count(num_initial_latents: int) -> None:
    given = max(1, 3 * num_initial_latents - 2)

    def wrong_start(batch: Batch) -> Tensor:
        video = obeys(batch).clone()
        video[:, : given - 1] = 0.5
        return video

    report = measured(wrong_start, num_initial_latents=num_initial_latents).report()
    assert report["num_initial_frames"] == given
    assert report["sign_accuracy"] == 1
    assert report["missing_rate"] == 0
    assert report["psnr_db"] == pytest.approx(100)
    # The baseline copies the last given frame.
    copy = report["baselines"]["copy_first_frame"]
    truth = torch.cat([batch["video"] for batch in BATCHES]) * 0.5 + 0.5
    error = (truth[:, given:] - truth[:, given - 1 : given]).square().mean((2, 3, 4)).clamp_min(1e-10)
    assert copy["psnr_db"] == pytest.approx(-10 * error.log10().mean().item(), rel=1e-5)


def test_a_test_without_generated_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="of 13 frames 13 are given"):
        measured(obeys, num_initial_latents=5)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_other_actions_are_never_a_samples_own(size: int) -> None:
    batch: Batch = {"action": torch.arange(size * 4 * 2).reshape(size, 4, 2), "prompt": ["a"] * size}
    other = other_actions(batch)
    owners = [row[0, 0].item() // 8 for row in other["action"]]
    assert sorted(owners) == list(range(size))
    assert all(owner != own for own, owner in enumerate(owners))
    assert all(torch.equal(row, batch["action"][owner]) for row, owner in zip(other["action"], owners, strict=True))
    assert other["prompt"] is batch["prompt"]
    assert batch["action"][0, 0, 0] == 0  # the batch itself stays as it is


def test_a_sample_alone_is_run_backwards() -> None:
    batch = {"action": torch.arange(8).reshape(1, 4, 2)}
    assert other_actions(batch)["action"].tolist() == [[[6, 7], [4, 5], [2, 3], [0, 1]]]


def test_a_batch_without_actions() -> None:
    batch = {"action": torch.zeros(2, 4, 1), "prompt": ["a", "b"]}
    assert without_actions(batch) == {"action": None, "prompt": ["a", "b"]}
    assert batch["action"] is not None


@pytest.mark.parametrize(
    ("num_initial_frames", "frames"), [(1, [0, 0, 0, 0, 0, 0]), (4, [0, 1, 2, 3, 3, 3]), (6, [0, 1, 2, 3, 4, 5])]
)
def test_the_last_given_frame_stays_for_ever(num_initial_frames: int, frames: list[int]) -> None:
    truth = torch.rand(2, 6, 3, 4, 5)
    assert torch.equal(copy_of_first_frames(truth, num_initial_frames), truth[:, frames])


def no_constant(text: str) -> Any:
    raise AssertionError(f"{text} is not JSON")


def read_strictly(path: Path) -> Report:
    report: Report = json.loads(path.read_text(), parse_constant=no_constant)
    return report


def test_a_report_survives_the_file(tmp_path: Path) -> None:
    report = report_of_an_obedient_model()
    path = tmp_path / "runs" / "1" / "report.json"
    write_report(path, report)
    assert read_strictly(path) == null_where_undefined(report)
    assert os.listdir(path.parent) == ["report.json"]


def test_figures_that_are_undefined_are_null(tmp_path: Path) -> None:
    still = [{**batch, "action": 0 * batch["action"]} for batch in BATCHES]
    for batch in still:
        batch["video"] = obeys(batch) * 2 - 1
        batch["position"] = batch["position"][:, :1].expand_as(batch["position"])
    report = measured(obeys, batches=still).report()
    write_report(tmp_path / "report.json", {**report, "endless": float("inf")})
    read = read_strictly(tmp_path / "report.json")
    for figures in (read, read["baselines"]["copy_first_frame"]):
        assert figures.keys() >= QUALITY
        assert figures["sign_accuracy"] is figures["gain_x"] is figures["identity_r2_y"] is None
        assert figures["r2_x"] == figures["lag_frames"] == 0
    # Other actions that are the same tell nothing; of a copy they need not be asked.
    assert read["delta_psnr_db"] is None and read["baselines"]["copy_first_frame"]["delta_psnr_db"] == 0
    assert read["endless"] is None
    for given in (report, read):
        table = format_table(given)
        assert "nan" not in table
        assert next(line for line in table.splitlines() if line.startswith("gain x")).split()[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize("error", [OSError("no space left"), KeyboardInterrupt()])
def test_a_report_is_whole_or_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "report.json"
    write_report(path, {"sign_accuracy": 0.5})
    old = path.read_bytes()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr("lightning_action.atomic.os.replace", fail)
        with pytest.raises(type(error)):
            write_report(path, {"sign_accuracy": 0.75})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_report(path, {"sign_accuracy": object()})
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["report.json"]
    write_report(path, {"sign_accuracy": 0.75})
    assert read_strictly(path) == {"sign_accuracy": 0.75}


def test_others_may_read_a_report_as_they_may_any_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_report(tmp_path / "report.json", {})
    assert (tmp_path / "report.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_table_shows_the_model_beside_the_baselines() -> None:
    report: Report = {
        "sign_accuracy": 0.9375,
        "gain_x": None,
        "baselines": {
            "copy_first_frame": {"sign_accuracy": 0.0, "gain_x": float("nan")},
            "ignore_actions": {"sign_accuracy": 0.5, "gain_x": 0.25},
        },
    }
    head, sign, gain = (line.split() for line in format_table(report).splitlines())
    assert head == ["model", "copy_first_frame", "ignore_actions"]
    assert sign == ["sign", "accuracy", "(chance", "0.5)", "0.938", "0.000", "0.500"]
    assert gain == ["gain", "x", "(ideal", "1)", "-", "-", "0.250"]
    assert len({len(line) for line in format_table(report).splitlines()}) == 1
