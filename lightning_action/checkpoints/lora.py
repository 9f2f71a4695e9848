"""LoRA (Hu et al. 2021, arXiv:2106.09685) on the generator, through peft."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_action.weights.fit import DAMAGED, copy_all, copy_into, load_strictly, require_same
from lightning_action.weights.low_rank import add_changes, is_low_rank, low_rank_changes
from lightning_action.weights.tensor_files import LazyTensor, LazyTensors, as_lazy
from lightning_action.weights.values import require_finite

_ADAPTER = "default"


@dataclass(frozen=True)
class LoRASettings:
    """Low-rank layers beside linear layers of the generator; they start as the identity.

    Args:
        rank: Number of channels of each low-rank layer.
        alpha: Numerator of the scale `alpha / rank`; None is the rank, for a scale of 1.
        target_modules: Names, or ends of names, of the linear layers that get one. By default all of the transformer
            layers: attention to the video, to the prompt, and feed-forward.
        dropout: Dropout probability of what goes into a low-rank layer, in training.
    """

    rank: int = 32
    alpha: float | None = None
    target_modules: list[str] = field(default_factory=lambda: ["q", "k", "v", "o", "ffn.0", "ffn.2"])
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not self.target_modules or not 0 <= self.dropout < 1:
            raise ValueError(
                "expected rank >= 1, target_modules and dropout in [0, 1), got "
                f"{self.rank}, {self.target_modules} and {self.dropout}"
            )
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha of LoRA is {self.alpha}: expected a finite number above 0, or None for the rank")


def inject_lora(generator: nn.Module, settings: LoRASettings) -> None:
    """Put LoRA layers into a generator that has its weights already: a wrapped layer's become `base_layer.*`.

    What required grad still does: whether the backbone trains as well is the caller's to say.

    Raises:
        ImportError: The package peft is not installed.
        ValueError: A target is not there, or the generator has LoRA layers already.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs peft: pip install 'lightning_action[lora]'") from error
    if has_lora(generator):
        raise ValueError("the generator has LoRA layers already: inject them once, after its weights are loaded")
    linear = [name for name, module in generator.named_modules() if isinstance(module, nn.Linear)]
    absent = [t for t in settings.target_modules if not any(f".{name}".endswith(f".{t}") for name in linear)]
    if absent:
        raise ValueError(f"no linear layer is called {', '.join(absent)}: the generator has {', '.join(linear[-12:])}")
    trained = [parameter for parameter in generator.parameters() if parameter.requires_grad]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.rank if settings.alpha is None else settings.alpha,
        target_modules=settings.target_modules,
        lora_dropout=settings.dropout,
    )
    inject_adapter_in_model(config, generator, _ADAPTER)
    for parameter in trained:
        parameter.requires_grad_(True)


def has_lora(generator: nn.Module) -> bool:
    """Tell whether LoRA layers were injected."""
    return any(is_low_rank(name) for name, _ in generator.named_parameters())


def split_parameters(generator: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the generator's parameters by name: those of LoRA layers, and the backbone's."""
    parameters = dict(generator.named_parameters())
    lora = {name: parameter for name, parameter in parameters.items() if is_low_rank(name)}
    return lora, {name: parameter for name, parameter in parameters.items() if name not in lora}


def lora_state_dict(generator: nn.Module) -> dict[str, Tensor]:
    """Return the LoRA layers alone, under peft's names in files (`blocks.0.ffn.0.lora_A.weight`); empty without."""
    state, adapter = generator.state_dict(), f".{_ADAPTER}.weight"
    return {name.replace(adapter, ".weight"): tensor for name, tensor in state.items() if is_low_rank(name)}


@torch.no_grad()
def load_lora_state_dict(generator: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load what `lora_state_dict` gave into injected layers, every tensor or none.

    Raises:
        ValueError: Names or shapes differ, because other layers were injected or with another rank; or a tensor is
            not of finite floating-point numbers.
    """
    own = lora_state_dict(generator)
    require_same(
        own, tensors, f"{source} does not fit the LoRA layers of the generator", "inject those it was made with"
    )
    require_finite(tensors, source, DAMAGED)
    for name, tensor in own.items():
        copy_into(tensor, tensors[name])


@torch.no_grad()
def init_lora(generator: nn.Module, random: torch.Generator) -> None:
    """Draw the initial weights of peft from a generator of random numbers: the same on every device, sharded or not."""
    for name, parameter in split_parameters(generator)[0].items():
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(value, a=5**0.5, generator=random)
        copy_into(parameter, value)


@torch.no_grad()
def load_base(part: nn.Module, tensors: LazyTensors) -> None:
    """Load what fits `base_state_dict` into a part of a generator, below its LoRA layers where it has them."""
    if not has_lora(part):
        copy_all(part, tensors)
        return
    for name, tensor in base_state_dict(part).items():
        copy_into(tensor, tensors[name])


def merge_into(generator: nn.Module, lora: Mapping[str, Tensor], alpha: float | None, source: str) -> None:
    """Add what `lora_state_dict` gave to the weights of a generator without LoRA layers, all of it or nothing.

    Raises:
        ValueError: A layer is not there, or has another shape.
    """
    changes = low_rank_changes(as_lazy(lora).entries, alpha, source)
    load_strictly(generator, add_changes(as_lazy(generator.state_dict()), changes, source), source)


@torch.no_grad()
def merge_lora(generator: nn.Module) -> None:
    """Add LoRA to the weights that it stands beside, and take its layers out, in place; without LoRA, do nothing."""
    for name, layer in _lora_layers(generator).items():
        layer.merge()
        generator.set_submodule(name, layer.get_base_layer())


def base_state_dict(generator: nn.Module) -> dict[str, Tensor]:
    """Return the weights without LoRA, under the names that they have without LoRA."""
    state = generator.state_dict()
    return {name.replace(".base_layer.", "."): tensor for name, tensor in state.items() if not is_low_rank(name)}


def merged_state_dict(generator: nn.Module) -> LazyTensors:
    """Return the weights with LoRA added, as peft's `merge` adds it, when read; the generator stays as it is."""
    changes = {
        f"{name}.weight": LazyTensor(
            layer.get_base_layer().weight.shape,
            layer.get_base_layer().weight.dtype,
            partial(layer.get_delta_weight, _ADAPTER),
        )
        for name, layer in _lora_layers(generator).items()
    }
    return add_changes(as_lazy(base_state_dict(generator)), changes, "LoRA")


def lora_alpha(generator: nn.Module) -> float | None:
    """Return the numerator of the scale of injected LoRA, None without."""
    return next((float(layer.lora_alpha[_ADAPTER]) for layer in _lora_layers(generator).values()), None)


def _lora_layers(generator: nn.Module) -> dict[str, Any]:
    if not has_lora(generator):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in generator.named_modules() if isinstance(module, LoraLayer)}
