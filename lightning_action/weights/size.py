"""The size of a generator, from the shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from lightning_action.weights.fit import Shaped

# Width of one attention head in every released model; it cannot be seen in the tensors.
_HEAD_DIM = 128
# What of a generator the shapes of its tensors do not tell, so that files say it beside them.
TRAITS = ("num_heads", "preconditioned")
# What files mean that do not say it, as those of released weights.
_UNSAID = {"preconditioned": "False"}
_SIZE_GIVING = (
    "patch_embedding.weight",
    "text_embedding.0.weight",
    "time_embedding.0.weight",
    "blocks.0.ffn.0.weight",
    "head.head.weight",
)


def detect_size(tensors: Mapping[str, Shaped]) -> dict[str, Any]:
    """Return the arguments of `CausalWanModel` that tensors in the original Wan names are shaped for, but the heads.

    `image_dim` and `num_image_positions` are among them only for models that have them;
    `text_len` and `eps` are not to be seen in tensors.

    Raises:
        ValueError: A tensor that tells the size is missing.
    """
    missing = [name for name in _SIZE_GIVING if name not in tensors]
    if missing:
        raise ValueError(f"these are not the tensors of a Wan generator: they lack {', '.join(missing)}")
    dim, in_dim, *patch_size = tensors["patch_embedding.weight"].shape
    layers = [int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d+)\.", name))]
    size = {
        "dim": dim,
        "ffn_dim": tensors["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": 1 + max(layers),
        "in_dim": in_dim,
        "out_dim": tensors["head.head.weight"].shape[0] // prod(patch_size),
        "patch_size": tuple(patch_size),
        "freq_dim": tensors["time_embedding.0.weight"].shape[1],
        "text_dim": tensors["text_embedding.0.weight"].shape[1],
        "qk_norm": "blocks.0.self_attn.norm_q.weight" in tensors,
        "cross_attn_norm": "blocks.0.norm3.weight" in tensors,
    }
    if "img_emb.proj.0.weight" in tensors:
        size["image_dim"] = tensors["img_emb.proj.0.weight"].shape[0]
    if "img_emb.emb_pos" in tensors:
        size["num_image_positions"] = tensors["img_emb.emb_pos"].shape[1]
    return size


def traits_in(said: Mapping[str, object]) -> dict[str, str]:
    """Take out the traits of a generator of what a file says beside its weights, as far as it says them."""
    return {name: str(said[name]) for name in TRAITS if name in said}


def require_traits(said: Mapping[str, object], own: Mapping[str, str], source: str) -> None:
    """Refuse weights of a generator that differs in what no shape tells.

    Args:
        said: Values that the source holds beside its weights; older files do not hold all.
        own: Traits of the generator that is to hold them.
        source: Name of the source.

    Raises:
        ValueError: A trait differs; the message has both.
    """
    for name, ours in own.items():
        theirs = said.get(name, _UNSAID.get(name))
        if theirs is not None and str(theirs) != ours:
            raise ValueError(
                f"{source} was trained with {name} {theirs}, the generator has {name} {ours}: their weights have the "
                "same shapes and mean something else; use the configuration it was trained with"
            )


def generator_arguments(tensors: Mapping[str, Shaped], num_heads: int | None = None) -> dict[str, Any]:
    """Return what `CausalWanModel` takes to hold tensors in the original Wan names.

    Args:
        tensors: Tensors as in `LazyTensors.entries` or a state dict.
        num_heads: Number of heads; None takes heads of width 128, as all released models have.

    Raises:
        ValueError: A tensor that tells the size is missing, or the width is not a whole number of heads.
    """
    size = detect_size(tensors)
    if num_heads is None and size["dim"] % _HEAD_DIM:
        raise ValueError(
            f"a width of {size['dim']} is not a whole number of heads of {_HEAD_DIM}: give num_heads, or a generator"
        )
    return {**size, "num_heads": size["dim"] // _HEAD_DIM if num_heads is None else num_heads}
