"""Tensors into a module: all of them or none."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load every tensor or none. Raises as `check_fits`."""
    check_fits(module, tensors, source)
    module.load_state_dict(dict(tensors))


def check_fits(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are not exactly the module's.

    Raises:
        ValueError: names or shapes differ; lists the first of each kind.
    """
    own = module.state_dict()
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
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for kind, names in problems.items()
            if names
        )
        raise ValueError(
            f"{source} does not fit {type(module).__name__} ({told}): use the configuration it was trained with"
        )
