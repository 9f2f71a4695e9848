"""Parts of a LightningModule, chosen by their dotted names."""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule


def is_in(name: str, parts: Iterable[str]) -> bool:
    """Whether a module or parameter is one of the parts, or lies in one.

    Args:
        name: dotted, for example `generator.blocks.0.ffn.weight`.
        parts: dotted names, in which `*` stands for anything, dots included: `generator.*.lora_*`.
    """
    return any(fnmatchcase(name, part) or fnmatchcase(name, f"{part}.*") for part in parts)


def check_parts_exist(pl_module: LightningModule, parts: Iterable[str]) -> None:
    """Refuses names that nothing in the module has.

    Raises:
        MisconfigurationException: lists the names that there are.
    """
    names = {name for name, _ in pl_module.named_modules(remove_duplicate=False) if name}
    names |= {name for name, _ in pl_module.named_parameters(remove_duplicate=False)}
    for part in parts:
        if not any(fnmatchcase(name, part) for name in names):
            has = sorted(name for name in names if name.count(".") <= part.count("."))
            raise MisconfigurationException(
                f"{type(pl_module).__name__} has no part {part!r} when the fit starts. It has: {', '.join(has)}"
            )
