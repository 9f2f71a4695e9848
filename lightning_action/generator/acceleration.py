"""Settings of faster passes: compiled layers or passes, and fewer bits for the generator's weights in generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from lightning_action.generator.attention import Kernel, attend_dense
from lightning_action.generator.attention_fp8 import attend_fp8, enable_fp8_attention
from lightning_action.generator.quantization import Quantization


@dataclass(frozen=True)
class Acceleration:
    """Settings that make passes faster; none of them is needed.

    Args:
        compile_mode: Mode of `torch.compile` for the layers; None leaves them as they are.
        quantization: Kind of 8-bit weights that the layers get in `predict`; None keeps them as they are.
        attention: `fp8` computes self-attention under the cache in float8, see `attention_fp8`; None in the dtype that
            the rest has.
        overlap_decoding: Decode a block while the next one is denoised, in `predict` on CUDA.
        capture_pass: Compile the whole pass behind a full window, in generation without FSDP; on CUDA, record it as a
            CUDA graph that is replayed for every step of every block.
    """

    compile_mode: Literal["default", "max-autotune-no-cudagraphs"] | None = None
    quantization: Quantization | None = None
    attention: Literal["fp8"] | None = None
    overlap_decoding: bool = False
    capture_pass: bool = False

    def __post_init__(self) -> None:
        if self.capture_pass and self.compile_mode is not None:
            raise ValueError("acceleration.capture_pass compiles the whole pass: leave compile_mode null beside it")

    def kernel(self, device: torch.device, head_dim: int) -> Kernel:
        """Choose the function that computes self-attention under the cache. Raises as `enable_fp8_attention`."""
        if self.attention is None:
            return attend_dense
        enable_fp8_attention(device, head_dim)
        return attend_fp8


def allow_many_codes() -> None:
    """Let torch compile a code for each size of videos and batches; else it gives up after eight."""
    # `torch.compile` takes no such limit of its own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 256)
