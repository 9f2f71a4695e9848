"""Optimizers as other people write them."""

from typing import Any

from torch.optim import Optimizer


class WithoutHooks(Optimizer):
    """Wraps another, and leaves out what torch does in `__init__`."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner, self.param_groups, self.state, self.defaults = (
            inner,
            inner.param_groups,
            inner.state,
            inner.defaults,
        )

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)
