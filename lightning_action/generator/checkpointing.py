"""Activation checkpointing: layers are computed again in the backward pass, attention only if it was not kept.

Computing again what was not kept is by Chen et al. (2016, arXiv:1604.06174).
"""

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

    What its two attentions give is `[B, N, D]` each; kept, they are computed once a step and not twice.
    """
    kept = partial(create_selective_checkpoint_contexts, list(_ATTENTION)) if keeps_attention else noop_context_fn
    # LoRA may have dropout, which must be the same again; to bring back the state of random generators costs time.
    is_random = layer.training and any(isinstance(part, nn.Dropout) and part.p > 0 for part in layer.modules())
    return checkpoint(
        layer,
        tokens,
        modulation,
        rotation,
        context,
        use_reentrant=False,
        preserve_rng_state=is_random,
        context_fn=kept,
    )


# Which of them the public function calls is chosen below it; what is kept is named by what was called.
_ATTENTION = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
)
