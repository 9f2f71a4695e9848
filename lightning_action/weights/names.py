"""Names of the generator's tensors: the original Wan ones, which are ours, and those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

# Parts of a name that come from sharding, compilation, activation checkpointing, data parallelism and peft.
_WRAPPERS = {"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "module", "base_layer"}

# Original Wan names and those of diffusers' `WanTransformer3DModel`. The first row that a name begins with, behind
# `blocks.N.`, rewrites it; a name that begins with none is the same in both.
_DIFFUSERS_NAMES = (
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
    ("head.modulation", "scale_shift_table"),
    ("head.head.", "proj_out."),
    ("modulation", "scale_shift_table"),
    ("ffn.0.", "ffn.net.0.proj."),
    ("ffn.2.", "ffn.net.2."),
    ("norm3.", "norm2."),
    ("img_emb.proj.0.", "condition_embedder.image_embedder.norm1."),
    ("img_emb.proj.1.", "condition_embedder.image_embedder.ff.net.0.proj."),
    ("img_emb.proj.3.", "condition_embedder.image_embedder.ff.net.2."),
    ("img_emb.proj.4.", "condition_embedder.image_embedder.norm2."),
    ("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
    ("cross_attn.k_img.", "attn2.add_k_proj."),
    ("cross_attn.v_img.", "attn2.add_v_proj."),
    ("cross_attn.norm_k_img.", "attn2.norm_added_k."),
    ("self_attn.to_qkv.", "attn1.to_qkv."),
    ("cross_attn.to_kv.", "attn2.to_kv."),
    ("cross_attn.to_added_kv.", "attn2.to_added_kv."),
    *(
        (f"{ours}.{part}.", f"{theirs}.{short}.")
        for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for part, short in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
    ),
    ("self_attn.norm_", "attn1.norm_"),
    ("cross_attn.norm_", "attn2.norm_"),
)


def to_diffusers_name(name: str) -> str:
    """Return the name that diffusers gives to a tensor of `CausalWanModel`."""
    return _renamed_in_layer(name, _DIFFUSERS_NAMES)


def from_diffusers_name(name: str) -> str:
    """Return the name that `CausalWanModel` gives to a tensor of diffusers' `WanTransformer3DModel`."""
    # `scale_shift_table` is a layer's modulation, and outside the layers the head's.
    other = "head.modulation" if name.startswith("blocks.") else "modulation"
    return _renamed_in_layer(name, [(theirs, ours) for ours, theirs in _DIFFUSERS_NAMES if ours != other])


def unwrapped(entries: Mapping[str, T], source: str) -> dict[str, T]:
    """Rename entries without what wrappers put into their names.

    Raises:
        ValueError: Two entries have the same name then.
    """
    found: dict[str, T] = {}
    for name, entry in entries.items():
        short = ".".join(piece for piece in name.split(".") if piece not in _WRAPPERS)
        if short in found:
            raise ValueError(f"{source} holds {short} several times, under {name} and another wrapper's name")
        found[short] = entry
    return found


def inside(entries: Mapping[str, T], tensors: Sequence[str], source: str) -> dict[str, T]:
    """Find what a file holds under the one name before the first of `tensors` that it has; all of it under none.

    Raises:
        ValueError: The file has that tensor under several names.
    """
    for tensor in tensors:
        parts = parts_with(entries, tensor)
        if len(parts) > 1 and "" not in parts:
            raise ValueError(f"{source} holds several networks ({', '.join(parts)}): save the one you mean alone")
        if parts and "" not in parts:
            return below(entries, parts[0])
    return dict(entries)


def below(entries: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Take the entries whose names begin with a prefix, and leave that out of their names."""
    return {name.removeprefix(prefix): entry for name, entry in entries.items() if name.startswith(prefix)}


def parts_with(names: Iterable[str], tensor: str) -> list[str]:
    """List what stands before the dotted name `tensor` in each name that ends with it."""
    return [name.removesuffix(tensor) for name in names if f".{name}".endswith(f".{tensor}")]


def few(names: Sequence[str]) -> str:
    """Show the first names of a list that may be long."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def renamed(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """Rename what begins with the first of a row, so that it begins with the second; keep all other names."""
    for old, new in rows:
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _renamed_in_layer(name: str, rows: Iterable[tuple[str, str]]) -> str:
    """Rename what stands behind `blocks.N.`, or the whole name outside the layers."""
    layer = re.match(r"blocks\.\d+\.", name)
    prefix = layer.group() if layer else ""
    return prefix + renamed(name.removeprefix(prefix), rows)
