"""A folder with the files of a Wan release, small and random, and the arguments that shrink a configuration to it."""

from __future__ import annotations

from pathlib import Path

import torch

from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.safetensors_files import write_safetensors
from tests.support.small_generator import fill
from tests.support.wan_parts import GEOMETRY, small_umt5, small_vae

VERSIONS = {"wan2.1_1.3b": "2.1", "wan2.1_14b": "2.1", "wan2.2_5b": "2.2", "longlive_action": "2.1"}
_IMAGE_SIZES = {"2.1": "[32, 16]", "2.2": "[32, 64]"}
# Two blocks of each configuration.
_NUM_LATENTS = {"wan2.1_1.3b": 4, "wan2.1_14b": 4, "wan2.2_5b": 3, "longlive_action": 6}
_SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.enable_progress_bar=false",
    "--model.generator.init_args.dim=24",
    "--model.generator.init_args.ffn_dim=32",
    "--model.generator.init_args.num_heads=2",
    "--model.generator.init_args.num_layers=2",
    "--model.generator.init_args.text_dim=20",
]
_SMALL_SPRITES = [
    "--data.init_args.world.init_args.sprite_radius=3",
    "--data.init_args.validation_size=1",
    "--data.init_args.test_size=2",
    "--data.init_args.predict_size=1",
]


def write_release(folder: Path, version: str) -> CausalWanModel:
    """Generator, text encoder, tokenizer and VAE of version 2.1 or 2.2; returns the generator."""
    from transformers import ByT5Tokenizer

    small_vae(version).save_pretrained(folder / "vae")
    small_umt5().save_pretrained(folder / "text_encoder")
    ByT5Tokenizer().save_pretrained(folder / "tokenizer")
    with torch.random.fork_rng():
        channels = GEOMETRY[version]["latent_dim"]
        released = CausalWanModel(24, 32, 2, 2, in_dim=channels, out_dim=channels, text_dim=20, freq_dim=256)
    fill(released)
    write_safetensors(folder / "diffusion_pytorch_model.safetensors", released.state_dict(), {})
    return released


def small_model() -> list[str]:
    """What shrinks the model of a configuration to such a release, and to a CPU."""
    return list(_SMALL)


def small_arguments(config: str) -> list[str]:
    """What makes `configs/<config>.yaml` fit such a release, and a CPU."""
    is_few_step = config == "longlive_action"
    per_layer = ["--model.action_projection.init_args.num_layers=2", "--model.sampling.num_inference_steps=2"]
    image_size = f"--data.init_args.world.init_args.image_size={_IMAGE_SIZES[VERSIONS[config]]}"
    num_latents = f"--data.init_args.num_latents={_NUM_LATENTS[config]}"
    # Of 8 latent frames as shipped.
    short_blocks = ["--model.causality.num_frame_per_block=2"] if config == "wan2.2_5b" else []
    return [*_SMALL, *_SMALL_SPRITES, image_size, num_latents, *short_blocks, *([] if is_few_step else per_layer)]
