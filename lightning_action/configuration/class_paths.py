"""Modules that the class paths of a configuration may import; classes are all that they may name."""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, _common, _optionals, _util, set_parsing_settings

ALLOW_HELP = (
    "A configuration may name classes of lightning_action, torch and lightning; others only if you do, by typing them "
    "(`--data my_videos.MyVideos`), or their module with `--allow my_videos`."
)
_PACKAGE = "lightning_action"
_TRUSTED = ("torch", "lightning")
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_DENIED = re.compile(r"Importing '([^']+)' is not allowed")
# What a class path may be typed behind: `--data my_videos.MyVideos`.
_TAKE_CLASSES = {
    *("class_path", "help", "data", "world", "generator", "text_encoder", "vae", "action_projection", "action_module"),
    *("callbacks", "logger", "strategy", "plugins", "profiler"),
}


@contextmanager
def only_importing(allow: Sequence[str] = ()) -> Iterator[None]:
    """Refuse inside the block what a configuration names outside this package, `torch`, `lightning`, and `allow`.

    Anything else is not even imported; nor is a module that lies beside the parts of this package. Configurations are
    local files: none includes another from an address.

    Args:
        allow: Modules and packages, with all that is in them; one may be given alone.

    Raises:
        ValueError: An item of `allow` is no name of a module; or a class path is refused inside the block.
    """
    allow = [allow] if isinstance(allow, str) else allow
    for name in allow:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"expected the name of a module to allow, such as my_videos, got {name!r}")
    # Settings are of the whole process, where they can be changed, but put back only here.
    settings, read_mode = dict(_common.parsing_settings), _optionals._config_read_mode
    set_parsing_settings(
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*"],
        import_path_allowlist=[*_own_names(), *_TRUSTED, *allow],
        # Where a parameter takes anything, a class path is a value as others are.
        instantiate_subclass_spec_in_any=False,
    )
    try:
        yield
    except (Exception, SystemExit) as error:  # parsers wrap it, each in its own
        if (path := _refused_path(error)) is None:
            raise
        raise ValueError(_refusal(path)) from error
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(settings)
        _optionals._config_read_mode = read_mode


def import_named(path: str) -> Any:
    """Import what `module:name` names, a function or a class that is then called with any arguments.

    Inside `only_importing` it must lie in a module that is allowed by name: among what may be named as a class, torch's
    say, are functions that run code from files.

    Raises:
        ValueError: The text is not `module:name`, or the module has nothing of that name.
        ImportError: The module does not exist, or may not be imported.
    """
    module, _, name = path.partition(":")
    if not name.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"expected module:name, such as my_robot:make, got {path!r}")
    # jsonargparse keeps the list of what may be imported to itself: a second one beside it could come to say otherwise.
    is_guarded = _common.denying_import_path_entry("*") is not None
    if is_guarded and module.split(".")[0] in (_PACKAGE, *_TRUSTED):
        raise ValueError(f"the configuration names {path!r}: expected something in a module of yours, with --allow")
    try:
        return _util.import_object(f"{module}.{name}")
    except AttributeError as error:
        raise ValueError(f"{path!r}: {error}") from error


def require_importable(module: str) -> None:
    """Refuse a module that may not be imported where `only_importing` says so.

    Raises:
        ImportError: The module may not be imported; `only_importing` says so in its own words.
    """
    _common.check_import_path(module)


def require_classes(config: Any) -> None:
    """Refuse functions where a parsed configuration says `class_path`: their results would be anything.

    Raises:
        ValueError: A `class_path` names something that is no class.
    """
    for path in _class_paths(config):
        found = loaded(path)
        if found is not None and not inspect.isclass(found):
            raise ValueError(f"the class_path {path!r} is a {type(found).__name__}, expected a class")


def brought_up_to_date(value: Any) -> Any:
    """Give a saved configuration the class paths of exported names, wherever it says that they are defined.

    `sampling.stream_video`, by which `predict` handed videos over in parts, is gone and left out: it changed no video.
    """
    if isinstance(value, list):
        return [brought_up_to_date(item) for item in value]
    if not isinstance(value, dict):
        return value
    named = {key: brought_up_to_date(item) for key, item in value.items()}
    if isinstance(named.get("sampling"), dict):
        named["sampling"].pop("stream_video", None)
    path = named.get("class_path")
    if isinstance(path, str) and path.startswith(f"{_PACKAGE}."):
        name = path.rpartition(".")[2]
        named["class_path"] = f"{_PACKAGE}.{name}" if name in _exported() else path
    return named


def split_allowed(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split what is typed: the arguments without `--allow`, and the modules that they name by it or by a class path.

    Raises:
        ValueError: `--allow` names nothing.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--allow", action="append", default=[])
    try:
        known, rest = parser.parse_known_args(list(args))
    except argparse.ArgumentError as error:
        raise ValueError("--allow takes the name of a module, such as my_videos") from error
    return rest, [*known.allow, *map(_module_to_allow, _typed_paths(rest))]


def loaded(path: str) -> Any:
    """Return what a class path names; None if its module was not imported, which the parser does where it is built."""
    module, _, name = path.rpartition(".")
    if not module:
        return None
    return getattr(sys.modules[module] if module in sys.modules else loaded(module), name, None)


def _refusal(path: str) -> str:
    if path.split(".")[0] == _PACKAGE:
        return f"the configuration names {path!r}, which is no part of {_PACKAGE}: correct the name"
    module = _module_to_allow(path)
    return (
        f"the configuration names {path!r}, which is neither of {_PACKAGE}, torch or lightning nor allowed: if you "
        f"trust that code, name its module, with --allow {module} on the command line, or with allow=[{module!r}] in "
        "Python"
    )


def _module_to_allow(path: str) -> str:
    """Name the outermost package, which may define elsewhere what it is asked for; of this one, no more than needed."""
    outermost, _, _ = path.partition(".")
    return path.rpartition(".")[0] if outermost == _PACKAGE else outermost


def _own_names() -> list[str]:
    """List the parts of this package, and what it exports.

    Not the package as a whole: a checkout makes its own folder a part of it, to find the callbacks.
    """
    folder = Path(__file__).parent.parent
    parts = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return [f"{_PACKAGE}.{name}" for name in {*parts, *_exported(), "callbacks"} if not name.startswith("__")]


def _exported() -> list[str]:
    names: list[str] = import_module(_PACKAGE).__all__
    return names


def _typed_paths(args: Sequence[str]) -> Iterator[str]:
    for argument, following in zip_longest(args, args[1:], fillvalue=""):
        option, is_joined, value = argument.partition("=")
        if not option.startswith("--") or option.rstrip("+").rpartition(".")[2].lstrip("-") not in _TAKE_CLASSES:
            continue
        value = value if is_joined else following
        # A file there is a configuration, which names nothing by itself.
        if _DOTTED.fullmatch(value) and not Path(value).exists():
            yield value
        elif value[:1] in ("{", "["):
            try:
                typed = yaml.safe_load(value)
            except yaml.YAMLError:
                continue  # the parser says what is wrong with it
            yield from _class_paths(typed)
            yield from (item for item in typed if isinstance(item, str) and _DOTTED.fullmatch(item))


def _class_paths(config: Any) -> Iterator[str]:
    if isinstance(config, Namespace):
        config = vars(config)
    if isinstance(config, dict):
        if isinstance(config.get("class_path"), str):
            yield config["class_path"]
        for value in config.values():
            yield from _class_paths(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _class_paths(value)


def _refused_path(error: BaseException | None) -> str | None:
    """Find the import that was refused, however deep in the chain of errors."""
    while error is not None:
        if found := _DENIED.search(str(error)):
            return found[1]
        error = error.__cause__ or error.__context__
    return None
