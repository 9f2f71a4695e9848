"""Values of parameters under FSDP1, which leaves each rank a piece of them that does not say where it belongs."""

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FullyShardedDataParallel

Parameters: TypeAlias = dict[str, nn.Parameter]
Tensors: TypeAlias = dict[str, Tensor]


def are_flat(model: nn.Module) -> bool:
    """Whether FSDP1 holds parameters of a module."""
    return any(isinstance(part, FullyShardedDataParallel) for part in model.modules())


@torch.no_grad()
def state_of(strategy: Strategy, parameters: Parameters, values: Tensors) -> Tensors:
    """What the `state_dict` of a checkpoint would hold if some parameters had other values; called by all ranks.

    Args:
        strategy: of the Trainer.
        parameters: all of them, as FSDP1 leaves them to this rank.
        values: this rank's pieces.

    Returns:
        Shards or whole tensors, as the strategy saves them; of a single file nothing on ranks that do not write.
    """
    own = _exchange(parameters, values)
    state = strategy.lightning_module_state_dict()
    _exchange(parameters, own)
    return {name: state[name] for name in values if name in state}


@torch.no_grad()
def values_of(model: nn.Module, parameters: Parameters, state: Tensors, is_whole: bool) -> Tensors:
    """This rank's pieces of whole tensors, or else of shards as `shards_of` gives them; called by all ranks."""
    own = {name: parameters[name].detach().clone() for name in state}
    set_model_state_dict(model, {**state}, options=StateDictOptions(full_state_dict=is_whole, strict=False))
    return _exchange(parameters, own)


def shards_of(model: nn.Module, names: Iterable[str]) -> Tensors:
    """Copies of some parameters as shards that distributed checkpoints can be read into; called by all ranks."""
    state: dict[str, Any] = get_model_state_dict(model)
    return {name: state[name] for name in names}


def _exchange(parameters: Parameters, values: Tensors) -> Tensors:
    """Put values into parameters, and give back what was there."""
    before = {name: parameters[name].detach().clone() for name in values}
    for name, value in values.items():
        parameters[name].copy_(value)
    return before
