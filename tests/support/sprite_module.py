"""A module for the videos of the demo's world, small; its data, and a Trainer that says nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from lightning_action import ActionModulationProjection, ActionVideoModule, BlockCausality, LinearVideoCodec
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.model import CausalWanModel
from lightning_action.optimization import Optimization
from tests.support.small_generator import fill

LATENTS = 5


def build_generator(dim: int = 24) -> CausalWanModel:
    return CausalWanModel(dim, 32, 2, 2, in_dim=7, out_dim=7, freq_dim=10, text_dim=6, text_len=4)


def build_projection(action_dim: int, dim: int) -> ActionModulationProjection:
    return ActionModulationProjection(action_dim, dim, hidden_dim=20, num_layers=2, layer_rank=8)


def data(**changes: Any) -> SpriteDataModule:
    sizes: dict[str, Any] = {
        "num_latents": LATENTS,
        "batch_size": 3,
        "eval_batch_size": 4,
        "train_size": 15,
        "validation_size": 4,
        "test_size": 6,
        "predict_size": 3,
    }
    return SpriteDataModule(MovingSpriteWorld(image_size=16, sprite_radius=3.0), **{**sizes, **changes})


def build(**changes: Any) -> ActionVideoModule:
    settings: dict[str, Any] = {
        "generator": build_generator,
        "action_projection": build_projection,
        "schema": data().action_schema,
        "causality": BlockCausality(1, 4, 1),
        "sampling": Sampling(num_inference_steps=2),
        "optimization": Optimization(warmup_steps=2, weight_decay=0.1),
        "text_encoder": lambda: HashingTextEncoder(6, 4),
        "vae": lambda: LinearVideoCodec(7, patch_size=4),
    }
    return ActionVideoModule(**{**settings, **changes})


def ready(**changes: Any) -> tuple[ActionVideoModule, dict[str, Any]]:
    """A module outside a Trainer, with filled weights, and a batch."""
    module, source = build(**changes), data()
    module.frozen.vae.fit(source.codec_videos(15))  # type: ignore[attr-defined]
    module.configure_model()
    fill(module.generator)
    if module.action_projection is not None:
        fill(module.action_projection)
    return module.eval(), source.dataset("test").batch([0, 4])


def trainer(folder: Path, **changes: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": -1,
        "default_root_dir": folder,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return L.Trainer(**{**settings, **changes})
