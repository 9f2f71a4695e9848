"""The words of usage errors: which option, what was expected, what came, and what was perhaps meant."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# Each is a function of a module of its own, `check.run_check`, which may answer whether all is well.
WITHOUT_TRAINER = (
    *("selfcheck", "record", "inspect", "check", "encode", "inverse-dynamics", "export", "evaluate", "compare"),
    *("play", "replay"),
)
VERBS = ("fit", "validate", "test", "predict", *WITHOUT_TRAINER)

# What jsonargparse tells of the types that a value might have had besides, and about itself.
_NOISE = re.compile(
    r"^((- )?Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|(- )?Expected a <class 'NoneType'>|(- )?Expected a path but .*|(- )?Not a valid subclass of .*"
    r"|Subclass types expect one of:|(- )?a (class path \(str\)|dict with(out)? .*)|)$"
)
_KEY = re.compile(r'^(?:- )?Parser key "([^"]+)"(?: element \d+)?:\s*(.*)$')
_CLASS = re.compile(r"(?:Problem with given class_path |class_path=)'([\w.]+)'")
_LINK = re.compile(r"^argument (?:\w+\()?([\w.]+)\)? --> ([\w.]+): .*")
_UNKNOWN = re.compile(
    r"(?:unrecognized arguments: (?P<option>--?[^\s=]+).*|(?:Group '(?P<group>[^']+)'|Subcommand '[^']+') does not "
    r"accept option '(?P<inside>[^']+)'|Option '(?P<name>[^']+)' is not accepted)"
)
# Arguments of a class that another configuration is to name; of data, the parser then takes the class of all.
_ARGUMENTS_ALONE = re.compile(r"Dict must include a class_path|lightning\.LightningDataModule: there is no argument")
_MISSING_FILE = re.compile(r"File does not exist: '(.+)'")


def explain(message: str, options: Iterable[str] = ()) -> str:
    """Put what jsonargparse says into one sentence about one option.

    Args:
        message: Message of the parser.
        options: Options that the parser knows, to find the one that was meant.
    """
    options = [option for option in options if ".help" not in option]
    if link := _LINK.match(message):
        return f"{link[2]} follows from {link[1]} and cannot be set itself: set --{link[1]}"
    keys, told, given = _take_apart(message)
    text = "; ".join(dict.fromkeys(told)) or message
    if missing := _MISSING_FILE.search(text):
        return without_configuration(missing[1])
    suggestion = _suggestion(text, message, options)
    said = _in_plain_words(text, given)
    where = ".".join(key for key in keys if key not in VERBS)
    return f"{where}: {said}{suggestion}" if where else f"{said}{suggestion}"


def without_configuration(path: str) -> str:
    """Say that there is no configuration at a path, and where one of that name is."""
    folder = shipped_configurations()
    shipped = folder / Path(path).name
    if shipped.is_file():
        return f"no configuration at {path!r}: the shipped one is {str(shipped)!r}"
    beside = [str(file) for place in (Path(path).parent, folder) for file in place.glob("*.yaml")]
    near = nearest(Path(path).name, [Path(file).name for file in beside])
    meant = next((file for file in beside if Path(file).name == near), None)
    return f"no configuration at {path!r}" + (f": did you mean {meant!r}?" if meant else "")


def shipped_configurations() -> Path:
    """Return the folder of the configurations that come with the package."""
    found = find_spec("lightning_action.configs")
    places = [] if found is None else list(found.submodule_search_locations or [])
    return Path(places[0]) if places else Path("configs")


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that a word was most likely meant to be."""
    return next(iter(get_close_matches(word, list(candidates), 1, 0.7)), None)


def _take_apart(message: str) -> tuple[list[str], list[str], str | None]:
    """Keys from outside to inside, what is wrong, and the value."""
    keys: list[str] = []
    told: list[str] = []
    given = None
    for line in (line.strip() for line in message.splitlines()):
        if match := _KEY.match(line):
            keys.append(match[1])
            line = match[2]
        elif line.startswith("Given value: "):
            given = re.sub(r"^NestedArg\(key='.*?', val=(.*)\)$", r"\1", line.removeprefix("Given value: "))
            continue
        if not _NOISE.match(line.strip()):
            told.append(line.removeprefix("- "))
    return keys, told, given


def _in_plain_words(text: str, given: str | None) -> str:
    is_text = "Expected a <class 'str'>" in text
    text = re.sub(r"Problem with given class_path '([\w.]+)':(; )?", r"\1: ", text)
    text = re.sub(r"Type .*? expects a function or a callable class: ", "", text)
    text = re.sub(r"Got value: Namespace\(.*", "", text)
    text = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("Expected a ", "expected ")
    text = re.sub(r"[.:]?;? ?Got value: (.*)", lambda match: f", got {_quoted(match[1])}", text)
    text = re.sub(r"unrecognized arguments: (-[^\s=]+).*", r"there is no option \1", text)
    text = re.sub(r"unrecognized arguments: (.*\.ya?ml)$", r"expected --config before \1", text)
    text = re.sub(r"unrecognized arguments: (.*)", r"expected an option, got \1", text)
    text = re.sub(r".*does not accept option '([^']+)'|Option '([^']+)' is not accepted", _no_argument, text)
    text = re.sub(r"^the following arguments are required: (.*)", r"missing: \1", text)
    if text.startswith("missing: ") and "model." in text:
        text = f"{text}; name a configuration with --config, and before it those that it stacks on"
    text = re.sub(r'^expected "subcommand" to be one of .*', f"name a verb: {', '.join(VERBS)}", text)
    text = re.sub(r"^argument subcommand: invalid choice: ('.*?') .*", r"there is no verb \1", text)
    text = re.sub(r"Problems parsing config: ", "", text)
    if _ARGUMENTS_ALONE.search(text):
        text = f"{text.strip().rstrip('.')}; if this configuration stacks on another, name that one before it"
    text = re.sub(r"^Unexpected config\b.*", "expected a mapping of settings, as in `trainer: {max_steps: 10}`", text)
    if given is not None and ", got " not in text and "expected " in text:
        text = f"{text}, got {_quoted(given)}"
    hint = " (YAML reads that as something other than text: put it into quotes)" if is_text else ""
    return f"{text.strip().rstrip('.:;')}{hint}"


def _no_argument(match: re.Match[str]) -> str:
    return f"there is no argument {(match[1] or match[2])!r}"


def _quoted(value: str) -> str:
    return value if value.startswith(("'", '"', "{", "[", "(")) else repr(value)


def _suggestion(text: str, message: str, options: list[str]) -> str:
    meant = None
    owners = [found for found in map(_imported, _CLASS.findall(message)) if found is not None]
    inside = [name for owner in owners for name in _arguments(owner)]
    if unknown := _UNKNOWN.search(text):
        name = unknown["option"] or unknown["inside"] or unknown["name"]
        if unknown["group"]:
            prefix = f"--{unknown['group']}."
            meant = nearest(name, [o.removeprefix(prefix) for o in options if o.startswith(prefix)])
        else:
            meant = nearest(name.lstrip("-"), inside) if inside else _nearest_option(name, options)
    elif choice := re.search(r"Literal\[(.*?)\].*Got value: (\S+)", text):
        meant = nearest(choice[2], re.findall(r"'([^']+)'", choice[1]))
    elif choice := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", text):
        meant = nearest(choice[1], [*re.findall(r"[\w-]+", choice[2]), *(VERBS if "subcommand" in text else ())])
    elif attribute := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", text):
        meant = nearest(attribute[2], dir(sys.modules.get(attribute[1])))
    return f": did you mean {meant!r}?" if meant else ""


def _nearest_option(name: str, options: list[str]) -> str | None:
    """Find for an option inside a class the one whose beginning is nearest."""
    parts = (name if name.startswith("-") else f"--{name}").split(".")
    for length in range(len(parts), 0, -1):
        if meant := nearest(".".join(parts[:length]), [o for o in options if o.count(".") == length - 1]):
            return ".".join([meant, *parts[length:]])
    return None


def _imported(class_path: str) -> Any:
    module, _, name = class_path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _arguments(owner: Any) -> list[str]:
    try:
        return list(inspect.signature(owner).parameters)
    except (TypeError, ValueError):
        return []
