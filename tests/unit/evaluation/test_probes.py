"""Probes of models whose motion is known: the simulator itself, and what is wrong with it on purpose."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.batch import Batch, to_unit_range
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.evaluation.evaluator import Evaluator
from lightning_action.evaluation.known_state import position_reader, simulator
from lightning_action.evaluation.probes import (
    NUM_NOISES,
    NUM_SAMPLES,
    NUM_STARTS,
    Generate,
    Probes,
    held_actions,
    there_and_back,
    zero_and_reach,
)

# Slow, so that walls are far; 5 latent frames at ratio 3.
DATA = SpriteDataModule(
    MovingSpriteWorld(image_size=24, sprite_radius=3.5, max_speed=0.8),
    num_latents=5,
    temporal_compression_ratio=3,
    test_size=19,
    eval_batch_size=19,
)
(BATCH,) = DATA.test_dataloader()
SIMULATE = simulator(DATA, "test")
assert SIMULATE is not None


def with_gain(batch: Batch, scale: float | None, draw: int, gain: float = 1.0, drift: float = 0.0) -> Tensor:
    """The simulator, in which actions act so many times as much; guidance does the same."""
    gain *= 1.0 if scale is None else scale
    return SIMULATE({**batch, "action": gain * batch["action"] + drift})[0]


def probed(generate: Generate, schema: ActionSchema = DATA.action_schema, with_simulator: bool = True) -> Probes:
    simulate = SIMULATE if with_simulator else None
    probes = Probes(generate, true_video, position_reader(DATA, "test"), simulate, schema, 1, 0)
    probes.add(BATCH)
    return probes


def evaluated(probes: Probes) -> Evaluator:
    """Probes alone, for the figures of them."""
    return Evaluator(3, 1, probes=probes)


def true_video(batch: Batch) -> Tensor:
    return to_unit_range(batch["video"])


def test_a_perfect_simulator() -> None:
    figures = evaluated(probed(with_gain)).compute()
    for size in ("0.04", "0.08", "0.15"):
        # The position is read off pictures, and 0.04 of the largest is 0.4 px in 12 frames.
        assert figures[f"held_gain_{size}"] == pytest.approx(1, abs=0.02)
    assert figures["held_drift_px"] == pytest.approx(0, abs=1e-4)
    assert figures["round_trip"] == pytest.approx(1, abs=1e-3) and figures["recovery"] == pytest.approx(1, abs=0.01)
    assert figures["excursion"] > 0.005
    assert figures["gain_at_scale_0"] == 0 and figures["gain_at_scale_1"] == pytest.approx(1, abs=0.02)
    assert 1.2 < figures["gain_at_scale_1_5"] < figures["gain_at_scale_2"]
    assert figures["gain_rises"] == 1


def test_a_model_that_moves_by_half_and_one_that_drifts() -> None:
    half = evaluated(probed(partial(with_gain, gain=0.5))).compute()
    assert half["held_gain_0.15"] == pytest.approx(0.5, abs=0.02) and half["held_drift_px"] < 1e-4
    drifts = evaluated(probed(partial(with_gain, drift=0.1))).compute()
    # 12 frames of 0.08 px along either axis.
    assert drifts["held_drift_px"] == pytest.approx(12 * 0.08 * 2**0.5, abs=0.05)
    assert drifts["held_gain_0.15"] == pytest.approx(1, abs=0.05) and drifts["recovery"] < 0.9


def test_what_actions_decide_and_what_noise_does() -> None:
    determined = evaluated(probed(with_gain)).compute()
    assert determined["action_share"] == 1 and determined["noise_variance"] == 0 < determined["action_variance"]

    def with_chance(batch: Batch, scale: float | None, draw: int) -> Tensor:
        return with_gain(batch, scale, draw, drift=0.1 * (draw - 1))

    figures = evaluated(probed(with_chance)).compute()
    # Draws of -0.1, 0 and 0.1 for 12 frames of 0.8 px at most, along both axes; walls stop a few.
    assert figures["noise_variance"] == pytest.approx(2 * (12 * 0.08) ** 2, rel=0.1)
    assert figures["action_variance"] == pytest.approx(determined["action_variance"], rel=0.1)
    expected = figures["action_variance"] / figures["noise_variance"]
    assert figures["controllability_ratio"] == pytest.approx(expected)


def test_a_blind_model() -> None:
    figures = evaluated(probed(partial(with_gain, gain=0.0))).compute()
    assert figures["action_variance"] == 0
    assert figures["held_gain_0.04"] == figures["gain_at_scale_2"] == figures["excursion"] == 0
    assert figures["gain_rises"] == 0


def test_without_a_simulator_the_response_to_guidance_is_left() -> None:
    probes = probed(with_gain, with_simulator=False)
    figures, intervals = evaluated(probes).compute(), evaluated(probes).intervals()
    assert figures.keys() == intervals.keys()
    assert "gain_at_scale_2" in figures and not figures.keys() & {"round_trip", "held_drift_px"}
    assert probes.pictures == {}


def of_unknown_state(generate: Generate, **more: Tensor) -> dict[str, float]:
    probes = Probes(generate, true_video, None, None, DATA.action_schema, 1, 0)
    probes.add({**{name: each for name, each in BATCH.items() if name != "position"}, **more})
    figures = evaluated(probes).compute()
    assert figures.keys() >= evaluated(probes).intervals().keys() and probes.pictures == {}
    return figures


def test_where_nobody_knows_positions_flow_and_pixels_tell() -> None:
    figures = of_unknown_state(with_gain)
    assert figures["gain_at_scale_0"] == pytest.approx(0, abs=0.02)
    assert figures["gain_at_scale_1"] == pytest.approx(1, abs=0.02) and figures["gain_rises"] == 1
    assert figures["gain_at_scale_1"] < figures["gain_at_scale_1_5"]
    assert figures["action_share"] == 1 and figures["noise_variance"] == 0
    half = of_unknown_state(partial(with_gain, gain=0.5))
    assert half["gain_at_scale_1"] == pytest.approx(0.5, abs=0.1) and half["gain_rises"] == 1
    blind = of_unknown_state(partial(with_gain, gain=0.0))
    assert blind["gain_at_scale_2"] == pytest.approx(0, abs=0.02) and blind["action_variance"] == 0

    def by_chance(batch: Batch, scale: float | None, draw: int) -> Tensor:
        return with_gain(batch, scale, draw, gain=0.0, drift=0.1 * draw)

    assert of_unknown_state(by_chance)["action_share"] == 0


def test_samples_without_actions_tell_nothing_of_guidance() -> None:
    """Those that have actions come first; where none has, the model runs all the same, as other ranks wait for it."""
    acts = torch.arange(19) >= 15
    seen: list[list[int]] = []

    def generate(batch: Batch, scale: float | None, draw: int) -> Tensor:
        seen.append(batch["sample_id"].tolist())
        return with_gain(batch, scale, draw)

    figures = of_unknown_state(generate, has_action=acts)
    assert seen[:4] == [[15, 16, 17, 18]] * 4 and figures["gain_at_scale_1"] == pytest.approx(1, abs=0.02)
    nobody = of_unknown_state(generate, has_action=torch.zeros(19, dtype=torch.bool))
    assert len(seen) == 2 * (4 + NUM_NOISES) and math.isnan(nobody["gain_at_scale_1"])


def test_few_samples_are_taken_from_the_middle_with_their_own_noise() -> None:
    seen: list[Batch] = []

    def generate(batch: Batch, scale: float | None, draw: int) -> Tensor:
        seen.append(batch)
        return with_gain(batch, scale, draw)

    probes = probed(generate)
    positions = BATCH["position"]
    middle = (positions.amax(dim=(0, 1)) + positions.amin(dim=(0, 1))) / 2
    nearest = set((positions[:, 0] - middle).norm(dim=-1).argsort()[:NUM_SAMPLES].tolist())
    assert all(set(batch["sample_id"].tolist()) <= nearest for batch in seen)
    assert max(len(batch["sample_id"]) for batch in seen) == 19, "no more videos at once than a batch has"
    assert (
        sum(len(batch["sample_id"]) for batch in seen) == NUM_SAMPLES * (4 + 1 + 1 + 3 * 4) + NUM_STARTS**2 * NUM_NOISES
    )
    for batch in seen:
        assert {batch["prompt"][row] for row in range(len(batch["sample_id"]))} <= set(BATCH["prompt"])
        for row, sample in enumerate(batch["sample_id"].tolist()):
            assert torch.equal(batch["video"][row], BATCH["video"][sample])
    names = ["held zero", *(f"held move_{column} {value}" for column in (0, 1) for value in ("+0.15", "-0.15"))]
    assert list(probes.pictures) == names
    for video in probes.pictures.values():
        assert video.shape == (4, 13, 3, 24, 24) and video.dtype == torch.uint8
    assert torch.equal(probes.pictures["held zero"][:, 0], probes.pictures["held zero"][:, -1])


MIXED = ActionSchema(
    [ActionPart("arm", "continuous", 2, [0.0, -2.0], [1.0, 4.0]), ActionPart("grip", "multi_hot", 1)], "transition"
)


def test_zero_and_the_rows_that_are_held() -> None:
    zero, reach = zero_and_reach(MIXED)
    assert zero.tolist() == [0.5, 1, 0] and reach.tolist() == [0.5, 3, 0]
    found = {action.name: (action.row.tolist(), action.is_shown) for action in held_actions(MIXED, (0.1, 0.2))}
    assert found["zero"] == ([0.5, 1, 0], True) and len(found) == 1 + 2 * 4
    assert found["arm_1 +1.3"][0] == pytest.approx([0.5, 1.3, 0]) and not found["arm_1 +1.3"][1]
    assert found["arm_0 +0.4"][0] == pytest.approx([0.4, 1, 0]) and found["arm_0 +0.4"][1]
    discrete = ActionSchema([ActionPart("key", "discrete", 5)])
    assert not zero_and_reach(discrete)[1].any()


def test_there_and_back() -> None:
    schema = ActionSchema([ActionPart("move", "continuous", 1, 0.0, 2.0)], "transition", "concat", 4)
    action = torch.tensor([2.0, 1.0, 0.0, 2.0, 2.0])[None, :, None]
    trip = there_and_back(schema, action, 0)
    assert trip is not None and trip.flatten().tolist() == [1.5, 1, 1, 0.5, 1]
    kept = there_and_back(schema, action, 2)
    assert kept is not None and kept.flatten().tolist() == [2, 1, 0.5, 1.5, 1]
    assert there_and_back(MIXED, torch.zeros(1, 4, 3), 0) is None, "a grip has no opposite"
    assert there_and_back(replace(schema, alignment="per_latent"), action, 1) is None


def test_trips_that_walls_cut_short_do_not_count() -> None:
    walls = MovingSpriteWorld(image_size=24, sprite_radius=3.5, max_speed=40.0, hold_probability=0.0)
    data = SpriteDataModule(walls, num_latents=5, temporal_compression_ratio=3, test_size=4, eval_batch_size=4)
    (batch,) = data.test_dataloader()
    simulate = simulator(data, "test")
    assert simulate is not None

    def generate(batch: Batch, scale: float | None, draw: int) -> Tensor:
        return simulate(batch)[0]

    read_positions = position_reader(data, "test")
    probes = Probes(generate, true_video, read_positions, simulate, data.action_schema, 1, 0)
    probes.add(batch)
    assert len(probes.round_trip.episodes()["mirror"]) < 4
