"""What students that land where the teacher's path ends share: levels, clips, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule, add_noise
from lightning_action.distillation.consistency import ActionConsistencyDistillation
from lightning_action.distillation.landing import euler_step, landing, path_timesteps
from lightning_action.distillation.score import Noised
from lightning_action.distillation.trajectory import ActionTrajectoryDistillation
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from tests.support.small_distillation import data, fitted, student, write_teacher

SCHEDULE = FlowMatchSchedule(5.0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def test_levels_hold_the_students_steps_and_others_between() -> None:
    levels = path_timesteps(SCHEDULE, [1000, 750, 250], True, 3)
    assert len(levels) == 13 and levels[0] == 1000 and levels[-1] == 0
    assert all(high > low for high, low in zip(levels, levels[1:], strict=False))
    assert levels[0:12:4] == SCHEDULE.denoising_timesteps([1000, 750, 250], True)
    assert path_timesteps(SCHEDULE, [1000, 400], False, 1) == (1000, 700, 400, 200, 0)
    assert len(path_timesteps(SCHEDULE, [1000, 4], True, 6)) == 12, "the table has whole numbers only"


def test_the_boundary_holds_by_itself_and_a_straight_path_is_followed_exactly() -> None:
    clean, noise, anything = torch.randn(3, 2, 3, 4, 5, 6)
    timestep = torch.tensor([[1000.0, 400, 0], [30, 0, 700]])
    noised = Noised(add_noise(clean, noise, timestep / 1000), timestep, noise)
    assert torch.equal(landing(noised, anything)[timestep == 0], clean[timestep == 0])
    nearer = euler_step(noised, noise - clean, timestep / 2)
    torch.testing.assert_close(nearer.latents, add_noise(clean, noise, timestep / 2000))
    torch.testing.assert_close(landing(nearer, noise - clean), clean)


def test_the_levels_of_four_steps_and_one_between_are_those_of_eight_euler_steps() -> None:
    levels = path_timesteps(SCHEDULE, [1000, 750, 500, 250], True, 1)
    assert levels == pytest.approx([1000 * sigma for sigma in SCHEDULE.euler_sigmas(8)], rel=1e-5)


def ready(teacher: Path, **changes: Any) -> tuple[ActionTrajectoryDistillation, dict[str, Any]]:
    """A student that has been fitted for a step, and a batch."""
    module = fitted(student(ActionTrajectoryDistillation, teacher, **changes), teacher, max_steps=1)
    module.log = lambda *args, **kwargs: None  # type: ignore[assignment]
    return module, data().dataset("train").batch([0, 5])


def test_a_student_follows_its_actions_because_all_see_them(teacher: Path) -> None:
    module, batch = ready(teacher)
    other = {**batch, "action": -batch["action"]}
    assert not torch.isclose(module.training_step(batch, 0)["loss"], module.training_step(other, 0)["loss"], rtol=1e-4)


def test_teacher_and_student_see_the_same_past_with_noise(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = ready(teacher, past_noise=0.5)
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for name, generator in (("teacher", module.teacher.generator), ("student", module.generator)):
        forward = generator.teacher_forcing
        monkeypatch.setattr(generator, "teacher_forcing", watched(forward, seen[name]))
    module.training_step(batch, 0)
    assert len(seen["teacher"]) == 4 and len(seen["student"]) == 1
    (past,) = seen["student"]
    assert all(torch.equal(past, its) for its in seen["teacher"])
    clean = module._encoded(batch).latents
    deviation = (past - clean).std(dim=(2, 3, 4))
    assert deviation.max() < 0.6 and deviation.min() > 0
    assert ready(teacher)[0]._real_clip(batch, 0).past is None


def watched(forward: Any, seen: list[Tensor]) -> Any:
    def call(clean: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(clean)
        return forward(clean, *args, **kwargs)  # type: ignore[no-any-return]

    return call


@pytest.mark.parametrize("num_initial", [0, 1, 2])
def test_given_latents_stay_clean_and_are_no_part_of_the_loss(teacher: Path, num_initial: int) -> None:
    sampling = Sampling(denoising_step_list=[1000, 500], num_initial_latents=num_initial)
    module, batch = ready(teacher, sampling=sampling)
    out = module.training_step(batch, 0)
    assert out["loss_per_frame"].shape == out["timestep"].shape == (2, 4 - num_initial)
    assert out["timestep"].min() > 0
    torch.testing.assert_close(out["loss"], out["loss_per_frame"].mean())


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
        ({"action_dropout_prob": 0.1}, "set action_dropout_prob to 0"),
        ({"prompt_dropout_prob": 0.1}, "set prompt_dropout_prob to 0"),
        ({"objective": "diffusion_forcing"}, "leave objective at teacher_forcing"),
        ({"num_between": -1}, "num_between"),
        ({"sampling": Sampling(denoising_step_list=[1000], relative_positions=True)}, "relative_positions at false"),
        ({"causality": BlockCausality(3)}, "whole number of blocks"),
    ],
)
def test_what_does_not_go_is_refused(teacher: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted(student(ActionConsistencyDistillation, teacher, **changes), tmp_path)
