"""Attention in 8 bits: queries, keys and values in float8, by the kernel of FlashAttention 3 on Hopper.

It is not exact by nature; the verb `compare` says what it changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_action.generator.quantization import FLOAT8, to_float8

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
    centred = key.float() - key.float().mean(dim=1, keepdim=True)
    rounded = [to_float8(x, (1, 3)) for x in (query, centred, value)]
    operands, scales = [x.transpose(1, 2) for x, _ in rounded], [scale[:, 0, :, 0] for _, scale in rounded]
    if query.is_cuda:
        # The public function takes no scales.
        out = torch.ops.aten._scaled_dot_product_flash_attention.quantized(*operands, *scales, 0.0, False, False)[0]
    else:
        out = _reference(operands, scales)
    return out.transpose(1, 2).to(query.dtype)


@lru_cache(maxsize=1)
def enable_fp8_attention(device: torch.device, head_dim: int) -> None:
    """Switch on the kernel that `attend_fp8` calls on CUDA, for the rest of the process.

    FlashAttention 3 then also takes the place of torch's FlashAttention. On a CPU there is nothing to do.

    Raises:
        RuntimeError: The GPU is not of compute capability 9.0 (Hopper), or this torch has no such kernel.
        ValueError: The kernel takes no heads of this size.
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
    if head_dim % 16 or head_dim > 256:
        raise ValueError(
            f"attention in float8 takes heads of 16, 32, ... 256 channels, this generator has {head_dim}: set "
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


def _reference(operands: Sequence[Tensor], scales: Sequence[Tensor]) -> Tensor:
    """Compute what the kernel computes of query, key and value, `[B, heads, N, head_dim]`, in float32."""
    query, key, value = (x.float() for x in operands)
    query_scale, key_scale, value_scale = (scale[..., None, None] for scale in scales)
    scores = (query @ key.transpose(-1, -2)) * (query_scale * key_scale / query.shape[-1] ** 0.5)
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    rounded = (weights * _WEIGHT_SCALE).to(FLOAT8).float()
    return (rounded @ value) / (_WEIGHT_SCALE * weights.sum(dim=-1, keepdim=True)) * value_scale
