"""A student of trajectory distillation lands where the teacher's Euler steps end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.samplers import euler
from lightning_action.distillation.score import with_noise
from lightning_action.distillation.trajectory import ActionTrajectoryDistillation
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from tests.support.small_distillation import data, fitted, student, write_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_aim_is_where_the_samplers_steps_end(teacher: Path, place: int) -> None:
    """One block from noise, and from a level further down, with the sampler that generates."""
    sampling = Sampling(denoising_step_list=[1000, 500], num_initial_latents=0)
    changes = {"sampling": sampling, "causality": BlockCausality(4), "teacher_action_guidance_scale": 1.5}
    module = fitted(student(ActionTrajectoryDistillation, teacher, **changes), teacher, max_steps=1).double()
    module.teacher.double()
    batch = data().dataset("train").batch([0, 5])
    clip = module._real_clip(batch, 0)
    places = torch.full((2, 4), place)
    noised = with_noise(clip, module._level_at(places, clip), torch.randn_like(clip.clean))

    def velocity(noisy: Tensor, timestep: float) -> Tensor:
        there = noised._replace(latents=noisy, timestep=torch.full((2, 4), timestep))
        return module.teacher.guided_velocity(clip, there, module.teacher_guidance)

    with torch.no_grad():
        sigmas = [level / 1000 for level in module.levels[place:]]
        expected = euler(velocity, lambda _: noised.latents, sigmas)
        found = module._aim(clip, noised, places)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    assert (found - noised.latents).abs().max() > 0.01


def test_blocks_at_other_levels_end_together(teacher: Path) -> None:
    module = fitted(student(ActionTrajectoryDistillation, teacher), teacher, max_steps=1)
    clip = module._real_clip(data().dataset("train").batch([0, 5]), 0)
    noise, aim = torch.randn_like(clip.clean), partial(module._aim, clip)
    mixed = torch.tensor([[0, 1, 2, 3], [0, 3, 0, 2]])

    def aimed(places: Tensor) -> Tensor:
        return aim(with_noise(clip, module._level_at(places, clip), noise), places)

    with torch.no_grad():
        found, alike = aimed(mixed), [aimed(torch.full((2, 4), place)) for place in range(4)]
    for place, expected in enumerate(alike):
        here = mixed == place
        torch.testing.assert_close(found[here], expected[here], atol=1e-5, rtol=1e-5)
