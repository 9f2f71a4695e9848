"""What both distillations share: the teacher, what it generates, and the warning of lost control."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_action.distillation import distilled_module
from lightning_action.distillation.distilled_module import ActionCollapse, control_of, has_collapsed
from lightning_action.distillation.dmd import ActionDistillation
from lightning_action.generation.sampling import Sampling
from lightning_action.module import ActionVideoModule
from lightning_action.run import load_weights
from tests.support.small_distillation import data, fitted, settings, student, write_teacher
from tests.support.small_generator import fill


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def test_the_teacher_is_no_part_of_the_module(teacher: Path) -> None:
    module = fitted(student(ActionDistillation, teacher), teacher, max_steps=1)
    assert not any("teacher" in name for name in (*module.state_dict(), *dict(module.named_modules())))
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())
    assert not module.teacher.training


def test_a_student_that_lost_control_is_warned_of(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The teacher's is measured once, before the student's.
    controls = iter([0.8, 0.3, 0.5])
    monkeypatch.setattr(distilled_module, "control_of", lambda _: next(controls))
    module = student(ActionDistillation, teacher, collapse_share=0.5)
    often = {"limit_val_batches": 1, "val_check_interval": 1}
    with pytest.warns(ActionCollapse, match="at step 1 the student makes 0.30 .* its teacher 0.80") as warned:
        fitted(module, tmp_path, max_steps=2, **often)
    assert sum(issubclass(each.category, ActionCollapse) for each in warned) == 1
    assert float(module.trainer.callback_metrics["validation/rollout/teacher_control"]) == pytest.approx(0.8)


def test_control_and_its_loss() -> None:
    assert control_of({"gain_x": 0.5, "gain_y": 0.9, "r2_x": 3.0}) == pytest.approx(0.7)
    assert control_of({"gain_x": 0.5, "gain_y": float("nan")}) == 0.5
    assert control_of({"psnr": 20.0}) is None
    assert has_collapsed(0.39, 0.8, 0.5) and not has_collapsed(0.41, 0.8, 0.5)
    assert not has_collapsed(-1.0, -0.1, 0.5) and not has_collapsed(0.0, 0.9, 0.0)


def test_the_teacher_generates_with_its_own_weights_and_steps(teacher: Path) -> None:
    """What a validation compares with is what its own run generates."""
    module = fitted(student(ActionDistillation, teacher, teacher_num_inference_steps=4), teacher, max_steps=1)
    fill(module.generator, 8)
    batch = data().dataset("test").batch([0, 1])
    own = ActionVideoModule(**settings(sampling=Sampling(num_inference_steps=4)))
    load_weights(own, teacher / "checkpoints" / "last.ckpt")
    assert torch.equal(module._generate_as_teacher(batch, None, 0), own.generate(batch))
    assert not torch.allclose(module.generate(batch), own.generate(batch))
