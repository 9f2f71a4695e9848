from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.objectives import (
    OBJECTIVES,
    Velocities,
    diffusion_forcing,
    draw_block_levels,
    per_frame_error,
    per_position_error,
    teacher_forcing,
)
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import ImageCondition
from lightning_action.seeding import generator_for
from tests.support.small_generator import small_generator, small_inputs


@pytest.mark.parametrize("name", OBJECTIVES)
@torch.no_grad()
def test_predicted_and_true_velocity(name: str) -> None:
    generator, x = small_generator(), small_inputs(4)
    causality = BlockCausality(2)
    noise = torch.randn_like(x["clean"])
    predicted, true = OBJECTIVES[name](
        generator, x["clean"], noise, x["timestep"], x["text"], causality, x["modulation"]
    )
    assert torch.equal(true, noise - x["clean"])
    sigma = (x["timestep"] / 1000)[..., None, None, None]
    noisy = (1 - sigma) * x["clean"] + sigma * noise
    if name == "teacher_forcing":
        velocity = generator.teacher_forcing(x["clean"], noisy, x["timestep"], x["text"], causality, x["modulation"])
    else:
        velocity = generator.block_causal(noisy, x["timestep"], x["text"], causality, x["modulation"])
    torch.testing.assert_close(predicted, velocity)
    other, _ = OBJECTIVES[name](generator, x["clean"], noise, x["timestep"], x["text"], causality, None)
    assert not torch.equal(predicted, other)


@pytest.mark.parametrize("objective", [teacher_forcing, diffusion_forcing])
@torch.no_grad()
def test_an_image_condition_reaches_the_generator(objective: Callable[..., Velocities]) -> None:
    generator, x = small_generator(in_dim=9), small_inputs(4)
    noise, channels = torch.randn_like(x["clean"]), torch.randn(2, 4, 4, 4, 3)
    inputs = (generator, x["clean"], noise, x["timestep"], x["text"], BlockCausality(2), None)
    predicted, _ = objective(*inputs, ImageCondition(channels))
    assert (predicted - objective(*inputs, ImageCondition(-channels))[0]).abs().max() > 1e-2
    with pytest.raises(ValueError, match="expected image channels"):
        objective(*inputs)


def test_error_is_the_mean_square_over_each_frame() -> None:
    predicted, true = torch.randn(2, 3, 5, 4, 6, dtype=torch.bfloat16), torch.randn(2, 3, 5, 4, 6)
    error = per_frame_error(Velocities(predicted, true))
    assert error.shape == (2, 3) and error.dtype == torch.float32
    torch.testing.assert_close(error[1, 2], ((predicted[1, 2].float() - true[1, 2]) ** 2).mean())
    by_position = per_position_error(Velocities(predicted, true))
    assert by_position.shape == (2, 3, 4, 6) and by_position.dtype == torch.float32
    torch.testing.assert_close(by_position.mean(dim=(2, 3)), error)
    torch.testing.assert_close(by_position[1, 2, 3, 4], ((predicted[1, 2].float() - true[1, 2]) ** 2)[:, 3, 4].mean())


@torch.no_grad()
def test_only_teacher_forcing_shows_the_clean_past() -> None:
    """With pure noise everywhere, diffusion forcing cannot know the clean first frame; teacher forcing can."""
    generator, x = small_generator(), small_inputs(3)
    noise, level = torch.randn_like(x["clean"]), torch.full((2, 3), 1000.0)
    blind = {}
    for name, objective in OBJECTIVES.items():
        changed = x["clean"].clone()
        changed[:, 0] += 1
        last = [
            objective(generator, clean, noise, level, x["text"], BlockCausality(1), None)[0][:, 2]
            for clean in (x["clean"], changed)
        ]
        blind[name] = torch.equal(*last)
    assert blind == {"teacher_forcing": False, "diffusion_forcing": True}


def test_timesteps_are_drawn_per_block_from_the_table() -> None:
    schedule, causality = FlowMatchSchedule(5.0), BlockCausality(3, independent_first_frame=True)
    drawn, weights = draw_block_levels(schedule, 7, causality, [generator_for(0, sample) for sample in range(5)])
    assert torch.equal(weights, schedule.weights[schedule.nearest(drawn)])
    assert drawn.shape == (5, 7)
    assert torch.isin(drawn, schedule.timesteps).all()
    for block in causality.split(7):
        assert (drawn[:, block.start : block.stop] == drawn[:, block.start : block.start + 1]).all()
    assert len(drawn.unique()) > 10
    some, _ = draw_block_levels(schedule, 7, causality, [generator_for(0, sample) for sample in (4, 1)])
    assert torch.equal(drawn[[4, 1]], some)


def test_timesteps_are_uniform_over_the_table() -> None:
    schedule = FlowMatchSchedule(5.0)
    randoms = [generator_for(1, sample) for sample in range(4000)]
    drawn, _ = draw_block_levels(schedule, 2, BlockCausality(1), randoms)
    index = schedule.nearest(drawn).float()
    assert abs(index.mean() - 499.5) < 15
    assert index.min() < 5 and index.max() > 994
