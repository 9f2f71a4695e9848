"""Attention in 8 bits: queries, keys and values in float8, by the kernel of FlashAttention 3 on Hopper.

It is not exact by nature; the verb `compare` says what it changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

_FLOAT8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(_FLOAT8).max
# FlashAttention 3 stores exp(score - largest score), at most 1, times this in float8.
_WEIGHT_SCALE = 256.0


def attend_fp8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute scaled dot-product attention in float8, all `[B, N, heads, head_dim]`.

    Each head of each video has a scale of its own (Shah et al. 2024, arXiv:2407.08608, section 3.3, has one for each
    tile). The mean of the keys is taken from all of them before: it shifts all scores of a query alike, which softmax
    does not see, and leaves the 8 bits to what differs (Zhang et al. 2024, arXiv:2410.02367, section 4.2).

    On CUDA this is the kernel that `enable_fp8_attention` has switched on. Elsewhere the same numbers are rounded in
    the same places, slowly, so that one can see what the 8 bits do to a model.
    """
    (query8, query_scale), (value8, value_scale) = quantize_heads(query), quantize_heads(value)
    key8, key_scale = quantize_heads(key.float() - key.float().mean(dim=1, keepdim=True))
    on_cuda = torch.ops.aten._scaled_dot_product_flash_attention.quantized
    kernel: Callable[..., tuple[Tensor, ...]] = on_cuda if query.is_cuda else _reference
    operands = [x.transpose(1, 2) for x in (query8, key8, value8)]
    return kernel(*operands, query_scale, key_scale, value_scale)[0].transpose(1, 2).to(query.dtype)


def quantize_heads(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round `[B, N, heads, head_dim]` to float8, and give the factors `[B, heads]`, float32, that bring it back."""
    largest = x.abs().amax(dim=(1, 3)).float()
    scale = torch.where(largest > 0, largest / _LARGEST, 1.0)
    return (x.float() / scale[:, None, :, None]).to(_FLOAT8), scale


@lru_cache(maxsize=1)
def enable_fp8_attention(device: torch.device) -> None:
    """Switch on the kernel that `attend_fp8` calls on CUDA; on a CPU there is nothing to do.

    Raises:
        RuntimeError: The GPU is not of compute capability 9.0 (Hopper), or this torch has no such kernel.
        ImportError: The package of FlashAttention 3 is not installed.
    """
    if device.type == "cpu":
        return
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else device.type
    if capability != (9, 0):
        raise RuntimeError(
            f"attention in float8 needs a GPU of compute capability 9.0 (H100, H200), this is {capability}: set "
            "acceleration.attention: null"
        )
    try:
        from torch.nn.attention import activate_flash_attention_impl
    except ImportError as error:
        raise RuntimeError(
            f"attention in float8 needs torch 2.11 or newer, this is {torch.__version__}: set acceleration.attention: "
            "null"
        ) from error
    try:
        activate_flash_attention_impl("FA3")
    except ImportError as error:
        raise ImportError(
            "attention in float8 needs FlashAttention 3, the package `flash_attn_interface`: build it from the folder "
            "`hopper` of github.com/Dao-AILab/flash-attention, or set acceleration.attention: null"
        ) from error


def _reference(
    query8: Tensor, key8: Tensor, value8: Tensor, query_scale: Tensor, key_scale: Tensor, value_scale: Tensor
) -> tuple[Tensor]:
    """What the kernel computes, `[B, heads, N, head_dim]`, float32."""
    factor = (query_scale * key_scale)[..., None, None] / query8.shape[-1] ** 0.5
    scores = (query8.float() @ key8.float().transpose(-1, -2)) * factor
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    weights8 = (weights * _WEIGHT_SCALE).to(_FLOAT8).float()
    total = weights.sum(dim=-1, keepdim=True)
    return ((weights8 @ value8.float()) / (_WEIGHT_SCALE * total) * value_scale[..., None, None],)
