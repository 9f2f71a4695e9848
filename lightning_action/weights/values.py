"""Values that weights may have: plain floating-point numbers, and finite ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PLAIN_REMEDY = "only plain floating-point weights can be loaded, take the bf16 or fp32 file of the same model"


def require_finite(tensors: Mapping[str, Tensor], source: str, remedy: str) -> None:
    """Refuse values that are not finite. Tensors are read one by one, and only floating-point ones looked at.

    Raises:
        ValueError: A value is not finite; the message is `source holds NaN or infinity in a tensor: remedy`.
    """
    for name in tensors:
        if not is_finite(tensors[name].detach()):
            raise ValueError(f"{source} holds NaN or infinity (in {name}): {remedy}")


def find_broken(module: nn.Module, optimizers: Iterable[Optimizer]) -> str | None:
    """Name a parameter, or a state of an optimizer, that is not finite on this rank; None if all are."""
    named = [(name, parameter.detach()) for name, parameter in module.named_parameters()]
    for optimizer in optimizers:
        states = [state for of_one in optimizer.state.values() for state in of_one.items()]
        named += [(f"the optimizer's {name}", value) for name, value in states if isinstance(value, Tensor)]
    return next((name for name, value in named if not is_finite(value)), None)


def is_finite(tensor: Tensor) -> bool:
    """Tell whether all values are finite, in one pass without a mask; of a sharded tensor, those of this rank."""
    values = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    if not values.numel() or values.is_meta or not (values.is_floating_point() or values.is_complex()):
        return True
    if values.dtype not in DTYPES:  # complex and float8 have no order
        return bool(torch.isfinite(values.to(torch.complex64 if values.is_complex() else torch.float32)).all())
    low, high = torch.aminmax(values)
    return bool(low.isfinite() & high.isfinite())
