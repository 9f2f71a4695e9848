"""A small run that can be played: the demo's world, and a model whose every part acts."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
import yaml

from lightning_action import ActionModulationProjection, ActionVideoModule
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import fill
from tests.support.sprite_module import data
from tests.support.written_run import CONFIG, GENERATOR


def write_playable_run(folder: Path) -> tuple[Path, Path]:
    """Configuration and checkpoint, as a fit leaves them."""
    source = data()
    module = ActionVideoModule(
        lambda: CausalWanModel(24, 32, 2, 2, **GENERATOR),
        lambda: HashingTextEncoder(6, 4),
        lambda: LinearVideoCodec(7, patch_size=4),
        lambda action_dim, dim: ActionModulationProjection(action_dim, dim, hidden_dim=20),
        schema=source.action_schema,
    )
    module.frozen.vae.fit(source.codec_videos(15))  # type: ignore[attr-defined]
    module.configure_model()
    fill(module)
    checkpoint = {"state_dict": module.state_dict(), "pytorch-lightning_version": "2.6.6"}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "last.ckpt")
    config = deepcopy(CONFIG)
    del config["model"]["action_module"]
    config["model"] |= {"causality": {"num_frame_per_block": 1}, "sampling": {"num_inference_steps": 2}}
    config["model"]["schema"] = source.action_schema.to_dict()
    world = {"class_path": "lightning_action.MovingSpriteWorld", "init_args": {"image_size": 16, "sprite_radius": 3.0}}
    sizes = {"num_latents": 5, "batch_size": 3, "train_size": 15, "test_size": 6}
    config["data"] = {"class_path": "lightning_action.SpriteDataModule", "init_args": {"world": world, **sizes}}
    (folder / "config_fit.yaml").write_text(yaml.safe_dump(config))
    return folder / "config_fit.yaml", folder / "last.ckpt"
