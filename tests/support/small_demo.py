"""The demo, small: an ActionVideoModule with dropout and its data, for fits of some steps."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lightning_action import ActionModulationProjection, ActionVideoModule, BlockCausality, LinearVideoCodec
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.model import CausalWanModel
from lightning_action.optimization import Optimization
from tests.support.small_generator import fill


def small_data() -> SpriteDataModule:
    return SpriteDataModule(
        MovingSpriteWorld(image_size=16, sprite_radius=3.0),
        num_latents=4,
        batch_size=3,
        eval_batch_size=2,
        train_size=15,
        validation_size=4,
        test_size=2,
        predict_size=2,
    )


def build_generator() -> CausalWanModel:
    """With weights that make every part act, as pretrained ones would."""
    generator = CausalWanModel(24, 32, 2, 2, in_dim=7, out_dim=7, freq_dim=10, text_dim=6, text_len=4)
    fill(generator)
    return generator


def build_projection(action_dim: int, dim: int) -> ActionModulationProjection:
    projection = ActionModulationProjection(action_dim, dim, hidden_dim=20, num_layers=2, layer_rank=8)
    projection.action_embedding.append(nn.Dropout(0.3))
    return projection


def small_demo(
    projection: Callable[[int, int], ActionModulationProjection] = build_projection,
    learning_rate: float = 1e-3,
    optimization: Optimization | None = None,
    module_class: type[ActionVideoModule] = ActionVideoModule,
) -> ActionVideoModule:
    return module_class(
        build_generator,
        lambda: HashingTextEncoder(6, 4),
        lambda: LinearVideoCodec(7, patch_size=4),
        action_projection=projection,
        schema=small_data().action_schema,
        causality=BlockCausality(1, 4, 1),
        sampling=Sampling(num_inference_steps=2),
        optimization=optimization or Optimization(warmup_steps=0, action_learning_rate=learning_rate),
    )
