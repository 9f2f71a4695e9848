"""Parts of a LightningModule, chosen by their dotted names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn

_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")


def is_named(value: object, class_name: str) -> bool:
    """Tell whether an object is of a class of that name: `lightning` and `pytorch_lightning` have two of each."""
    return any(parent.__name__ == class_name for parent in type(value).__mro__)


def is_in(name: str, parts: Iterable[str]) -> bool:
    """Tell whether a module or parameter is one of the parts, or lies in one.

    Args:
        name: Dotted name, for example `generator.blocks.0.ffn.weight`.
        parts: Dotted names, in which `*` stands for anything, dots included: `generator.*.lora_*`.
    """
    return any(fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*") for part in parts)


def named_parameters(module: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Parameter]]:
    """Name parameters as torch does, but as they are called without wrappers around parts of the module."""
    for name, parameter in module.named_parameters(remove_duplicate=remove_duplicate):
        yield without_wrappers(name), parameter


def named_modules(module: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Name modules as torch does, but without wrappers, which share the name of what they wrap."""
    for name, part in module.named_modules(remove_duplicate=remove_duplicate):
        yield without_wrappers(name), part


def names_of_parameters(module: nn.Module) -> dict[nn.Parameter, set[str]]:
    """Find all names of each parameter, of which one that modules share has several, with and without wrappers."""
    names: dict[nn.Parameter, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, set()).update((name, without_wrappers(name)))
    return names


def check_parts_exist(pl_module: LightningModule, parts: Iterable[str]) -> None:
    """Refuse names of parts that the module does not have.

    Raises:
        MisconfigurationException: The module has no such part; the message lists the names that there are.
    """
    names = {name for name, _ in named_modules(pl_module, remove_duplicate=False) if name}
    names |= {name for name, _ in named_parameters(pl_module, remove_duplicate=False)}
    for part in parts:
        if not any(fnmatchcase(name, part) for name in names):
            has = sorted(name for name in names if name.count(".") <= part.count("."))
            raise MisconfigurationException(
                f"{type(pl_module).__name__} has no part {part!r} when the fit starts. It has: {', '.join(has)}"
            )


def without_wrappers(name: str) -> str:
    """The name that a parameter or module has without wrappers around parts of the module."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
