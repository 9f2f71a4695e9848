"""Tensors into a module: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from lightning_action.weights.names import few
from lightning_action.weights.tensor_files import LazyTensor, LazyTensors
from lightning_action.weights.values import DTYPES, PLAIN_REMEDY, require_finite

# A tensor, or one that is not read yet.
Shaped = Tensor | LazyTensor
DAMAGED = "it is damaged, or was saved after training went wrong; fetch it again, or take an earlier one"


@torch.no_grad()
def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor or none, one at a time.

    The module keeps its dtypes. Where it is on the meta device its tensors come to be on the CPU.

    Raises:
        ValueError: A tensor does not fit, see `check_fits`, or a value is not finite.
    """
    check_fits(module, tensors.entries if isinstance(tensors, LazyTensors) else tensors, source)
    require_finite(tensors, source, DAMAGED)
    copy_all(module, tensors)


@torch.no_grad()
def copy_all(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors as `load_strictly` does, once everything was checked."""
    for name, own in module.state_dict(keep_vars=True).items():
        if own.is_meta:
            _materialise(module, name, own, tensors[name])
        else:
            copy_into(own, tensors[name])


@torch.no_grad()
def copy_into(own: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one of the same shape; of a sharded one, each rank takes its part."""
    if isinstance(own, DTensor):
        value = distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
    own.copy_(value)


def check_fits(module: nn.Module, tensors: Mapping[str, Shaped], source: str) -> None:
    """Refuse tensors that are not exactly the module's.

    Raises:
        ValueError: Names or shapes differ, or something is no plain weight; the message has the first of each kind.
    """
    require_same(
        module.state_dict(),
        tensors,
        f"{source} does not fit {type(module).__name__}",
        "use the configuration it was trained with",
    )


def require_same(own: Mapping[str, Shaped], tensors: Mapping[str, Shaped], complaint: str, remedy: str) -> None:
    """Refuse tensors that differ from `own` in names or shapes, or are no plain weights where `own` are.

    Raises:
        ValueError: A tensor is missing, too much, of another shape, or no plain weight; the message is `complaint (the
            first of each kind): remedy`.
    """
    weights = {name: t for name, t in tensors.items() if name in own and own[name].dtype.is_floating_point}
    require_weights(weights, complaint)
    problems = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} (expected {list(own[name].shape)})"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind}: {few(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{complaint} ({told}): {remedy}")


def require_weights(tensors: Mapping[str, Shaped], complaint: str) -> None:
    """Refuse what only looks like weights: casts to float8, integers, packed and quantized values.

    Raises:
        ValueError: A tensor has a dtype that is no weight's, or a class of its own.
    """
    odd = {name: odd for name, tensor in tensors.items() if (odd := _oddity(tensor))}
    if odd:
        found = few(sorted(set(odd.values())))
        raise ValueError(
            f"{complaint}: {few(list(odd))} ({len(odd)} of {len(tensors)} tensors) hold {found}, which is quantized or "
            f"no weights at all; expected {', '.join(map(_dtype_name, DTYPES))}: {PLAIN_REMEDY}"
        )


def _oddity(tensor: Shaped) -> str:
    """Say what makes this no plain weight; empty if it is one."""
    subclass = tensor.subclass if isinstance(tensor, LazyTensor) else ""
    return subclass or ("" if tensor.dtype in DTYPES else _dtype_name(tensor.dtype))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _materialise(module: nn.Module, name: str, own: Tensor, value: Tensor) -> None:
    """Copy a tensor, also where the dtype is the same: memory that maps a file would follow changes of that file."""
    owner, _, attribute = name.rpartition(".")
    copy = torch.empty_like(own, device="cpu").copy_(value)
    parameter = isinstance(own, nn.Parameter)
    setattr(module.get_submodule(owner), attribute, nn.Parameter(copy, own.requires_grad) if parameter else copy)
