"""Which kernels of scaled dot-product attention a GPU uses: a choice by its capability and by the version of cuDNN."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def attention_kernels(device: torch.device) -> Iterator[list[str]]:
    """Hold the order of `choose_kernels` for this process, and give the kernels' names; elsewhere torch has one kernel.

    Forward and backward pass belong inside: layers that are computed again for the latter must choose the same kernel.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        yield [f"that of torch on {device.type}"]
        return
    chosen = choose_kernels(torch.cuda.get_device_capability(device), torch.backends.cudnn.version())
    with sdpa_kernel(chosen, set_priority=True):
        yield [backend.name.lower() for backend in chosen]
