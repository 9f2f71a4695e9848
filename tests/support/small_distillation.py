"""A run whose weights make every part act, for a teacher, and students of it for the same small world."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.distillation.distilled_module import DistilledModule
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.optimization import Optimization
from tests.support.small_generator import fill

Student = TypeVar("Student", bound=DistilledModule)
LATENTS = 4
STEPS = [1000.0, 500.0]


def build_generator() -> CausalWanModel:
    return CausalWanModel(24, 32, 2, 2, in_dim=7, out_dim=7, freq_dim=10, text_dim=6, text_len=4)


def build_projection(action_dim: int, dim: int) -> ActionModulationProjection:
    return ActionModulationProjection(action_dim, dim, hidden_dim=20, num_layers=2, layer_rank=8)


def data(batch_size: int = 2) -> SpriteDataModule:
    return SpriteDataModule(
        MovingSpriteWorld(image_size=16, sprite_radius=3.0),
        num_latents=LATENTS,
        batch_size=batch_size,
        eval_batch_size=2,
        train_size=8,
        validation_size=4,
        test_size=2,
        predict_size=2,
    )


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "generator": build_generator,
        "text_encoder": lambda: HashingTextEncoder(6, 4),
        "vae": lambda: LinearVideoCodec(7, patch_size=4),
        "action_projection": build_projection,
        "schema": data().action_schema,
        "causality": BlockCausality(1, 3, 1),
        "optimization": Optimization(1e-3, 1e-3, 1e-3, warmup_steps=0),
        **changes,
    }


def quiet_trainer(folder: Path, *callbacks: L.Callback, **changes: Any) -> L.Trainer:
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": -1,
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "callbacks": list(callbacks),
    }
    return L.Trainer(**{**options, **changes})


class _Filled(ActionVideoModule):
    """Its weights are random from the start."""

    def configure_model(self) -> None:
        super().configure_model()
        fill(self.generator, 3)
        assert self.action_projection is not None
        fill(self.action_projection, 4)


def write_teacher(folder: Path, **changes: Any) -> Path:
    """A folder of a run, as `fit` leaves it."""
    module = _Filled(**settings(sampling=Sampling(num_inference_steps=4), **changes))
    trainer = quiet_trainer(folder, max_steps=1)
    trainer.fit(module, data())
    path = folder / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(path)
    # Nobody reads a teacher's moments, and without them the file is read, as it is again and again, in half the time.
    torch.save(torch.load(path, weights_only=True) | {"optimizer_states": []}, path)
    return folder


def student(kind: type[Student], teacher: Path, **changes: Any) -> Student:
    sampling = Sampling(denoising_step_list=STEPS)
    return kind(**settings(**{"sampling": sampling, "teacher": str(teacher), **changes}))


def fitted(module: Student, folder: Path, *callbacks: L.Callback, max_steps: int = 3, **options: Any) -> Student:
    ckpt_path = options.pop("ckpt_path", None)
    source = options.pop("data", None) or data()
    quiet_trainer(folder, *callbacks, max_steps=max_steps, **options).fit(module, source, ckpt_path=ckpt_path)
    return module


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
