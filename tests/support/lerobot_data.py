"""Data of a small LeRobot data set, and a module for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_action import (
    ActionVideoModule,
    BlockCausality,
    CausalWanModel,
    HashingTextEncoder,
    LeRobotDataModule,
    LinearVideoCodec,
    Sampling,
)
from tests.support.sprite_module import build_projection
from tests.support.written_videos import LEROBOT


def lerobot_data(root: Path = LEROBOT / "v3", **changes: Any) -> LeRobotDataModule:
    """Three episodes of 40 frames: one for each split, unless told otherwise."""
    settings: dict[str, Any] = {"num_latents": 3, "batch_size": 4, "eval_batch_size": 3, "frame_size": (16, 16)}
    return LeRobotDataModule(str(root), **{**settings, **changes})


def build_generator() -> CausalWanModel:
    return CausalWanModel(24, 32, 2, 2, in_dim=7, out_dim=7, freq_dim=10, text_dim=6, text_len=8)


def lerobot_module() -> ActionVideoModule:
    """Its schema comes from the data."""
    return ActionVideoModule(
        build_generator,
        lambda: HashingTextEncoder(6, 8),
        lambda: LinearVideoCodec(7, patch_size=4),
        action_projection=build_projection,
        schema="auto",
        causality=BlockCausality(1, 4, 1),
        sampling=Sampling(num_inference_steps=2),
    )
