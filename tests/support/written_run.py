"""Configuration and checkpoint of a run, as a fit leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch.distributed.checkpoint import save

from lightning_action import ActionModulationProjection, ActionVideoModule, ConvActionModule
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import fill

GENERATOR: dict[str, Any] = {"in_dim": 7, "out_dim": 7, "freq_dim": 14, "text_dim": 6, "text_len": 4}
CONFIG: dict[str, Any] = {
    "model": {
        "generator": {
            "class_path": "lightning_action.generator.model.CausalWanModel",
            "init_args": {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 2, **GENERATOR},
        },
        "text_encoder": {
            "class_path": "lightning_action.frozen.text.HashingTextEncoder",
            "init_args": {"text_dim": 6, "text_len": 4},
        },
        "vae": {
            "class_path": "lightning_action.frozen.codec.LinearVideoCodec",
            "init_args": {"latent_dim": 7, "patch_size": 4},
        },
        "action_projection": {
            "class_path": "lightning_action.action.projection.ActionModulationProjection",
            "init_args": {"hidden_dim": 20},
        },
        "action_module": {
            "class_path": "lightning_action.ConvActionModule",
            "init_args": {"latent_dim": 7, "action_dim": 8, "hidden_dim": 6},
        },
        "causality": {"num_frame_per_block": 2},
        "sampling": {"num_inference_steps": 2, "seed": 5, "num_initial_latents": 0},
        "timestep_shift": 3.0,
        "seed": 6,
    },
    "data": {
        "class_path": "lightning_action.data.SpriteDataModule",
        "init_args": {"world": {"class_path": "lightning_action.data.MovingSpriteWorld"}},
    },
}


def write_run(folder: Path) -> tuple[Path, Path]:
    """Configuration and checkpoint, as a fit leaves them."""
    module = ActionVideoModule(
        lambda: CausalWanModel(24, 32, 2, 2, **GENERATOR),
        lambda: HashingTextEncoder(6, 4),
        lambda: LinearVideoCodec(7, patch_size=4),
        lambda action_dim, dim: ActionModulationProjection(action_dim, dim, hidden_dim=20),
        lambda: ConvActionModule(7, 8, 6),
    )
    module.configure_model()
    fill(module)
    module.frozen.vae.fit(torch.randn(2, 9, 3, 16, 16))  # type: ignore[attr-defined]
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, folder / "last.ckpt")
    (folder / "config_fit.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder / "config_fit.yaml", folder / "last.ckpt"


def as_folder(path: Path) -> Path:
    """The checkpoint in a file as a folder of shards."""
    checkpoint = torch.load(path, weights_only=True)
    save({"state_dict": checkpoint.pop("state_dict")}, checkpoint_id=path.with_suffix(".shards"), no_dist=True)
    torch.save(checkpoint, path.with_suffix(".shards") / "meta.pt")
    return path.with_suffix(".shards")
