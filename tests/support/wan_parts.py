"""Small random networks of the kinds that Wan's frozen parts are, as diffusers and transformers build them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_action.frozen import umt5_format, wan_vae_format
from lightning_action.frozen.wan_vae_format import WanVaeLayout
from lightning_action.weights.names import renamed

# What `WanVideoVAE` is told about them.
GEOMETRY: dict[str, dict[str, Any]] = {
    "2.1": {"latent_dim": 16, "spatial_compression_ratio": 8},
    "2.2": {"latent_dim": 48, "spatial_compression_ratio": 16},
}
_VAE_SIZES: dict[str, dict[str, Any]] = {
    "2.1": {"base_dim": 6, "num_res_blocks": 1},
    "2.2": {
        "base_dim": 4,
        "decoder_base_dim": 6,
        "num_res_blocks": 1,
        "z_dim": 48,
        "is_residual": True,
        "patch_size": 2,
        "in_channels": 12,
        "out_channels": 12,
        "scale_factor_spatial": 16,
        "latents_mean": [0.02 * channel - 0.3 for channel in range(48)],
        "latents_std": [0.5 + 0.03 * channel for channel in range(48)],
    },
}
_LAYOUTS = {"2.1": WanVaeLayout(False, 4, 1), "2.2": WanVaeLayout(True, 4, 1)}
WORDS = ("a", "red", "disc", "moves", "left", "and", "right", "&", "the", "quick", "fox")


def small_vae(version: str, **changes: Any) -> Any:
    """An `AutoencoderKLWan` of Wan's version 2.1 or 2.2."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(**{**_VAE_SIZES[version], **changes}).eval().requires_grad_(False)


def video(version: str, num_frames: int = 9, batch_size: int = 2) -> Tensor:
    """Pixels `[B, T, 3, H, W]` that become 2 x 3 latent positions."""
    side = GEOMETRY[version]["spatial_compression_ratio"]
    return torch.rand(batch_size, num_frames, 3, 2 * side, 3 * side) * 2 - 1


def small_umt5(**changes: Any) -> Any:
    """A `UMT5EncoderModel` with width 20, two layers and room for `ByT5Tokenizer`."""
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"vocab_size": 384, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 3}
    model = UMT5EncoderModel(UMT5Config(**{**sizes, "feed_forward_proj": "gated-gelu", **changes}))
    # The initial relative biases are too small to be missed.
    for name, parameter in model.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(parameter)
    return model.eval().requires_grad_(False)


def write_word_tokenizer(folder: Path) -> None:
    """A tokenizer of the `tokenizers` library that knows `WORDS`, and ends each prompt with `</s>` as UMT5's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def original_tensors(version: str, vae: Any) -> dict[str, Tensor]:
    """Tensors of a VAE as Wan's own files name them."""
    return {original_vae_name(name, _LAYOUTS[version]): tensor for name, tensor in vae.state_dict().items()}


def original_vae_name(name: str, layout: WanVaeLayout) -> str:
    """The name that Wan's own file gives to a tensor of `AutoencoderKLWan`."""
    return renamed(name, ((theirs, original) for original, theirs in wan_vae_format._rows(layout)))


def original_umt5_name(name: str) -> str:
    """The name that Wan's own file gives to a tensor of `UMT5EncoderModel`."""
    block = re.match(r"encoder\.block\.(\d+)\.", name)
    rows = [(theirs, original) for original, theirs in (umt5_format._BLOCK if block else umt5_format._OUTSIDE)]
    return f"blocks.{block[1]}.{renamed(name[block.end() :], rows)}" if block else renamed(name, rows)
