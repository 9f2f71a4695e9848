"""Checkpoints of the whole family, whatever they nest, wrap, fuse and name differently."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_action.weights.fit import require_weights
from lightning_action.weights.low_rank import (
    add_changes,
    is_low_rank,
    low_rank_changes,
    low_rank_layers,
    scales,
    take_told,
)
from lightning_action.weights.names import below, few, from_diffusers_name, parts_with, unwrapped
from lightning_action.weights.tensor_files import LazyTensor, LazyTensors, find_weights, read_tensors, read_values
from lightning_action.weights.values import PLAIN_REMEDY

# First parts of the name under which files hold the generator, the preferred one first; "" is a file of nothing else.
_OUTER = (
    *("generator", "model", "state_dict", "diffusion_model", "base_model", "pipe", "pipeline", "transformer", "dit"),
    *("net", "network", "backbone", "denoiser", "unet", "student", "transformer_2", "dit2", ""),
)
_AVERAGED = ("generator_ema", "ema_state_dict", "ema")
# What a distillation keeps beside its student.
_BESIDE = {"critic", "target", "teacher", "fake_score", "real_score"}
# Names of the two experts for high and low noise where both are in one file.
_EXPERTS = {"transformer": ("transformer", "transformer_2"), "dit": ("dit", "dit2")}
_GENERATOR_HAS = "patch_embedding.weight"
_PROJECTION_HAS = ("action_embedding.0.weight", "action_projection.weight")
_FUSED = {"to_qkv": ("q", "k", "v"), "to_kv": ("k", "v"), "to_added_kv": ("k_img", "v_img")}
# Heads that distillation and action-conditioned forks put beside the transformer or into it; diffusers' unused norm.
_EXTRA_HEADS = re.compile(
    r"_?(cls_pred_branch|conv3d_cls_branch|register_tokens|gan_ca_blocks|rgs_|state_(probe|token|readout)"
    r"|action_(token_)?projection)|.*\.norm_added_q\."
)
_QUANTIZED = ("quantized_weight_values", "weight_scale", "scale_weight", "scaled_fp8")


@dataclass(frozen=True)
class GeneratorCheckpoint:
    """The generator of a checkpoint; as a text it says what was loaded.

    Args:
        source: File that was read.
        said: Values that the file holds besides, as `read_values` gives them.
        tensors: Tensors in the original Wan names, with LoRA merged.
        part: Prefix under which the file holds them (`generator_ema.model.`), empty if there is none.
        dropped: Tensors inside that part which belong to known extra heads.
        ignored: Other parts that the file holds, by the name of the outermost part that is not the generator.
        num_merged: Number of LoRA layers and differences that were merged.
        scales: Scales of the LoRA layers, each once, with where they come from.
    """

    source: str
    said: Mapping[str, Any]
    tensors: LazyTensors
    part: str
    dropped: tuple[str, ...]
    ignored: tuple[str, ...]
    num_merged: int
    scales: tuple[str, ...]

    @property
    def fit_seconds(self) -> float:
        """Seconds that the weights were trained for; 0 where the file does not say it as a number."""
        try:
            return float(self.said.get("fit_seconds", 0.0))
        except (TypeError, ValueError):
            return 0.0

    def __str__(self) -> str:
        told = f"loaded {len(self.tensors)} tensors of the generator from {self.source}"
        told += f" ({self.part.rstrip('.')})" if self.part else ""
        told += f", merged {self.num_merged} LoRA layers" if self.num_merged else ""
        told += f" at scale {few(self.scales)}" if self.scales else ""
        told += f", dropped {len(self.dropped)} of extra heads ({few(self.dropped)})" if self.dropped else ""
        return told + (f", left aside {few(self.ignored)}" if self.ignored else "")


def read_generator(path: str | Path, lora_alpha: float | None = None) -> GeneratorCheckpoint:
    """Read the generator of any checkpoint of the family, in the original Wan names; values are read lazily.

    Averaged weights come before those of the last step.

    Args:
        path: Path as `read_tensors` takes it.
        lora_alpha: Numerator of the scale of LoRA layers that the file holds un-merged; None takes what the file says,
            else their rank.

    Raises:
        FileNotFoundError: The path names no file or folder.
        ValueError: The file is not whole, holds no generator or several, or a quantized one.
    """
    file = find_weights(Path(path))
    entries = unwrapped(read_tensors(file).entries, str(path))
    quantized = [name for name in entries if name.endswith(_QUANTIZED)]
    if quantized:
        raise ValueError(f"{path} is quantized (it holds {quantized[0]}): {PLAIN_REMEDY}")
    told = take_told(file, entries) if low_rank_layers(entries) else ()
    part = _choose_part(entries, str(path))
    inside = below(entries, part)
    dropped = tuple(name for name in inside if _EXTRA_HEADS.match(name))
    kept = {name: entry for name, entry in inside.items() if name not in dropped}
    if any(name.startswith("condition_embedder.") for name in kept):
        kept = {from_diffusers_name(name): entry for name, entry in kept.items()}
    layers = low_rank_layers(kept)
    low_rank = {n: e for n, e in kept.items() if is_low_rank(n) or n.removesuffix(".alpha") in layers}
    plain = {name: entry for name, entry in kept.items() if name not in low_rank}
    require_weights(plain, f"{path} holds no plain generator")
    changes = low_rank_changes(low_rank, lora_alpha, str(path), told)
    ignored = {_outermost(name, part) for name in entries if not name.startswith(part)}
    return GeneratorCheckpoint(
        source=str(file),
        said=read_values(file),
        tensors=add_changes(LazyTensors(_split_fused(plain)), changes, str(path)),
        part=part,
        dropped=dropped,
        ignored=tuple(sorted(ignored)),
        num_merged=len(changes),
        scales=scales(changes),
    )


def read_action_projection(path: str | Path) -> LazyTensors:
    """Read the action projection of a checkpoint, under the names of `ActionModulationProjection`.

    It is found in a file of its own, beside the generator (`action_projection`), inside it, or in a checkpoint of ours,
    averaged where that has both.

    Raises:
        FileNotFoundError: The path names no file or folder.
        ValueError: The file is not whole, or does not hold exactly one projection.
    """
    entries = unwrapped(read_tensors(path).entries, str(path))
    parts = [part for part in parts_with(entries, _PROJECTION_HAS[0]) if part + _PROJECTION_HAS[1] in entries]
    parts = _of_student(parts)
    parts = [part for part in parts if _outer(part) in _AVERAGED] or parts
    if len(parts) != 1:
        raise ValueError(
            f"{path} holds {len(parts)} action projections{': ' if parts else ''}{', '.join(parts)}: expected one "
            f"part with {' and '.join(_PROJECTION_HAS)}"
        )
    return LazyTensors(below(entries, parts[0]))


def _outermost(name: str, part: str) -> str:
    """Return the shortest beginning of a dotted name that is none of `part`."""
    pieces = name.split(".")
    starts = (".".join(pieces[: length + 1]) for length in range(len(pieces)))
    return next(start for start in starts if not part.startswith(f"{start}."))


def _choose_part(names: Iterable[str], source: str) -> str:
    names = list(names)
    parts = {part: _outer(part) for part in _of_student(parts_with(names, _GENERATOR_HAS))}
    for outer in (*_AVERAGED, *_OUTER):
        experts = _EXPERTS.get(outer, (outer,))
        found = [part for part, of in parts.items() if of in experts]
        if len(found) > 1:
            raise ValueError(f"{source} holds several generators ({', '.join(found)}): save the one you mean alone")
        if found:
            return found[0]
    held = ", ".join(sorted({name.split(".")[0] for name in names})[:8])
    raise ValueError(
        f"{source} holds no generator: expected {_GENERATOR_HAS}, at the top or in one of "
        f"{', '.join(filter(None, (*_AVERAGED, *_OUTER)))}; it holds {held}"
    )


def _of_student(parts: Iterable[str]) -> list[str]:
    return [part for part in parts if not _BESIDE & set(part.split("."))]


def _outer(part: str) -> str:
    """Return what `part` belongs to: averages wherever they are nested, as in a file made from a folder of shards."""
    pieces = part.split(".")
    return next((piece for piece in pieces if piece in _AVERAGED), pieces[0])


def _split_fused(entries: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Give fused projections their separate names; the others stay."""
    split: dict[str, LazyTensor] = {}
    for name, entry in entries.items():
        owner, _, attribute = name.rpartition(".")
        layer, _, fused = owner.rpartition(".")
        parts = _FUSED.get(fused, ())
        if not parts or entry.shape[0] % len(parts):
            split[name] = entry
            continue
        rows = entry.shape[0] // len(parts)
        for index, part in enumerate(parts):
            shape = torch.Size((rows, *entry.shape[1:]))
            read = partial(_rows, entry, index * rows, rows)
            split[f"{layer}.{part}.{attribute}"] = LazyTensor(shape, entry.dtype, read)
    return split


def _rows(entry: LazyTensor, start: int, count: int) -> Tensor:
    return entry.read()[start : start + count]
