"""Parameters spread over devices with FSDP, applied from outside: the networks know nothing of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from lightning_action.generator.model import CausalWanModel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Methods that reach parameters without going through `forward`.
_GENERATOR_METHODS = ("block_causal", "teacher_forcing", "text_cache", "denoise", "denoise_after", "write")
_LAYER_METHODS = ("prompt", "write")


@dataclass(frozen=True)
class Sharding:
    """Settings of how parameters are sharded, under `FSDP2Strategy`.

    Master weights and optimizer states stay in the dtype they were built in, float32.

    Args:
        param_dtype: Dtype that parameters are gathered, and computed, in.
        reduce_dtype: Dtype that gradients are summed over the ranks in.
        reshard_after_forward: Give a layer's gathered parameters back after its forward pass. False keeps them: one
            all-gather a rollout instead of one a pass, at the price of the whole generator on each device.
    """

    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    reshard_after_forward: bool = True

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of torch that `param_dtype` names."""
        return _DTYPES[self.param_dtype]

    @property
    def policy(self) -> MixedPrecisionPolicy:
        """Policy that leaves inputs as they are: timesteps and rotations would not survive bfloat16."""
        return MixedPrecisionPolicy(
            param_dtype=self.compute_dtype,
            reduce_dtype=_DTYPES[self.reduce_dtype],
            cast_forward_inputs=False,
        )


def shard_generator(generator: CausalWanModel, mesh: DeviceMesh, sharding: Sharding) -> None:
    """Shard layer by layer, then what is left; a generator on the meta device stays there.

    Args:
        generator: Generator whose parameters become DTensors, in place.
        mesh: One-dimensional mesh of the data-parallel ranks.
        sharding: Dtypes, and when to give gathered parameters back.
    """
    shard(generator, generator.blocks, mesh, sharding)
    for name in _GENERATOR_METHODS:
        register_fsdp_forward_method(generator, name)
    for layer in generator.blocks:
        for name in _LAYER_METHODS:
            register_fsdp_forward_method(layer, name)


def shard(module: nn.Module, layers: Iterable[nn.Module], mesh: DeviceMesh, sharding: Sharding) -> None:
    """Shard each of `layers` on its own, then what is left of `module`."""
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, mp_policy=sharding.policy, reshard_after_forward=sharding.reshard_after_forward)
        if isinstance(part, FSDPModule) and (mesh.device_type == "cpu" or mesh.size() == 1):
            # With torch 2.8 gloo sums gradients where FSDP asks for their mean, and NCCL alone may err: FSDP divides.
            part.set_force_sum_reduction_for_comms(True)


def keep_gathered(module: nn.Module) -> None:
    """Gather a small module's parameters on all ranks now, for ranks that will not use it equally often."""
    if isinstance(module, FSDPModule):
        module.set_reshard_after_forward(False)
        module.unshard()


def gathered_state_dict(module: nn.Module) -> dict[str, Tensor]:
    """Gather the whole tensors of a sharded module, on the CPU of rank 0 at least; called by all ranks."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole: dict[str, Any] = get_model_state_dict(module, options=options)
    return whole


def local_part(tensor: Tensor) -> Tensor:
    """Part of a tensor on this rank, without gradient: its shard if it is sharded, else all of it."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_sharded(generator: CausalWanModel) -> bool:
    """Tell whether the layers are sharded."""
    return all(isinstance(layer, FSDPModule) for layer in generator.blocks)
