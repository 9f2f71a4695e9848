"""YAML as configurations are read and written: each key once, and no part that holds itself."""

from __future__ import annotations

import re
from typing import Any

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

from lightning_action.configuration.class_paths import brought_up_to_date

MODE = "strict_yaml"
# An alias repeats what it stands for: a page of them can stand for more than fits into memory.
_MAX_YAML_NODES = 1_000_000


def read_yaml(text: str) -> Any:
    """Read what a text of YAML says; text that says nothing, a comment say, stands for itself.

    Raises:
        yaml.YAMLError: The text is no YAML, has a key twice, holds itself, or more than fits into memory.
    """
    node = yaml.compose(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if node is not None:
        _count(node, {})
    value = brought_up_to_date(get_loader("yaml")(text))
    return text if value is None else value


def _count(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the nodes that a node stands for, aliases written out; 0 in `counts` marks one that is not finished."""
    if id(node) in counts:
        if not counts[id(node)]:
            raise _yaml_error("an alias (*) stands for a part that it is in itself", node)
        return counts[id(node)]
    counts[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _require_different_keys(node)
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    counts[id(node)] = 1 + sum(_count(child, counts) for child in children)
    if counts[id(node)] > _MAX_YAML_NODES:
        raise _yaml_error(f"its aliases stand for more than {_MAX_YAML_NODES:,} values", node)
    return counts[id(node)]


def _require_different_keys(node: yaml.MappingNode) -> None:
    seen: dict[Any, yaml.Node] = {}
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in seen:
            first = seen[name].start_mark.line + 1
            raise _yaml_error(f"the key {key.value!r} stands there already, in line {first}: keep one of them", key)
        seen[name] = key


def _yaml_error(problem: str, node: yaml.Node) -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=f"line {node.start_mark.line + 1}: {problem}")


class _Dumper(yaml.SafeDumper):
    """Puts into quotes what the loader would read as a number, though YAML 1.1 does not: `1e3`."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def write_yaml(data: Any) -> str:
    """Write YAML that `read_yaml` reads as the same."""
    return yaml.dump(data, Dumper=_Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)


set_dumper(MODE, write_yaml)
set_loader(MODE, read_yaml, exceptions=(yaml.YAMLError,))
