"""LoRA in files: what it adds to which weight, and a base with that added."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lightning_action.weights.names import few, to_diffusers_name, unwrapped
from lightning_action.weights.tensor_files import LazyTensor, LazyTensors, find_weights, read_tensors

# peft's matrices (with the name of an adapter between, where a whole module was saved), kohya's, and differences of
# whole weights and biases, which some distillation LoRAs add.
_PART = re.compile(r"(.+)\.(?:lora_([AB])(?:\.[^.]+)?\.weight|lora_(down|up)\.weight|(alpha)|(diff|diff_b))")
_PARTS = {"A": "down", "B": "up"}
_OUTER = ("generator_lora.", "lora.", "")


def is_low_rank(name: str) -> bool:
    """Whether this is the name of one of the two matrices of a LoRA layer."""
    return ".lora_" in name and _PART.fullmatch(name) is not None


def read_low_rank(path: str | Path, alpha: float | None = None) -> dict[str, LazyTensor]:
    """What a LoRA file adds to which weight, see `low_rank_changes`.

    Args:
        path: a file or folder: peft's (`adapter_model.safetensors` beside `adapter_config.json`), kohya's, or a
            checkpoint of which the `generator_lora` or `lora` part is taken.
        alpha: numerator of the scale `alpha / rank`. None takes what the file or `adapter_config.json` says, else the
            rank, which gives a scale of 1.

    Raises:
        FileNotFoundError: there is nothing at that path.
        ValueError: the file is not whole, holds no LoRA, or one of a kind that is not plain LoRA.
    """
    file = find_weights(Path(path))
    if alpha is None:
        alpha = _configured_alpha(file.parent / "adapter_config.json")
    entries = unwrapped(read_tensors(file).entries, str(file))
    for outer in _OUTER:
        inside = {name.removeprefix(outer): entry for name, entry in entries.items() if name.startswith(outer)}
        if any(is_low_rank(name) for name in inside):
            return low_rank_changes(inside, alpha, str(file))
    raise ValueError(
        f"{file} holds no LoRA: expected `lora_A`/`lora_B` or `lora_down`/`lora_up` matrices, found "
        f"{few(list(entries))}"
    )


def low_rank_changes(entries: Mapping[str, LazyTensor], alpha: float | None, source: str) -> dict[str, LazyTensor]:
    """What LoRA tensors add, under the names of the weights as the file has them: `alpha / rank * up @ down`.

    Raises:
        ValueError: a name is not that of a LoRA tensor, or a matrix lacks its partner or does not fit it.
    """
    layers: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    for name, entry in entries.items():
        match = _PART.fullmatch(name)
        if match is None:
            raise ValueError(f"{source} is not plain LoRA: do not know what to do with {name}")
        part = next(filter(None, match.groups()[1:]))
        part = _PARTS.get(part, part)
        if part in layers[match[1]]:
            raise ValueError(f"{source} holds several LoRAs of {match[1]}: expected one")
        layers[match[1]][part] = entry
    changes: dict[str, LazyTensor] = {}
    for layer, parts in layers.items():
        if parts.keys() & {"down", "up", "alpha"}:
            changes[f"{layer}.weight"] = _product(parts, alpha, f"{layer} in {source}")
        for part, attribute in (("diff", "weight"), ("diff_b", "bias")):
            if part in parts:
                changes[f"{layer}.{attribute}"] = parts[part]
    return changes


def add_changes(base: LazyTensors, changes: Mapping[str, LazyTensor], source: str) -> LazyTensors:
    """The base with `changes` added as each tensor is read, in the order of operations and dtypes of peft's `merge`.

    Args:
        base: in the original Wan names.
        changes: from `read_low_rank`: any of the naming schemes, with anything before the name.
        source: for messages.

    Raises:
        ValueError: a change is for a weight that the base does not have, or of another shape.
    """
    known = {alias: name for name in base for alias in _aliases(name)}
    by_name: dict[str, LazyTensor] = {}
    for change, entry in changes.items():
        name = known.get(_known_suffix(change, known), change)
        if name in by_name:
            raise ValueError(f"{source} changes {name} several times, once under {change}: expected one LoRA")
        by_name[name] = entry
    strangers = [name for name in by_name if name not in base.entries]
    strangers += [
        f"{name} {list(entry.shape)} (expected {list(base.entries[name].shape)})"
        for name, entry in by_name.items()
        if name in base.entries and entry.shape != base.entries[name].shape
    ]
    if strangers:
        raise ValueError(
            f"{source} changes {len(strangers)} weights that the generator does not have: {few(strangers)}"
        )
    changed = {
        name: LazyTensor(entry.shape, entry.dtype, partial(_sum, entry, by_name[name])) if name in by_name else entry
        for name, entry in base.entries.items()
    }
    return LazyTensors(changed)


def low_rank_product(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """`scale * up @ down` in the dtype of the factors, through float32 on the CPU as peft computes it."""
    widened = up.device.type == "cpu" and up.dtype in (torch.float16, torch.bfloat16)
    product = (up.float() @ down.float() if widened else up @ down) * scale
    return product.to(up.dtype)


def _product(parts: Mapping[str, LazyTensor], alpha: float | None, source: str) -> LazyTensor:
    if not {"down", "up"} <= parts.keys():
        raise ValueError(f"the LoRA of {source} has only {', '.join(parts)}: expected two matrices")
    down, up = parts["down"], parts["up"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise ValueError(
            f"the LoRA of {source} is {list(up.shape)} times {list(down.shape)}: expected [out, rank] and [rank, in]"
        )
    rank = down.shape[0]
    if "alpha" in parts:
        alpha = parts["alpha"].read().item()
    scale = (rank if alpha is None else alpha) / rank
    shape = torch.Size((up.shape[0], down.shape[1]))
    return LazyTensor(shape, up.dtype, lambda: low_rank_product(up.read(), down.read(), scale))


@torch.no_grad()
def _sum(base: LazyTensor, change: LazyTensor) -> Tensor:
    changed = base.read().clone()
    changed += change.read().to(changed.device)
    return changed


def _aliases(name: str) -> Iterable[str]:
    layer, _, attribute = name.rpartition(".")
    return (name, to_diffusers_name(name), f"lora_unet_{layer.replace('.', '_')}.{attribute}")


def _known_suffix(name: str, known: Mapping[str, str]) -> str:
    """The longest end of a dotted name that is known, so that it does not matter what stands before."""
    parts = name.split(".")
    suffixes = (".".join(parts[start:]) for start in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in known), name)


def _configured_alpha(path: Path) -> float | None:
    """`lora_alpha` of an `adapter_config.json`, if there is one."""
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
        alpha = float(config["lora_alpha"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no configuration of a LoRA: expected JSON with `lora_alpha`") from error
    special = [key for key in ("use_rslora", "use_dora", "alpha_pattern") if config.get(key)]
    if special:
        raise ValueError(f"{path} sets {', '.join(special)}: only plain LoRA with one alpha can be merged")
    return alpha
