"""How often attention is computed, whatever stands around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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
