"""How often attention is computed, and in which dtypes, whatever stands around it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_action.generator.context import MaskedContext
from lightning_action.generator.model import CausalWanModel


class Attentions(TorchDispatchMode):
    """Counts forward calls of attention, and the bytes that they give."""

    count = num_bytes = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let torch compile beside it."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        if "_scaled_dot_product" in str(func) and "backward" not in str(func):
            self.count += 1
            self.num_bytes += sum(x.numel() * x.element_size() for x in tree_leaves(given) if isinstance(x, Tensor))
        return given


def watch_dtypes(generator: CausalWanModel, monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """Note the dtypes of queries, keys and values, and of the tokens before and after each layer, from now on."""
    seen: list[torch.dtype] = []
    attend = MaskedContext.attend

    def watched(context: MaskedContext, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        seen.extend(x.dtype for x in (query, key, value))
        return attend(context, query, key, value)

    monkeypatch.setattr(MaskedContext, "attend", watched)
    for layer in generator.blocks:
        layer.register_forward_hook(lambda layer, inputs, output: seen.extend(t.dtype for t in (inputs[0], output)))
    return seen
