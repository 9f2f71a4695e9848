"""Kernels of scaled dot-product attention that a GPU uses, chosen by its capability and by the version of cuDNN."""

from __future__ import annotations

from contextlib import ExitStack
from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

# Before that, lengths that are no multiple of 128 could give wrong numbers (pytorch issue 169849).
_CUDNN_WITHOUT_FAULT = 91501


def choose_kernels(capability: tuple[int, int], cudnn_version: int | None) -> list[SDPBackend]:
    """Order the kernels, the first one that can compute a call does.

    On compute capability 9 and 10, cuDNN's kernel is about 1.7 times as fast as FlashAttention 2 (pytorch issue 142132,
    measured on an H100). torch makes this choice by itself since 2.10, in earlier versions only if it is told to.

    Args:
        capability: Compute capability of the GPU.
        cudnn_version: Version of cuDNN as torch tells it, such as 91501; None without it.
    """
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    trusts_cudnn = cudnn_version is not None and cudnn_version >= _CUDNN_WITHOUT_FAULT
    return [SDPBackend.CUDNN_ATTENTION, *others] if trusts_cudnn and capability[0] in (9, 10) else others


@lru_cache
def hold_attention_kernels(device: torch.device) -> tuple[str, ...]:
    """Put the kernels into the order of `choose_kernels`, for the rest of the process, and give their names.

    Layers that are computed again in a backward pass choose the same kernel then. Other devices have one alone.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return (f"that of torch on {device.type}",)
    chosen = choose_kernels(torch.cuda.get_device_capability(device), torch.backends.cudnn.version())
    _HELD.enter_context(sdpa_kernel(chosen, set_priority=True))
    return tuple(backend.name.lower() for backend in chosen)


# torch has no other public way to set an order than a context, and undoes it when that is gone.
_HELD = ExitStack()
