"""Distillations on the real Trainer: resumed, accumulated, in mixed precision, on two ranks, from the command line."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_action import load_run
from lightning_action.callbacks import EMA
from lightning_action.checkpoints.lora import LoRASettings
from lightning_action.cli.trainer_verbs import run
from lightning_action.distillation.consistency import ActionConsistencyDistillation
from lightning_action.distillation.distilled_module import DistilledModule
from lightning_action.distillation.dmd import ActionDistillation
from lightning_action.distillation.trajectory import ActionTrajectoryDistillation
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.optimization import Optimization
from tests.support.shipped import shipped
from tests.support.small_commands import ROOT, SMALL_DATA, SMALL_MODEL, last_checkpoint
from tests.support.small_distillation import fitted, student, write_teacher
from tests.support.two_ranks import run_on_two
from tests.support.wan_release import small_arguments, write_release

pytestmark = pytest.mark.usefixtures("few_draws")
END = 5
LORA = LoRASettings(rank=2, target_modules=["q", "ffn.0"])
SETTINGS = Optimization(1e-3, 1e-3, 1e-2, warmup_steps=2, decay_fraction=0.0, betas=(0.0, 0.999))
KINDS: dict[str, tuple[type[DistilledModule], dict[str, Any]]] = {
    "consistency": (ActionConsistencyDistillation, {"past_noise": 0.2}),
    "trajectory": (ActionTrajectoryDistillation, {}),
    "matching": (
        ActionDistillation,
        {
            "generator_every": 2,
            "lora": LORA,
            "critic_lora": LORA,
            "critic_optimization": SETTINGS,
            "real_clips_weight": 0.1,
        },
    ),
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def leg(kind: str, teacher: Path, folder: Path, max_steps: int, **options: Any) -> dict[str, Any]:
    """Fit, and return what the checkpoint at the end holds."""
    module_class, changes = KINDS[kind]
    module = student(module_class, teacher, optimization=SETTINGS, **changes)
    average = EMA(decay=0.9, parts=["generator", "action_projection"])
    fitted(module, folder, average, max_steps=max_steps, **options)
    path = folder / "stopped.ckpt"
    module.trainer.save_checkpoint(path)
    left: dict[str, Any] = torch.load(path, weights_only=True)
    return left


def differing(one: Any, other: Any, name: str = "") -> list[str]:
    if isinstance(one, Tensor):
        return [] if torch.equal(one, other) else [name]
    if isinstance(one, dict):
        assert one.keys() == other.keys(), name
        return [found for key in one for found in differing(one[key], other[key], f"{name}.{key}")]
    if isinstance(one, list | tuple):
        assert len(one) == len(other), name
        return [
            found
            for index, pair in enumerate(zip(one, other, strict=True))
            for found in differing(*pair, f"{name}.{index}")
        ]
    return [] if one == other else [name]


PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "ema_state_dict", "global_step")


@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_stopped_at_any_step_goes_on_to_the_bit(kind: str, teacher: Path, tmp_path: Path) -> None:
    """Four batches an epoch, two steps of them with accumulation: in the middle of an epoch and at its end."""
    for accumulated, stops in ((1, (1, 2, 3, 4)), (2, (3,))):
        options: dict[str, Any] = {"accumulate_grad_batches": accumulated}
        whole = leg(kind, teacher, tmp_path / f"{accumulated}_whole", END, **options)
        for stop in stops:
            folder = tmp_path / f"{accumulated}_{stop}"
            part = leg(kind, teacher, folder, stop, **options)
            assert part["global_step"] == stop and differing(part["state_dict"], whole["state_dict"])
            options["ckpt_path"] = folder / "stopped.ckpt"
        rest = leg(kind, teacher, tmp_path / f"{accumulated}_rest", END, **options)
        assert [name for key in PARTS for name in differing(rest[key], whole[key], key)] == []


class SaveAt(L.Callback):
    """Saves a checkpoint on the way."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_ends_a_rollout_that_goes_on_so_that_resuming_is_as_not_stopping(
    teacher: Path, tmp_path: Path
) -> None:
    def fit(name: str, *callbacks: L.Callback, **options: Any) -> dict[str, Any]:
        module = student(ActionDistillation, teacher, optimization=SETTINGS, generator_every=2, chunks_per_rollout=3)
        fitted(module, tmp_path / name, *callbacks, max_steps=4, **options)
        return {key: value.clone() for key, value in module.state_dict().items()}

    path = tmp_path / "saved.ckpt"
    whole = fit("whole", SaveAt(2, path))
    assert differing(fit("resumed", ckpt_path=path), whole) == []
    assert differing(fit("never_saved"), whole)


class FirstGradient(L.Callback):
    """Gradients of the first step of student and critic, and its loss."""

    def __init__(self) -> None:
        self.of: dict[str, Tensor] = {}
        self.loss = math.nan

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if not self.of:
            named = [
                (name.startswith("critic."), p.grad) for name, p in module.named_parameters() if p.grad is not None
            ]
            for part, is_critic in (("student", False), ("critic", True)):
                flat = [grad.detach().flatten() for critic, grad in named if critic is is_critic]
                if flat:
                    self.of[part] = torch.cat(flat).double()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *_: Any) -> None:
        if math.isnan(self.loss):
            self.loss = float(outputs["loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_and_checkpointed_layers_give_the_same_step(kind: str, teacher: Path, tmp_path: Path) -> None:
    """The control, other noise, gives another one."""
    module_class, changes = KINDS[kind]
    changes = {name: value for name, value in changes.items() if "lora" not in name} | {"optimization": SETTINGS}
    if kind == "matching":
        changes["generator_every"] = 1

    def step(precision: Any, checkpointing: bool, seed: int = 0) -> FirstGradient:
        def build() -> CausalWanModel:
            return CausalWanModel(
                24,
                32,
                2,
                2,
                in_dim=7,
                out_dim=7,
                freq_dim=10,
                text_dim=6,
                text_len=4,
                activation_checkpointing=checkpointing,
            )

        first = FirstGradient()
        built = student(module_class, teacher, **changes, generator=build, seed=seed)
        fitted(built, tmp_path, first, max_steps=1, precision=precision)
        return first

    plain, again, mixed, control = (
        step("32-true", False),
        step("32-true", True),
        step("bf16-mixed", True),
        step("32-true", False, seed=1),
    )
    assert again.loss == plain.loss and all(torch.equal(again.of[part], plain.of[part]) for part in plain.of)
    assert 0 < abs(mixed.loss - plain.loss) < 0.02 * plain.loss
    for part, gradient in plain.of.items():
        similar = partial(torch.cosine_similarity, gradient, dim=0)
        assert similar(mixed.of[part]) > 0.99 > similar(control.of[part]), part


SHORT = ("--data.init_args.num_latents=3", "--data.init_args.test_size=4")
OVERLAYS = {
    "consistency": "class_path: lightning_action.ActionConsistencyDistillation\n  init_args:\n    target_decay: 0.5",
    "matching": (
        "class_path: lightning_action.ActionDistillation\n  init_args:\n    generator_every: 2\n"
        "    critic_lora: {rank: 3, target_modules: [q, ffn.0]}\n    real_clips_weight: 0.1"
    ),
}
STUDENT = """
trainer:
  max_steps: 6
  limit_val_batches: 0
  gradient_clip_val: 0.0001
  callbacks:
    - class_path: lightning_action.callbacks.EMA
      init_args: {{parts: [generator, action_projection], decay: 0.9}}
    - class_path: tests.support.recorded_losses.RecordedLosses
checkpoint: {{every_n_train_steps: 3, save_top_k: -1}}
model:
  {overlay}
    teacher: {teacher}
    pretrained: null
    action_dropout_prob: 0.0
    prompt_dropout_prob: 0.0
    optimization: {{warmup_steps: 0}}
    sampling: {{denoising_step_list: [1000, 500], action_guidance_scale: 1.0}}
    sharding: {{param_dtype: float32}}
"""
EACH_HALF = "--data.init_args.batch_size=2"
DDP = f"--config={ROOT / 'configs' / 'ddp.yaml'}"
FSDP = (f"--config={ROOT / 'configs' / 'fsdp.yaml'}", "--model.init_args.sharding.param_dtype=float32")
ONE_FILE = "--trainer.strategy.init_args.save_distributed_checkpoint=false"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained teacher, and the settings of two students."""
    folder = tmp_path_factory.mktemp("students")
    short, quiet = "--trainer.max_steps=3", "--trainer.limit_val_batches=0"
    backbone = [*shipped("demo_backbone"), f"--trainer.default_root_dir={folder / 'backbone'}"]
    run(["fit", *backbone, short, quiet, *SMALL_MODEL, *SMALL_DATA])
    taught = [f"--model.pretrained={folder / 'backbone'}", f"--trainer.default_root_dir={folder / 'teacher'}"]
    actions = "--model.action_projection.init_args.num_layers=2"
    run(["fit", *shipped("demo"), *taught, short, quiet, actions, *SMALL_MODEL, *SMALL_DATA])
    for kind, overlay in OVERLAYS.items():
        text = STUDENT.format(overlay=overlay, teacher=folder / "teacher")
        (folder / f"{kind}.yaml").write_text(text)
    return folder


def fit(workshop: Path, kind: str, name: str, *more: str) -> list[str]:
    root = f"--trainer.default_root_dir={workshop / f'{kind}_{name}'}"
    actions = "--model.action_projection.init_args.num_layers=2"
    configs = [*shipped("demo"), f"--config={workshop / f'{kind}.yaml'}"]
    return ["fit", *configs, root, actions, *SMALL_MODEL, *SMALL_DATA, "--allow=tests", *more]


def left(workshop: Path, kind: str, name: str) -> tuple[dict[str, Any], list[float]]:
    folder = workshop / f"{kind}_{name}"
    return torch.load(last_checkpoint(folder), weights_only=True), json.loads((folder / "losses.json").read_text())


def assert_same_run(workshop: Path, kind: str, name: str) -> None:
    """Losses, weights and averages, to the rounding of sums in another order."""
    (one, losses), (other, its) = left(workshop, kind, "one"), left(workshop, kind, name)
    assert one["global_step"] == other["global_step"] == 6 and len(losses) == 6
    torch.testing.assert_close(its, losses[-len(its) :], atol=1e-5, rtol=0)
    for part in ("state_dict", "ema_state_dict"):
        torch.testing.assert_close(other[part], one[part], atol=2e-5, rtol=0)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", OVERLAYS)
def test_two_ranks_replicated_and_sharded_are_as_one(workshop: Path, kind: str) -> None:
    run(fit(workshop, kind, "one"))
    run_on_two(fit(workshop, kind, "ddp", EACH_HALF, DDP))
    assert_same_run(workshop, kind, "ddp")
    (path,) = (workshop / f"{kind}_one" / "checkpoints").glob("*step=3.ckpt")
    # Where parameters stay gathered, a target that follows its student must let go of what was gathered before.
    gathered = f"--model.sharding.reshard_after_forward={'false' if kind == 'consistency' else 'true'}"
    run_on_two(fit(workshop, kind, "fsdp", f"--ckpt_path={path}", EACH_HALF, *FSDP, ONE_FILE, gathered))
    assert_same_run(workshop, kind, "fsdp")
    run(fit(workshop, kind, "free", "--trainer.gradient_clip_val=null"))
    with pytest.raises(AssertionError):
        assert_same_run(workshop, kind, "free")


def test_a_student_is_loaded_from_what_it_saved(workshop: Path) -> None:
    folder = workshop / "loaded"
    run(fit(workshop, "matching", "loaded", f"--trainer.default_root_dir={folder}", "--trainer.logger=false"))
    module = load_run(folder / "config_fit.yaml", last_checkpoint(folder))
    assert isinstance(module, ActionDistillation) and module.timesteps[0] == 1000
    saved = torch.load(last_checkpoint(folder), weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in module.state_dict().items())
    arguments = ["test", f"--config={folder / 'config_fit.yaml'}", f"--ckpt_path={last_checkpoint(folder)}"]
    run([*arguments, *SHORT, "--allow=tests"])
    assert 0 <= json.loads((folder / "report.json").read_text())["sign_accuracy"] <= 1


def test_the_demos_students_as_they_are_shipped(workshop: Path) -> None:
    """Only shorter: consistency, then distribution matching from it, validated beside the teacher, and tested."""
    sizes = ["--model.action_projection.init_args.num_layers=2", *SMALL_MODEL, *SMALL_DATA, *SHORT]
    teacher = f"--model.teacher={workshop / 'teacher'}"
    steps = ["--trainer.max_steps=4", "--trainer.val_check_interval=2"]
    first, second = (f"--trainer.default_root_dir={workshop / name}" for name in ("shipped_start", "shipped"))
    quiet = "--model.collapse_share=0"
    run(["fit", *shipped("consistency"), *sizes, *steps, teacher, quiet, first])
    start = f"--model.start={workshop / 'shipped_start'}"
    matching = [*shipped("distillation"), *sizes, teacher, start, quiet, second]
    run(["fit", *matching, *steps])
    last = last_checkpoint(workshop / "shipped")
    for verb in ("validate", "test", "predict"):
        run([verb, *matching, f"--ckpt_path={last}"])
    assert len(list((workshop / "shipped" / "predictions").glob("*.mp4"))) == 3
    tags = scalars_of(workshop / "shipped")
    assert len(tags["validation/rollout/control"]) == 2 == len(tags["validation/rollout/teacher_control"])


def scalars_of(folder: Path) -> dict[str, list[float]]:
    """What TensorBoard shows of the first run in a folder."""
    events = EventAccumulator(str(folder / "lightning_logs" / "version_0"), {"scalars": 0}).Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_familys_configuration_with_small_networks_of_the_real_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher with actions, the student of four steps, and its rollout with actions while it trains."""
    write_release(tmp_path / "release", "2.1")
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path / "release"))
    small = small_arguments("longlive_action")
    teacher, folder = tmp_path / "teacher", tmp_path / "student"
    short = ["--trainer.max_steps=2", "--trainer.limit_val_batches=0", "--trainer.callbacks=null"]
    run(["fit", *shipped("longlive_action"), *small, *short, f"--trainer.default_root_dir={teacher}"])
    arguments = [*shipped("longlive_train_action"), *small, f"--model.teacher={teacher}", "--model.collapse_share=0"]
    arguments += ["--model.teacher_num_inference_steps=2", f"--trainer.default_root_dir={folder}"]
    # Five blocks, so that frames leave the window of four and the sink stays.
    arguments += ["--data.init_args.num_latents=15", "--data.init_args.world.init_args.image_size=[16, 32]"]
    arguments += ["--data.init_args.world.init_args.sprite_radius=3"]
    run(["fit", *arguments, "--trainer.max_steps=5", "--trainer.val_check_interval=5"])
    saved = torch.load(last_checkpoint(folder), weights_only=True)
    rates = {
        group["name"]: (group["initial_lr"], group["betas"]) for group in saved["optimizer_states"][0]["param_groups"]
    }
    student, critic = (2e-6, (0.0, 0.999)), (4e-7, (0.0, 0.999))
    assert rates == {"action": student, "backbone": student, "critic_action": critic, "critic_backbone": critic}
    for step in (0, 4):
        (shown,) = folder.rglob(f"step_{step:08d}")
        assert (shown / "1_truth_sample_0.gif").exists() and (shown / "4_action_scan.png").exists()
    module = load_run(next(folder.rglob("config_fit.yaml")), last_checkpoint(folder))
    assert isinstance(module, ActionDistillation) and len(module.timesteps) == 4
    assert module.causality == BlockCausality(3, 12, 3) and module.sampling.num_initial_latents == 0
    assert module.generator_every == 5 and module.sampling.warp_denoising_step and module.timesteps[1] > 750
    its = torch.load(last_checkpoint(teacher), weights_only=True)["state_dict"]
    name = "generator.blocks.1.ffn.0.weight"
    assert 0 < (saved["state_dict"][name] - its[name]).abs().max() < 1e-5
