"""A small module, on the meta device if nothing else is said, and batches for it."""

from __future__ import annotations

from typing import Any

import torch

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.batch import Batch
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generator.causality import BlockCausality
from lightning_action.module.action_video_module import ActionVideoModule
from tests.support.small_generator import small_generator


def small_module(device: str = "meta", **changes: Any) -> ActionVideoModule:
    """5 latent channels, patches of 8 x 8 pixels, blocks of 2 latent frames, actions of 3 columns."""
    arguments: dict[str, Any] = {
        "generator": small_generator,
        "text_encoder": lambda: HashingTextEncoder(text_dim=9, text_len=7),
        "vae": lambda: LinearVideoCodec(latent_dim=5, patch_size=8),
        "action_projection": lambda action_dim, dim: ActionModulationProjection(action_dim, dim, 10, num_layers=2),
        "schema": ActionSchema([ActionPart("stick", size=3)], "transition", "concat"),
        "causality": BlockCausality(2),
    }
    module = ActionVideoModule(**{**arguments, **changes})
    module.configure_model()
    module.to(device)
    return module


def batch_of(num_frames: int = 13, **changes: Any) -> Batch:
    """Three videos of 16 x 24 pixels."""
    batch = {
        "video": torch.rand(3, num_frames, 3, 16, 24) * 2 - 1,
        "action": torch.rand(3, num_frames - 1, 3),
        "prompt": ["a", "b", "a b c"],
        "sample_id": torch.arange(3),
    }
    return {key: value for key, value in {**batch, **changes}.items() if value is not ...}
