"""A student of consistency distillation lands where the teacher's path ends, under its actions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule, add_noise
from lightning_action.distillation.consistency import (
    ActionConsistencyDistillation,
    consistency_timesteps,
    euler_step,
    landing,
)
from lightning_action.distillation.score import Noised
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from tests.support.small_distillation import data, fitted, quiet_trainer, state, student, write_teacher

SCHEDULE = FlowMatchSchedule(5.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def test_levels_hold_the_students_steps_and_others_between() -> None:
    levels = consistency_timesteps(SCHEDULE, [1000, 750, 250], True, 3)
    assert len(levels) == 13 and levels[0] == 1000 and levels[-1] == 0
    assert all(high > low for high, low in zip(levels, levels[1:], strict=False))
    assert levels[0:12:4] == SCHEDULE.denoising_timesteps([1000, 750, 250], True)
    assert consistency_timesteps(SCHEDULE, [1000, 400], False, 1) == (1000, 700, 400, 200, 0)
    assert len(consistency_timesteps(SCHEDULE, [1000, 4], True, 6)) == 12, "the table has whole numbers only"


def test_the_boundary_holds_by_itself_and_a_straight_path_is_followed_exactly() -> None:
    clean, noise, anything = torch.randn(3, 2, 3, 4, 5, 6)
    timestep = torch.tensor([[1000.0, 400, 0], [30, 0, 700]])
    noised = Noised(add_noise(clean, noise, timestep / 1000), timestep, noise)
    assert torch.equal(landing(noised, anything)[timestep == 0], clean[timestep == 0])
    nearer = euler_step(noised, noise - clean, timestep / 2)
    torch.testing.assert_close(nearer.latents, add_noise(clean, noise, timestep / 2000))
    torch.testing.assert_close(landing(nearer, noise - clean), clean)


def ready(teacher: Path, **changes: Any) -> tuple[ActionConsistencyDistillation, dict[str, Any]]:
    """A student that has been fitted for a step, in float64, and a batch."""
    module = fitted(student(ActionConsistencyDistillation, teacher, **changes), teacher, max_steps=1).double()
    module.teacher.double()
    return module, data().dataset("train").batch([0, 5])


def test_loss_and_gradients_are_those_of_a_straightforward_reference(teacher: Path) -> None:
    module, batch = ready(teacher, teacher_action_guidance_scale=1.5, num_between=3)
    module.log = lambda *args, **kwargs: None  # type: ignore[assignment]
    above, below = (levels.double() for levels in module._draw_levels(batch, 7, 4))
    assert (above > below).all() and len(above.unique()) > 3
    out = module.training_step(batch, 7)
    expected = reference(module, batch, above, below)
    torch.testing.assert_close(out["loss"], expected)
    parameters = [p for part in (module.generator, module.action_projection) for p in part.parameters()]  # type: ignore[union-attr]
    found = torch.autograd.grad(out["loss"], parameters, allow_unused=True)
    for mine, other in zip(found, torch.autograd.grad(expected, parameters, allow_unused=True), strict=True):
        torch.testing.assert_close(mine, other)
    assert sum(float(gradient.abs().max()) > 1e-9 for gradient in found if gradient is not None) > 40
    assert all(
        p.grad is None and not p.requires_grad for p in (*module.target.parameters(), *module.teacher.parameters())
    )


def reference(module: ActionConsistencyDistillation, batch: dict[str, Any], above: Tensor, below: Tensor) -> Tensor:
    """From the definition, with the noise that the module draws."""
    from lightning_action.distillation.score import own_noise

    clean = module.frozen.latents_of(batch, "cpu", torch.float64)
    text = module.frozen.text_of(batch, "cpu", torch.float64)
    noise = own_noise(clean.shape[1:], module._randoms(batch, 12, 7), clean)
    vectors, present = module.schema.encode(batch["action"], 4)

    def velocity(parts: Any, noisy: Tensor, timestep: Tensor, acts: bool = True) -> Tensor:
        modulation = parts.action_projection(vectors.double(), present) if acts else None
        return parts.generator.teacher_forcing(clean, noisy, timestep, text, module.causality, modulation)

    high, low = (levels[:, :, None, None, None] / 1000 for levels in (above, below))
    noisy = (1 - high) * clean + high * noise
    with torch.no_grad():
        own, null = (velocity(module.teacher, noisy, above, acts) for acts in (True, False))
        nearer = noisy + (low - high) * (own + 0.5 * (own - null))
        aim = nearer - low * velocity(module.target, nearer, below)
    error = noisy - high * velocity(module, noisy, above) - aim
    return error.float().square().mean()


def test_the_target_starts_as_the_student_and_follows_it(teacher: Path, tmp_path: Path) -> None:
    module = student(ActionConsistencyDistillation, teacher, target_decay=0.75)
    seen: list[dict[str, Tensor]] = []

    trainer = quiet_trainer(tmp_path, max_steps=2)
    step = module.training_step
    module.training_step = lambda *args: (seen.append(state(module)), step(*args))[1]  # type: ignore[method-assign]
    trainer.fit(module, data())
    seen.append(state(module))
    name = "generator.blocks.1.ffn.0.weight"
    assert torch.equal(seen[0][f"target.{name}"], seen[0][name])
    for before, after in zip(seen, seen[1:], strict=False):
        assert (after[name] - before[name]).abs().max() > 1e-4
        torch.testing.assert_close(after[f"target.{name}"], 0.75 * before[f"target.{name}"] + 0.25 * after[name])
    assert torch.equal(seen[0][name], module.teacher.generator.state_dict()[name.removeprefix("generator.")])


def test_a_student_follows_its_actions_because_all_see_them(teacher: Path) -> None:
    module, batch = ready(teacher)
    module.log = lambda *args, **kwargs: None  # type: ignore[assignment]
    other = {**batch, "action": -batch["action"]}
    assert not torch.isclose(module.training_step(batch, 0)["loss"], module.training_step(other, 0)["loss"], rtol=1e-4)
    blind, _ = ready(teacher, action_blind=True)
    clip = blind._clip(
        torch.zeros(2, 4, 7, 4, 4, dtype=torch.float64), torch.zeros(2, 3, 6, dtype=torch.float64), batch
    )
    assert blind.teacher.modulation(clip) is None and module.teacher.modulation(clip) is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampling": Sampling()}, "name them in sampling.denoising_step_list"),
        ({"sampling": Sampling(denoising_step_list=[1000, 500], first_denoising_step_list=[1000])}, "first_denoising"),
        ({"sampling": Sampling(denoising_step_list=[1000], action_guidance_scale=2)}, "not guided, its teacher is"),
        ({"sampling": Sampling(denoising_step_list=[1000, 500], context="last_step")}, "shows the clean past"),
        ({"action_projection": None}, "needs an action_projection"),
        ({"start": "a", "pretrained": "b"}, "give one of them"),
        ({"target_decay": 1.0}, "target_decay"),
        ({"causality": BlockCausality(3)}, "whole number of blocks"),
    ],
)
def test_what_does_not_go_is_refused(teacher: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(student(ActionConsistencyDistillation, teacher, **changes), tmp_path)


def test_a_teacher_that_is_not_there_or_of_other_actions_is_refused(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run at '.*nowhere'"):
        fitted(student(ActionConsistencyDistillation, tmp_path / "nowhere"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoints/last.ckpt"):
        fitted(student(ActionConsistencyDistillation, tmp_path / "empty"), tmp_path)
    schema = data().action_schema
    other = type(schema)(schema.parts, schema.alignment, "sum")
    with pytest.raises(ValueError, match="was trained with the actions"):
        fitted(student(ActionConsistencyDistillation, teacher, schema=other), tmp_path)
