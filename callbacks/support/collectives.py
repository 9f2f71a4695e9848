"""Sums over tensors of which every rank may hold a shard (FSDP2) or a copy (DDP).

Every rank adds up what it holds, divided by the number of ranks that hold the same; one all-reduce then gives what a
single process would have computed. Whether a rank takes part must never depend on its rank or on what it holds.
"""

from __future__ import annotations

from math import prod
from typing import Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes, 1 without distributed training."""
    return dist.get_world_size() if _is_distributed() else 1


def local(tensor: Tensor) -> Tensor:
    """Part of a tensor on this rank: its shard, which may be empty, of a DTensor, and all of any other.

    Complex numbers become their real and imaginary parts, and sparse tensors dense ones.
    """
    tensor = tensor.detach()
    tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def num_copies(tensor: Tensor) -> int:
    """Number of ranks that hold the same values of a tensor as this one."""
    if not isinstance(tensor, DTensor):
        return world_size()
    sizes = zip(tensor.device_mesh.shape, tensor.placements, strict=True)
    return world_size() // prod(size for size, placement in sizes if placement.is_shard())


def widened(values: Tensor) -> Tensor:
    """Convert a tensor to float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def norm(values: Tensor, order: Literal[1, 2] = 2) -> Tensor:
    """Norm of all values as float32, computed in at least that."""
    values = widened(values)
    # Sums are taken, because on CPU torch's own norm of a million values is good for no more than four digits.
    return values.abs().sum().float() if order == 1 else values.square().sum().sqrt().float()


def sum_of_squares(tensor: Tensor) -> Tensor:
    """This rank's part of the sum over all values of a tensor, of which `sum_over_ranks` makes the whole."""
    return norm(local(tensor)).square() / num_copies(tensor)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, in place."""
    if _is_distributed():
        dist.all_reduce(tensor)
    return tensor


def largest_over_ranks(tensor: Tensor) -> Tensor:
    """Take the largest value of any rank, element by element and in place."""
    if _is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def gather(value: T) -> list[T]:
    """The values of all ranks, in their order: any that can be pickled, at a moment when waiting does not matter."""
    values = [value] * world_size()
    if _is_distributed():
        dist.all_gather_object(values, value)
    return values


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
