"""The parser of the command line: text stays text, YAML is read strictly, and a mistake is told with its option."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args, get_origin

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.usage_messages import explain
from lightning_action.configuration.strict_yaml import MODE

# An argument of a class in a list of classes: --trainer.callbacks.ActionScan.sample=2
_ITEM = re.compile(r"--(?P<owner>[\w.]+)\.(?P<item>[A-Z]\w*)\.(?:init_args\.)?(?P<name>[^=]+)=(?P<value>.*)", re.DOTALL)


class RunParser(LightningArgumentParser):
    """Raises `UsageError`, in place of an exit, and hands texts on as they were typed.

    Neither argparse nor jsonargparse has public names for the options of a parser, for how one option is split into
    name and value, or for the type that it takes; those with an underscore are theirs.
    """

    def __init__(self, *args: Any, parser_mode: str = MODE, **kwargs: Any) -> None:
        super().__init__(*args, parser_mode=MODE, **kwargs)
        self._linked: dict[str, str] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:  # the parser of a class inside, whose message is part of a longer one
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        told = explain(message, list(parser._option_string_actions))
        raise UsageError(f"{told} ({parser.prog.replace(' [options]', '')} --help lists what there is)") from ex

    def parse_args(self, args: Sequence[str] | None = None, *more: Any, **kwargs: Any) -> Namespace:  # type: ignore[override]
        joined = self._joined(list(sys.argv[1:] if args is None else args))
        known, matches = self._option_string_actions, map(_ITEM.match, joined)
        of_items = [match for match in matches if match and _lists(known.get(f"--{match['owner']}"))]
        texts = [match.string for match in of_items]
        namespace: Namespace = super().parse_args([arg for arg in joined if arg not in texts], *more, **kwargs)
        for match in of_items:
            self._set_in_list(namespace, **match.groupdict())
        return namespace

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        try:
            parsed: Namespace = super().parse_path(path, *args, **kwargs)
            for target, source in self._linked.items():
                if parsed.get(target) is not None:
                    raise UsageError(f"{target} follows from {source} and cannot be set itself: set {source}")
            return parsed
        except UnicodeDecodeError as error:
            raise UsageError(f"{os.fspath(path)} is not a configuration: it is no text in UTF-8 ({error})") from error
        except UsageError as error:
            raise UsageError(f"in {os.fspath(path)}: {error}") from error

    def instantiate(self, *args: Any, **kwargs: Any) -> Namespace:
        """Raise what a constructor refuses in its own words, not among those about types the value might have."""
        try:
            made: Namespace = super().instantiate(*args, **kwargs)
            return made
        except ValueError as error:
            told: BaseException = error
            while str(told).startswith("Does not validate against any") and told.__cause__ is not None:
                told = told.__cause__
            if told is error:
                raise
            raise ValueError(str(told)) from told

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Dump without validation: hyperparameters and saved values were validated when they were read."""
        return super().dump(*args, **{"skip_validation": True, **kwargs})

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **{"skip_validation": True, **kwargs})

    def link_arguments(self, source: str, target: str, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self._linked[target] = source
        return super().link_arguments(source, target, *args, **kwargs)

    def _parse_optional(self, arg_string: str) -> Any:
        """Keep the value of an argument of a class as it is: the parser of that class knows its type, and this not."""
        found = super()._parse_optional(arg_string)
        option = found[0] if isinstance(found, list) else found
        if not option or option[-1] is None or not self._is_of_a_class(str(option[1])):
            return found
        option = (*option[:-1], _Text(option[-1]))
        return [option] if isinstance(found, list) else option

    def _check_value_key(self, action: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._check_value_key(action, str(value) if isinstance(value, _Text) else value, *args, **kwargs)

    def _set_in_list(self, namespace: Namespace, owner: str, item: str, name: str, value: str) -> None:
        """Set an argument of the class of that name in a list of classes."""
        held = namespace.get(owner)
        items = held if isinstance(held, list) else []
        names = [each.class_path.rpartition(".")[2] for each in items]
        if names.count(item) != 1:
            there = ", ".join(names) or "nothing"
            self.error(
                f"--{owner}.{item}.{name} needs one {item} in the list, there are {names.count(item)} in {there}"
            )
        chosen = items[names.index(item)]
        chosen["init_args"] = chosen.get("init_args") or Namespace()
        chosen["init_args"][name] = value
        try:
            action = self._option_string_actions[f"--{owner}"]
            namespace[owner] = self._check_value_key(action, items, owner, Namespace())
        except (TypeError, ValueError, KeyError) as error:
            self.error(str(error), error)

    def _joined(self, args: list[str]) -> list[str]:
        """`--part.name value` as `--part.name=value`, of arguments of classes."""
        joined: list[str] = []
        for arg in args:
            takes = joined and "=" not in joined[-1] and self._is_of_a_class(joined[-1])
            if takes and (not arg.startswith("-") or " " in arg or arg[1:2].isdecimal()):
                joined[-1] += f"={arg}"
            else:
                joined.append(arg)
        return joined

    def _is_of_a_class(self, option: str) -> bool:
        """Tell whether an option sets an argument of a class that another option names."""
        known = self._option_string_actions
        if not option.startswith("--") or option in known or option.endswith(".class_path"):
            return False
        parts = option.split(".")
        owners = (".".join(parts[:length]) for length in range(len(parts) - 1, 0, -1))
        owner = next((known[name] for name in owners if name in known), None)
        typehint = getattr(owner, "_typehint", None)
        return typehint is not None and not _maps(typehint) and parts[-1] != "help"


class VerbParser(argparse.ArgumentParser):
    """The parser of a verb that is no method of a Trainer; raises `UsageError`, in place of an exit.

    Args:
        verb: Name of the verb.
        kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, verb: str, **kwargs: Any) -> None:
        super().__init__(prog=f"{program_name()} {verb}", allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        told = explain(message, list(self._option_string_actions))
        raise UsageError(f"{told} ({self.prog} --help lists what there is)")


def program_name() -> str:
    """Return how the command line was started, as usage shows it."""
    path = Path(sys.argv[0])
    return "python -m lightning_action" if path.parts[-2:] == ("lightning_action", "__main__.py") else path.name


class _Text(str):
    """Text of a class of its own, for jsonargparse reads exactly `str` as YAML."""


def _maps(typehint: Any) -> bool:
    return get_origin(typehint) in (dict, Mapping) or any(map(_maps, get_args(typehint)))


def _lists(action: Any) -> bool:
    typehint = getattr(action, "_typehint", None)
    return any(get_origin(each) is list for each in (typehint, *get_args(typehint)))
