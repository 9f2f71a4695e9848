"""A student of consistency distillation lands where its average lands, one step of the teacher further down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.distillation.consistency import ActionConsistencyDistillation
from lightning_action.distillation.score import with_noise
from tests.support.small_distillation import data, fitted, quiet_trainer, state, student, write_teacher


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def ready(teacher: Path, **changes: Any) -> tuple[ActionConsistencyDistillation, dict[str, Any]]:
    """A student that has been fitted for a step, in float64, and a batch."""
    module = fitted(student(ActionConsistencyDistillation, teacher, **changes), teacher, max_steps=1).double()
    module.teacher.double()
    return module, data().dataset("train").batch([0, 5])


def test_loss_and_gradients_are_those_of_a_straightforward_reference(teacher: Path) -> None:
    module, batch = ready(teacher, teacher_action_guidance_scale=1.5, num_between=3)
    module.log = lambda *args, **kwargs: None  # type: ignore[assignment]
    places, levels = module._draw_places(batch, 7, 4), torch.tensor(module.levels, dtype=torch.float64)
    above, below = levels[places], levels[places + 1]
    above[:, :1], below[:, :1] = 0, 0
    assert (above[:, 1:] > below[:, 1:]).all() and len(above.unique()) > 3
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


def test_without_a_path_above_the_next_level_it_is_the_teachers_step(teacher: Path) -> None:
    """From the last level the aim is where the teacher ends, whatever the target."""
    module, batch = ready(teacher, num_between=0)
    clip = module._real_clip(batch, 0)
    places = torch.full((2, 4), 1)
    noised = with_noise(clip, module._level_at(places, clip), torch.randn_like(clip.clean))
    ends = module._follow_teacher(clip, noised, places + 1)
    assert torch.equal(module._aim(clip, noised, places), ends.latents) and not ends.timestep.any()


def reference(module: ActionConsistencyDistillation, batch: dict[str, Any], above: Tensor, below: Tensor) -> Tensor:
    """From the definition, with the noise that the module draws."""
    from lightning_action.diffusion.noise import own_noise

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
    return error[:, 1:].float().square().mean()


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
