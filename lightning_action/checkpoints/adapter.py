"""Adapters: what actions add to a base model, in a small file that knows which base it belongs to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionSchema
from lightning_action.checkpoints.lora import (
    base_state_dict,
    has_lora,
    load_lora_state_dict,
    lora_alpha,
    lora_state_dict,
    merge_into,
)
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.fingerprint import fingerprint, identity, require_fingerprint
from lightning_action.weights.fit import check_fits, load_strictly, require_weights
from lightning_action.weights.safetensors_files import read_metadata, read_safetensors, write_safetensors
from lightning_action.weights.size import require_traits, traits_in
from lightning_action.weights.values import require_finite

FORMAT = "lightning_action_adapter"


@dataclass(frozen=True)
class ActionAdapter:
    """The content of an adapter file.

    Args:
        projection: State dict of the action projection.
        constants: Buffers that are no part of the state dict (frequencies and scales), which must agree.
        schema: Definition of an action, with the bounds that normalise it.
        base: Result of `fingerprint` for the generator that it was trained on.
        lora: LoRA layers on that generator, as `lora_state_dict` gives them; empty without.
        lora_alpha: Numerator of the scale of the LoRA layers.
        traits: Traits of the generator, as `CausalWanModel.traits` gives them, as far as the file says them.
    """

    projection: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    schema: ActionSchema
    base: str
    lora: Mapping[str, Tensor]
    lora_alpha: float | None
    traits: Mapping[str, str]

    def build_projection(self, dim: int) -> ActionModulationProjection:
        """Build the action projection itself, for a generator of width `dim`, in float32.

        Raises:
            ValueError: The projection was trained with a generator of another width.
        """
        hidden_dim, num_features = self.projection["action_embedding.0.weight"].shape
        bands, rows = self.constants["features.bands"], self.projection["action_projection.weight"].shape[0]
        bottleneck = self.projection.get("layer_bottleneck.weight")
        num_bands, action_dim = len(bands), self.schema.action_dim
        projection = ActionModulationProjection(
            action_dim,
            dim,
            hidden_dim,
            num_fourier_bands=num_bands,
            include_raw_actions=num_features == action_dim * (2 * num_bands + 1),
            num_layers=None if bottleneck is None else rows // (6 * dim),
            layer_rank=32 if bottleneck is None else bottleneck.shape[0],
        )
        load_strictly(projection, self.projection, "the adapter")
        for name, buffer in _constants(projection).items():
            buffer.copy_(self.constants[name])
        return projection


def write_adapter(
    path: str | Path,
    generator: CausalWanModel,
    projection: ActionModulationProjection,
    schema: ActionSchema,
    statistics: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write projection, schema, and LoRA layers if there are any, with the fingerprint of the weights below them.

    Args:
        path: File that is written.
        generator: Generator that the actions act on, for its LoRA layers and fingerprint.
        projection: Action projection.
        schema: Meaning of an action.
        statistics: Figures of each column of the actions that were trained on, for people to read.
    """
    parts = {"projection": projection.state_dict(), "constants": _constants(projection)}
    parts["lora"] = lora_state_dict(generator)
    alpha = lora_alpha(generator)
    metadata = {
        "format": FORMAT,
        "schema": json.dumps(schema.to_dict()),
        "base": fingerprint(base_state_dict(generator)),
        **generator.traits,
        **({"action_statistics": json.dumps(list(statistics))} if statistics else {}),
        **({} if alpha is None else {"lora_alpha": str(alpha)}),
    }
    tensors = {f"{part}.{name}": tensor for part, held in parts.items() for name, tensor in held.items()}
    write_safetensors(path, tensors, {**metadata, **identity(tensors)})


def read_adapter(path: str | Path) -> ActionAdapter:
    """Read an adapter file.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is not whole, or no adapter.
    """
    metadata = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is no action adapter: expected a file of `export --format adapter`")
    parts: dict[str, dict[str, Tensor]] = {"projection": {}, "constants": {}, "lora": {}}
    try:
        tensors = read_safetensors(path)
        require_weights(tensors, f"{path} holds no plain adapter")
        require_fingerprint(tensors, metadata, str(path))
        require_finite(tensors, str(path), "it was saved after training went wrong")
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        alpha = float(metadata["lora_alpha"]) if "lora_alpha" in metadata else None
        if alpha is not None and not isfinite(alpha):
            raise ValueError(f"lora_alpha is {alpha}")
        return ActionAdapter(
            **parts,
            schema=ActionSchema.from_dict(json.loads(metadata["schema"])),
            base=metadata["base"],
            lora_alpha=alpha,
            traits=traits_in(metadata),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the adapter {path} is damaged ({type(error).__name__}: {error}): export it again") from error


def load_adapter(
    path: str | Path,
    generator: CausalWanModel,
    projection: ActionModulationProjection,
    schema: ActionSchema,
    any_base: bool = False,
) -> None:
    """Load an adapter into a generator that holds its base and a projection built as that it was trained with.

    LoRA goes into injected LoRA layers where the generator has them, else it is merged into the weights. Everything is
    checked before anything is loaded.

    Args:
        path: File of the adapter.
        generator: Generator that holds the base.
        projection: Projection that is given the weights.
        schema: Definition of an action by the caller.
        any_base: Use the adapter also on a base that it was not trained on, such as a distilled one of the same family.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is not whole, no adapter, of another base, of other actions, or does not fit.
    """
    adapter, source = read_adapter(path), str(path)
    if schema != adapter.schema:
        raise ValueError(f"{path} was trained with the actions {adapter.schema}, the configuration says {schema}")
    check_fits(projection, adapter.projection, source)
    _check_constants(projection, adapter.constants, source)
    if not any_base:
        _check_base(generator, adapter.base, source)
        require_traits(adapter.traits, generator.traits, source)
    if has_lora(generator):
        if adapter.lora and lora_alpha(generator) != adapter.lora_alpha:
            raise ValueError(
                f"the LoRA of {path} was trained with alpha {adapter.lora_alpha}, the generator has LoRA layers with "
                f"alpha {lora_alpha(generator)}: inject them as they were trained"
            )
        load_lora_state_dict(generator, adapter.lora, source)
    elif adapter.lora:
        merge_into(generator, adapter.lora, adapter.lora_alpha, source)
    load_strictly(projection, adapter.projection, source)


def _constants(projection: nn.Module) -> dict[str, Tensor]:
    saved = projection.state_dict()
    return {name: buffer for name, buffer in projection.named_buffers() if name not in saved}


def _check_constants(projection: nn.Module, constants: Mapping[str, Tensor], source: str) -> None:
    own = _constants(projection)
    differing = [
        name
        for name in own.keys() | constants.keys()
        if name not in own or name not in constants or not torch.equal(own[name].cpu(), constants[name])
    ]
    if differing:
        raise ValueError(
            f"{source} was trained with another action projection: {', '.join(sorted(differing))} differ (frequency "
            "bands, slot scales, action_modulation_scale): use the configuration it was trained with"
        )


def _check_base(generator: nn.Module, expected: str, source: str) -> None:
    found = fingerprint(base_state_dict(generator))
    if found != expected:
        raise ValueError(
            f"{source} was trained on another base model (its fingerprint is {expected[:12]}..., that of the generator "
            f"is {found[:12]}...): load the base it was trained on, or say any_base to use it all the same"
        )
