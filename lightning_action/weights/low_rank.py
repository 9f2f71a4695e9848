"""LoRA (Hu et al. 2021, arXiv:2106.09685) in files: what it adds to which weight, and a base with that added."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from lightning_action.weights.names import below, few, to_diffusers_name, unwrapped
from lightning_action.weights.scale import Alpha, Told, as_alpha, find_alpha, read_told, require_plain
from lightning_action.weights.tensor_files import LazyTensor, LazyTensors, as_lazy, find_weights, read_tensors
from lightning_action.weights.values import DTYPES, is_finite

# peft's matrices (with the name of an adapter between, where a whole module was saved), those of kohya and of older
# diffusers, and differences of whole tensors, which distillation LoRAs add.
_PART = re.compile(
    r"(.+?)(?:\.lora_([AB])(?:(?:\.[^.]+)?\.weight)?|(?:\.lora[._]|_lora\.|\.lora_linear_layer\.)(down|up)\.weight"
    r"|\.(alpha|diff|diff_b|diff_m|w_norm|b_norm))"
)
_PARTS = {"A": "down", "B": "up"}
_DIFFERENCES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation", "w_norm": "weight", "b_norm": "bias"}
_OTHER_KINDS = (
    ("DoRA", re.compile(r"\.(dora_scale|lora_magnitude_vector)\b")),
    ("LoHa", re.compile(r"\.hada_")),
    ("LoKr", re.compile(r"\.lokr_")),
    ("LoCon with a core between its matrices", re.compile(r"\.lora_mid\b")),
    ("OFT", re.compile(r"\.b?oft_")),
)
_OUTER = ("generator_lora.", "lora.", "")
# Prefixes that kohya's way of naming puts before names whose dots became underscores, and ai-toolkit's dollars.
_FLAT_PREFIX = re.compile(r"^(lora_unet|lora_transformer|lycoris)_+")
_SEPARATORS = re.compile(r"[._]+")


@dataclass(frozen=True)
class WeightDelta(LazyTensor):
    """Change that is added to a weight.

    Args:
        scale: Text of `alpha / rank` for a report, with where alpha was found; None for a difference that has no scale.
    """

    scale: str | None = None


def is_low_rank(name: str) -> bool:
    """Tell whether this is the name of one of the two matrices of a LoRA layer."""
    if "lora" not in name:
        return False
    match = _PART.fullmatch(name)
    return match is not None and bool(match[2] or match[3])


def low_rank_layers(names: Iterable[str]) -> set[str]:
    """Return the layers that these names give matrices of LoRA for."""
    return {match[1] for name in names if is_low_rank(name) and (match := _PART.fullmatch(name))}


def read_low_rank(path: str | Path, alpha: float | None = None) -> dict[str, WeightDelta]:
    """Read what a LoRA file adds to which weight, see `low_rank_changes`.

    Args:
        path: Path of a file or folder: peft's (`adapter_model.safetensors` beside `adapter_config.json`), diffusers',
            kohya's, or a checkpoint of which the `generator_lora` or `lora` part is taken.
        alpha: Numerator of the scale `alpha / rank`, for every layer. None takes the tensor `alpha` of a layer, else
            what the header of the file says, else the `adapter_config.json` of peft's own file, else the rank, which
            gives a scale of 1.

    Raises:
        FileNotFoundError: The path names no file or folder.
        ValueError: The file is not whole, holds no LoRA, one of a kind that is not plain LoRA, or no usable numbers.
    """
    file = find_weights(Path(path))
    entries = unwrapped(read_tensors(file).entries, str(file))
    told = () if alpha is not None else take_told(file, entries)
    for outer in _OUTER:
        inside = below(entries, outer)
        if any((match := _PART.fullmatch(name)) and match[4] != "alpha" for name in inside):
            return low_rank_changes(inside, alpha, str(file), told)
    for name in entries:
        if any(pattern.search(name) for _, pattern in _OTHER_KINDS):
            _refuse(name, str(file))
    raise ValueError(
        f"{file} holds no LoRA: expected `lora_A`/`lora_B` or `lora_down`/`lora_up` matrices, or differences (`diff`), "
        f"found {few(list(entries))}"
    )


def take_told(file: Path, entries: dict[str, LazyTensor]) -> Told:
    """Read what a file says of the scale; take a tensor `lora_alpha` out of `entries`, and put plain numbers there.

    Raises:
        ValueError: A configuration cannot be read, see `read_told`.
    """
    (place, values), *others = read_told(file)
    common = {name: entries.pop(name).read() for name in list(entries) if f".{name}".endswith(".lora_alpha")}
    layers = low_rank_layers(entries)
    numbers = {
        name: torch.tensor(as_alpha(value, f"{name} in {file}"))
        for name, value in values.items()
        if name.removesuffix(".alpha") in layers
    }
    entries |= as_lazy(numbers).entries
    return [(place, {**values, **common}), *others]


def low_rank_changes(
    entries: Mapping[str, LazyTensor], alpha: float | None, source: str, told: Told = ()
) -> dict[str, WeightDelta]:
    """Compute what LoRA tensors add, under the names of the weights as the file has them: `alpha / rank * up @ down`.

    Args:
        entries: Matrices, alphas and differences by name.
        alpha: Numerator of the scale for every layer; None takes the layer's own, else what `told` says, else the rank.
        source: Name of the file in messages.
        told: Statements of the file about its scale, from `take_told`.

    Raises:
        ValueError: A name is not that of a LoRA tensor, a matrix lacks its partner or does not fit it, or a value is
            not a finite floating-point number.
    """
    layers = _layers(entries, source)
    if alpha is not None:
        common = Alpha(as_alpha(alpha, "`lora_alpha`"), "as given")
        for parts in layers.values():
            parts.pop("alpha", None)
    else:
        require_plain(told)
        complete = all("alpha" in parts for parts in layers.values() if "down" in parts)
        common = Alpha(None, "") if complete else find_alpha(told)
    changes: dict[str, WeightDelta] = {}
    for layer, parts in layers.items():
        if parts.keys() & {"down", "up", "alpha"}:
            changes[f"{layer}.weight"] = _product(parts, common, f"{layer} in {source}")
        for part in parts.keys() & _DIFFERENCES.keys():
            name, difference = f"{layer}.{_DIFFERENCES[part]}", parts[part]
            change = WeightDelta(difference.shape, difference.dtype, difference.read)
            changes[name] = _both(changes[name], change, name, source) if name in changes else change
    return changes


def add_changes(base: LazyTensors, changes: Mapping[str, LazyTensor], source: str) -> LazyTensors:
    """Return the base with `changes` added as each tensor is read, in the order and dtypes of peft's `merge`.

    Args:
        base: Tensors in the original Wan names.
        changes: Changes from `read_low_rank`, in any of the naming schemes, with anything before the name.
        source: Name of the file in messages.

    Raises:
        ValueError: A change is for a weight that the base does not have, or of another shape.
    """
    known = {_flat(alias): name for name in base for alias in _aliases(name)}
    by_name: dict[str, LazyTensor] = {}
    for change, entry in changes.items():
        name = _known_name(change, known)
        if name in by_name:
            raise ValueError(f"{source} changes {name} several times, once under {change}: expected one LoRA")
        by_name[name] = entry
    strangers = [name for name in by_name if name not in base.entries]
    strangers += [
        f"{name} {list(entry.shape)} (expected {list(base.entries[name].shape)})"
        for name, entry in by_name.items()
        if name in base.entries and _matrix(entry.shape) != _matrix(base.entries[name].shape)
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


def scales(changes: Mapping[str, WeightDelta]) -> tuple[str, ...]:
    """List the scales that were applied, each once, with where they come from."""
    return tuple(dict.fromkeys(change.scale for change in changes.values() if change.scale is not None))


def _layers(entries: Mapping[str, LazyTensor], source: str) -> dict[str, dict[str, LazyTensor]]:
    """Group the tensors of each layer by the part they play."""
    layers: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    for name, entry in entries.items():
        match = _PART.fullmatch(name)
        if match is None:
            _refuse(name, source)
        part = next(filter(None, match.groups()[1:]))
        part = _PARTS.get(part, part)
        if part in layers[match[1]]:
            raise ValueError(f"{source} holds several LoRAs of {match[1]}: expected one")
        if part != "alpha" and entry.dtype not in DTYPES:
            raise ValueError(
                f"{name} in {source} is of {entry.dtype}: expected float16, bfloat16, float32 or float64; take the "
                "file that was not cast or quantized"
            )
        if part != "alpha" and not is_finite(entry.read()):
            raise ValueError(f"{name} in {source} holds values that are not finite: the file is damaged, take another")
        layers[match[1]][part] = entry
    return layers


def _refuse(name: str, source: str) -> NoReturn:
    kind = next((f" (a part of {kind})" for kind, pattern in _OTHER_KINDS if pattern.search(name)), "")
    raise ValueError(
        f"{source} is not plain LoRA: it holds {name}{kind}, which has no meaning here; merge it with the program that "
        "wrote it, and load the whole generator"
    )


def _product(parts: Mapping[str, LazyTensor], common: Alpha, source: str) -> WeightDelta:
    if not {"down", "up"} <= parts.keys():
        raise ValueError(f"the LoRA of {source} has only {', '.join(parts)}: expected two matrices")
    down, up = parts["down"], parts["up"]
    fits = len(down.shape) >= 2 and len(up.shape) >= 2 and down.shape[0] == up.shape[1] > 0 and prod(up.shape[2:]) == 1
    if not fits:
        raise ValueError(
            f"the LoRA of {source} is {list(up.shape)} times {list(down.shape)}: expected [out, rank] and [rank, in], "
            "for a convolution [out, rank, 1, ...] and [rank, in, ...]"
        )
    rank = down.shape[0]
    if "alpha" in parts:
        common = Alpha(as_alpha(parts["alpha"].read(), f"the alpha of {source}"), "from the alpha of each layer")
    scale = (rank if common.value is None else common.value) / rank
    shape = torch.Size((up.shape[0], *down.shape[1:]))
    dtype = torch.promote_types(up.dtype, down.dtype)

    def read() -> Tensor:
        left, right = (factor.read().flatten(1).to(dtype) for factor in (up, down))
        # As peft computes it.
        if left.device.type == "cpu" and dtype in (torch.float16, torch.bfloat16):
            left, right = left.float(), right.float()
        return (left @ right * scale).to(dtype).reshape(shape)

    return WeightDelta(shape, dtype, read, scale=f"{scale:g} ({common.origin})")


def _both(product: WeightDelta, difference: WeightDelta, name: str, source: str) -> WeightDelta:
    """Add a layer's matrices and its difference one after the other."""
    if product.shape != difference.shape:
        raise ValueError(
            f"{source} changes {name} by matrices for {list(product.shape)} and by a difference of "
            f"{list(difference.shape)}: expected one shape"
        )
    return WeightDelta(product.shape, product.dtype, lambda: product.read() + difference.read(), scale=product.scale)


@torch.no_grad()
def _sum(base: LazyTensor, change: LazyTensor) -> Tensor:
    changed = base.read().clone()
    added = change.read().to(changed.device)
    changed += added if added.shape == changed.shape else added.reshape(changed.shape)
    return changed


def _aliases(name: str) -> Iterable[str]:
    """List the names that files have for a tensor; a parameter on its own is a layer with a weight for some of them."""
    for alias in (name, to_diffusers_name(name)):
        yield alias
        if not alias.endswith((".weight", ".bias")):
            yield f"{alias}.weight"


def _matrix(shape: torch.Size) -> tuple[int, int]:
    """Shape a weight as [out, in], in which a convolution's kernel is a part of what goes in."""
    return shape[0], prod(shape[1:])


def _flat(name: str) -> str:
    return _SEPARATORS.sub("_", _FLAT_PREFIX.sub("", name, count=1))


def _known_name(name: str, known: Mapping[str, str]) -> str:
    """Return what the longest known end of a dotted name stands for, whatever stands before it; else the name."""
    parts = name.replace("$$", ".").split(".")
    ends = (_flat(".".join(parts[start:])) for start in range(len(parts)))
    return next((known[end] for end in ends if end in known), name)
