"""Tensors into a module: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_action.weights.tensor_files import LazyTensors


class Shaped(Protocol):
    """Anything with a shape: a tensor, or one that is not read yet."""

    @property
    def shape(self) -> torch.Size: ...


@torch.no_grad()
def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor or none, one at a time.

    The module keeps its dtypes. Where it is on the meta device its tensors come to be on the CPU.

    Raises:
        ValueError: as `check_fits`.
    """
    check_fits(module, tensors.entries if isinstance(tensors, LazyTensors) else tensors, source)
    for name, own in module.state_dict(keep_vars=True).items():
        if own.is_meta:
            _materialise(module, name, own, tensors[name])
        else:
            own.copy_(tensors[name])


def check_fits(module: nn.Module, tensors: Mapping[str, Shaped], source: str) -> None:
    """Refuse tensors that are not exactly the module's.

    Raises:
        ValueError: names or shapes differ; lists the first of each kind.
    """
    require_same(
        module.state_dict(),
        tensors,
        f"{source} does not fit {type(module).__name__}",
        "use the configuration it was trained with",
    )


def require_same(own: Mapping[str, Shaped], tensors: Mapping[str, Shaped], complaint: str, remedy: str) -> None:
    """Refuse tensors that differ from `own` in names or shapes.

    Raises:
        ValueError: `complaint (the first of each kind): remedy`.
    """
    problems = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} {list(tensors[name].shape)} (expected {list(own[name].shape)})"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {kind}: {few(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"{complaint} ({told}): {remedy}")


def few(names: Sequence[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def _materialise(module: nn.Module, name: str, own: Tensor, value: Tensor) -> None:
    """A copy, also where the dtype is the same: memory that maps a file would follow changes of that file."""
    owner, _, attribute = name.rpartition(".")
    copy = torch.empty_like(own, device="cpu").copy_(value)
    parameter = isinstance(own, nn.Parameter)
    setattr(module.get_submodule(owner), attribute, nn.Parameter(copy, own.requires_grad) if parameter else copy)
