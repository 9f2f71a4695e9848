"""Tell whether a configuration chooses the class of its model, or leaves it at the one that there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_action.configuration.strict_yaml import read_yaml

_KEY = "class_path"


def chooses_class(section: Any) -> bool:
    """Tell whether the section `model` of a configuration names a class, beside the arguments of it."""
    return isinstance(section, dict) and _KEY in section


def choose_class(arguments: Sequence[str]) -> bool:
    """Tell whether arguments of the command line, or a configuration that they name, choose the model's class.

    What is no configuration is left to the parser to say.
    """
    if any(argument.startswith((f"--model.{_KEY}", "--model=")) or argument == "--model" for argument in arguments):
        return True
    return any(map(_names_class, _configurations(arguments)))


def _configurations(arguments: Sequence[str]) -> Iterator[Path]:
    for index, argument in enumerate(arguments):
        name, separator, value = argument.partition("=")
        if name in ("--config", "-c"):
            following = arguments[index + 1 : index + 2]
            yield from map(Path, [value] if separator else following)


def _names_class(path: Path) -> bool:
    try:
        settings = read_yaml(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return False
    return isinstance(settings, dict) and chooses_class(settings.get("model"))
