"""What both distillations share: the teacher, what it generates, and the warning of lost control."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.batch import Batch
from lightning_action.distillation import distilled_module
from lightning_action.distillation.consistency import ActionConsistencyDistillation
from lightning_action.distillation.distilled_module import BESIDE, ActionCollapse, control_of, has_collapsed
from lightning_action.distillation.dmd import ActionDistillation
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.run import load_weights
from tests.support.small_distillation import data, fitted, quiet_trainer, settings, student, write_teacher
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
    # The teacher's is measured once, after the student's.
    controls = iter([0.3, 0.8, 0.5])
    monkeypatch.setattr(distilled_module, "control_of", lambda _: next(controls))
    module = student(ActionDistillation, teacher, collapse_share=0.5)
    often = {"limit_val_batches": 1, "val_check_interval": 1}
    with pytest.warns(ActionCollapse, match="at step 1 the student makes 0.30 .* its teacher 0.80") as warned:
        fitted(module, tmp_path, max_steps=2, **often)
    assert sum(issubclass(each.category, ActionCollapse) for each in warned) == 1
    assert float(module.trainer.callback_metrics["validation/rollout/teacher_control"]) == pytest.approx(0.8)


def test_the_teacher_generates_each_sample_once(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate, seen = ActionDistillation._generate_as_teacher, list[int]()

    def watched(module: ActionDistillation, batch: Batch, scale: float | None, draw: int) -> Tensor:
        seen.extend(batch["sample_id"].tolist())
        return generate(module, batch, scale, draw)

    monkeypatch.setattr(ActionDistillation, "_generate_as_teacher", watched)
    fitted(student(ActionDistillation, teacher), tmp_path, max_steps=2, limit_val_batches=1, val_check_interval=1)
    assert seen and len(seen) == len(set(seen))


def test_where_nobody_knows_positions_the_teacher_generates_nothing(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distilled_module, "control_of", lambda _: None)
    monkeypatch.setattr(ActionDistillation, "_generate_as_teacher", None)
    module = fitted(student(ActionDistillation, teacher), tmp_path, max_steps=1, limit_val_batches=1)
    assert not any("control" in name for name in module.trainer.callback_metrics)


def test_a_blind_fits_teacher_generates_with_actions(teacher: Path, tmp_path: Path) -> None:
    """So its control is measured as a seeing fit's is; without, no student could have less, and none be warned of."""
    batch = data().dataset("test").batch([0, 1])
    other = {**batch, "action": -batch["action"]}
    seeing, blind = (
        fitted(student(ActionDistillation, teacher, action_blind=hides), tmp_path, max_steps=1)
        for hides in (False, True)
    )
    own, its = (blind._generate_as_teacher(each, None, 0) for each in (batch, other))
    assert torch.equal(own, seeing._generate_as_teacher(batch, None, 0)) and not torch.allclose(own, its)


def test_control_and_its_loss() -> None:
    assert control_of({"gain_x": 0.5, "gain_y": 0.9, "r2_x": 3.0}) == pytest.approx(0.7)
    assert control_of({"gain_x": 0.5, "gain_y": float("nan")}) == 0.5
    assert control_of({"gain_x": 0.5, "flow_gain": 0.9}) == 0.5 and control_of({"flow_gain": 0.9}) == 0.9
    assert control_of({"psnr": 20.0}) is None is control_of({"flow_gain": float("nan")})
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


def test_a_teacher_that_is_not_there_or_of_other_actions_is_refused(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no run at '.*nowhere'"):
        fitted(student(ActionDistillation, tmp_path / "nowhere"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no checkpoints/last.ckpt"):
        fitted(student(ActionDistillation, tmp_path / "empty"), tmp_path)
    schema = data().action_schema
    other = type(schema)(schema.parts, schema.alignment, "sum")
    with pytest.raises(ValueError, match="was trained with the actions"):
        fitted(student(ActionDistillation, teacher, schema=other), tmp_path)


@pytest.mark.parametrize("kind", [ActionDistillation, ActionConsistencyDistillation])
def test_what_trains_beside_a_student_is_there_in_a_fit_alone(teacher: Path, tmp_path: Path, kind: type) -> None:
    module = fitted(student(kind, teacher), tmp_path, max_steps=2)
    path = tmp_path / "stopped.ckpt"
    module.trainer.save_checkpoint(path)
    assert any(name.startswith(BESIDE) for name in torch.load(path, weights_only=True)["state_dict"])
    loaded = student(kind, teacher)
    load_weights(loaded, path)
    assert not any(name.startswith(BESIDE) for name in loaded.state_dict())
    assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    tested = student(kind, teacher)
    for each in (tested, module):
        trainer = quiet_trainer(tmp_path)
        trainer.ckpt_path = path
        trainer.validate(each, data(), verbose=False)
    assert tested.state_dict().keys() == loaded.state_dict().keys()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"timestep_shift": 7.0}, "timestep_shift 5.0, here it is 7.0"),
        ({"causality": BlockCausality(1, 2, 1)}, "causality .*'local_attn_size': 3.* here it is"),
        ({"objective": "diffusion_forcing"}, "objective teacher_forcing, here it is diffusion_forcing"),
    ],
)
def test_a_teacher_of_other_settings_is_refused(
    teacher: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    """As its run's saved configuration says."""
    run = tmp_path / "run"
    shutil.copytree(teacher / "checkpoints", run / "checkpoints")
    causality = "{num_frame_per_block: 1, local_attn_size: 3, sink_size: 1, independent_first_frame: false}"
    settings = f"timestep_shift: 5.0, causality: {causality}, objective: teacher_forcing"
    (run / "config_fit.yaml").write_text(f"model: {{{settings}}}\n")
    fitted(student(ActionDistillation, run), tmp_path, max_steps=1)
    for named in (run, run / "checkpoints" / "last.ckpt"):
        with pytest.raises(ValueError, match=f"was trained with {told}"):
            fitted(student(ActionDistillation, named, **changes), tmp_path, max_steps=1)
    if "timestep_shift" not in changes:
        fitted(student(ActionDistillation, run, score_sight="bidirectional", **changes), tmp_path, max_steps=1)
