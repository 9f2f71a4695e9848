"""Names and sizes in files of the UMT5 encoder: Wan's original ones, and those of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from lightning_action.weights.fit import Shaped
from lightning_action.weights.names import inside, renamed

T = TypeVar("T")

# Original names, and those of transformers, behind `blocks.N.` and `encoder.block.N.`
_BLOCK = (
    ("norm1.", "layer.0.layer_norm."),
    *((f"attn.{part}.", f"layer.0.SelfAttention.{part}.") for part in "qkvo"),
    ("pos_embedding.embedding.", "layer.0.SelfAttention.relative_attention_bias."),
    ("norm2.", "layer.1.layer_norm."),
    ("ffn.gate.0.", "layer.1.DenseReluDense.wi_0."),
    ("ffn.fc1.", "layer.1.DenseReluDense.wi_1."),
    ("ffn.fc2.", "layer.1.DenseReluDense.wo."),
)
# Names outside the blocks, likewise.
_OUTSIDE = (("token_embedding.", "shared."), ("norm.", "encoder.final_layer_norm."))
# Tensors that stand beside the encoder, in whole models and in files for other programs.
_BESIDE = ("decoder.", "lm_head.", "spiece_model", "tokenizer.", "tokenizer_model")


def encoder_part(entries: Mapping[str, T], source: str) -> dict[str, T]:
    """Find the encoder in a file that may hold more: `UMT5ForConditionalGeneration`'s decoder, the tokenizer's bytes.

    Raises:
        ValueError: The file holds several encoders.
    """
    held = inside(entries, ("token_embedding.weight", "shared.weight", "encoder.embed_tokens.weight"), source)
    held = {name: entry for name, entry in held.items() if not name.startswith(_BESIDE)}
    # The two names of one tensor, of which files keep either.
    if "shared.weight" not in held and "encoder.embed_tokens.weight" in held:
        held["shared.weight"] = held["encoder.embed_tokens.weight"]
    return held


def is_original(names: Iterable[str]) -> bool:
    """Tell whether these are the names of `models_t5_umt5-xxl-enc-bf16.pth`."""
    return "token_embedding.weight" in names


def to_transformers_name(name: str) -> str:
    """Return the name that transformers gives to a tensor of an original file."""
    block = re.match(r"blocks\.(\d+)\.", name)
    if block is None:
        return renamed(name, _OUTSIDE)
    return f"encoder.block.{block[1]}.{renamed(name[block.end() :], _BLOCK)}"


def config_of(tensors: Mapping[str, Shaped]) -> dict[str, Any]:
    """The arguments of `UMT5Config` that the tensors (transformers' names) show; the rest is as in `umt5-xxl`.

    Raises:
        KeyError: A tensor is missing that every UMT5 encoder has.
    """
    attention = "encoder.block.0.layer.0.SelfAttention"
    vocab_size, d_model = tensors["shared.weight"].shape
    layers = [int(match[1]) for name in tensors if (match := re.match(r"encoder\.block\.(\d+)\.", name))]
    num_buckets, num_heads = tensors[f"{attention}.relative_attention_bias.weight"].shape
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": tensors[f"{attention}.q.weight"].shape[0] // num_heads,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        "num_layers": 1 + max(layers),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
        "feed_forward_proj": "gated-gelu",
    }
