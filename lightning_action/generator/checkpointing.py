"""Activation checkpointing: layers are computed again in the backward pass, attention only if it was not kept."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from lightning_action.generator.layers import Context

Checkpointing = bool | Literal["keep_attention"]


def checkpointed(
    layer: nn.Module, tokens: Tensor, modulation: Tensor, rotation: Tensor, context: Context, keeps_attention: bool
) -> Tensor:
    """Call a layer, and store for its backward pass what goes in, and with `keeps_attention` what attention gives.

    What attention gives costs `[B, N, D]` of memory a layer, and saves a quarter of the attention of a training step.
    """
    kept = partial(create_selective_checkpoint_contexts, list(_ATTENTION)) if keeps_attention else noop_context_fn
    # Nothing in a layer is random, so there is no state of random generators to bring back.
    return checkpoint(
        layer,
        tokens,
        modulation,
        rotation,
        context,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=kept,
    )


_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
