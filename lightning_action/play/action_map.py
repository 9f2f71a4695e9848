"""Map from what a person holds to action rows: keys, buttons, a gamepad and a mouse, by a file or the schema alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.configuration.strict_yaml import read_yaml
from lightning_action.ranges import require_numbers

# Keys of continuous columns, the one that raises first, and what else moves them.
_AXES = (
    (("ArrowRight", "KeyD"), ("ArrowLeft", "KeyA")),
    (("ArrowDown", "KeyS"), ("ArrowUp", "KeyW")),
    (("KeyE",), ("KeyQ",)),
    (("KeyR",), ("KeyF",)),
    (("KeyT",), ("KeyG",)),
    (("KeyY",), ("KeyH",)),
    (("KeyU",), ("KeyJ",)),
    (("KeyI",), ("KeyK",)),
    (("KeyO",), ("KeyL",)),
)
_NUM_STICKS = 4
# Keys of classes and switches, in this order; those that come after them have a button on the page alone.
_SWITCHES = (*(f"Digit{digit}" for digit in (1, 2, 3, 4, 5, 6, 7, 8, 9, 0)), *(f"Key{letter}" for letter in "ZXCVBNM"))
_ARROWS = ("→", "←", "↓", "↑")
# Keys of the page itself.
_RESERVED = {"Space", "Enter", "Escape", "Tab", "Period", "Backspace"}
_INPUT = re.compile(r"(key:[A-Za-z0-9]+|stick:[0-7][+-]|button:(?:[0-9]|1[0-9])|mouse:[xy][+-])")
_DEFAULT_STRENGTH = 0.5
_MAX_CONTROLS = 256


@dataclass(frozen=True)
class Control:
    """Control that a person can hold.

    Args:
        label: Name on the page.
        columns: Value of each column that it sets, by the column's name.
        inputs: Inputs that hold it: `key:ArrowRight` (the `code` of a browser's KeyboardEvent), `stick:0+` and
            `stick:0-` (an axis of a gamepad), `button:3`, `mouse:x+` (drawn from where the button went down). Its
            button on the page holds it always.
    """

    label: str
    columns: Mapping[str, float]
    inputs: Sequence[str] = ()


@dataclass(frozen=True)
class ActionMap:
    """Controls, and the action row of those that are held.

    Continuous columns go from their value at rest towards that of a control, as far as it is held; what pulls to both
    sides adds up, within the bounds. Of controls that set the same class, the one held last wins.

    Args:
        schema: Meaning of an action row.
        controls: Controls that can be held.
        rest: Value of each column when nothing is held.

    Raises:
        ValueError: A column is not in the schema, a value is out of its range, or an input is unknown or used twice.
    """

    schema: ActionSchema
    controls: Sequence[Control]
    rest: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.controls) > _MAX_CONTROLS:
            raise ValueError(f"expected at most {_MAX_CONTROLS} controls, got {len(self.controls)}")
        columns = {column.name: column for column in _columns(self.schema)}
        for where, values in [("rest", self.rest), *((each.label, each.columns) for each in self.controls)]:
            for name, value in values.items():
                if name not in columns:
                    raise ValueError(f"{where}: there is no column {name!r}, the schema has {', '.join(columns)}")
                columns[name].require(value, where)
        taken: dict[str, str] = {}
        for control in self.controls:
            for each in control.inputs:
                _require_input(each, control.label)
                if each in taken:
                    raise ValueError(f"{each} holds {taken[each]!r} and {control.label!r}: keep it for one of them")
                taken[each] = control.label

    def row(self, held: Sequence[tuple[int, float]] = ()) -> Tensor:
        """Return the action row `[columns]` of what is held.

        Args:
            held: Number of each control that is held, in the order in which they were taken hold of, and how far, from
                0 to 1.
        """
        columns = _columns(self.schema)
        values = [self.rest.get(column.name, column.rest) for column in columns]
        at_rest = list(values)
        for number, share in held:
            for index, column in enumerate(columns):
                target = self.controls[number].columns.get(column.name)
                if target is None:
                    continue
                if column.part.kind == "continuous":
                    values[index] += share * (target - at_rest[index])
                elif share >= 0.5:
                    values[index] = target
        return torch.tensor([column.within(value) for column, value in zip(columns, values, strict=True)])

    def shown(self) -> list[dict[str, Any]]:
        """Describe the controls to the page."""
        return [{"label": each.label, "inputs": list(each.inputs)} for each in self.controls]


@dataclass(frozen=True)
class _Column:
    name: str
    part: ActionPart
    index: int

    @property
    def bounds(self) -> tuple[float, float]:
        return self.part.bounds[self.index]

    @property
    def rest(self) -> float:
        return self.part.rest[self.index]

    def within(self, value: float) -> float:
        low, high = self.bounds
        return min(max(value, low), high)

    def require(self, value: float, where: str) -> None:
        low, high = self.bounds
        require_numbers({f"{where}: {self.name}": value}, low, high)
        if self.part.kind != "continuous" and value != int(value):
            raise ValueError(f"{where}: {self.name} is {self.part.kind}, whose values are whole, got {value!r}")


def _columns(schema: ActionSchema) -> list[_Column]:
    return [_Column(name, part, index) for part in schema.parts for index, name in enumerate(part.column_names)]


def _require_input(given: str, where: str) -> None:
    if not _INPUT.fullmatch(given):
        raise ValueError(
            f"{where}: expected an input such as key:ArrowRight, stick:0+, button:3 or mouse:x-, got {given!r}"
        )
    if given.partition(":")[2] in _RESERVED:
        raise ValueError(f"{where}: {given} is for the page itself: choose another key")


def default_map(schema: ActionSchema, strength: float = _DEFAULT_STRENGTH) -> ActionMap:
    """Make a map of a schema alone: arrows and letters for continuous columns, numbers for classes and switches.

    Args:
        schema: Meaning of an action row.
        strength: Share of the way from rest to a bound that a key goes; a stick and the mouse go as far as they are
            pushed.
    """
    require_numbers({"strength": strength}, 0, 1, without_low=True)
    axes, switches = count(), iter(_SWITCHES)
    controls: list[Control] = []
    for column in _columns(schema):
        if column.part.kind == "continuous":
            controls += _axis(column, next(axes), strength)
        else:
            controls += _buttons(column, switches)
    return ActionMap(schema, controls[:_MAX_CONTROLS])


def _axis(column: _Column, number: int, strength: float) -> Iterator[Control]:
    """Two keys of a continuous column, and beside them what can be pushed less far."""
    arrows = _ARROWS[2 * number : 2 * number + 2] if number < 2 else (f"{column.name} +", f"{column.name} −")
    for side, (bound, label) in enumerate(zip(reversed(column.bounds), arrows, strict=True)):
        keys = [f"key:{key}" for key in _AXES[number][side]] if number < len(_AXES) else []
        near = column.rest + strength * (bound - column.rest)
        yield Control(label, {column.name: near}, keys)
        sign = "+-"[side]
        pushed = [f"stick:{number}{sign}"] if number < _NUM_STICKS else []
        pushed += [f"mouse:{'xy'[number]}{sign}"] if number < 2 else []
        if pushed:
            yield Control("", {column.name: bound}, pushed)


def _buttons(column: _Column, keys: Iterator[str]) -> Iterator[Control]:
    """A key for each class but that at rest, or for a switch."""
    values = range(1, column.part.size) if column.part.kind == "discrete" else (1,)
    for value in values:
        key = next(keys, None)
        label = f"{column.name} {value}" if column.part.kind == "discrete" else column.name
        yield Control(label, {column.name: float(value)}, [] if key is None else [f"key:{key}"])


def read_action_map(path: Path, schema: ActionSchema) -> ActionMap:
    """Read a map from a YAML file: `controls`, a list of `label`, `columns` and `inputs`, and `rest`.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is no map, or does not fit the schema; the message names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no action map at {str(path)!r}")
    try:
        found = read_yaml(path.read_text(encoding="utf-8"))
        _require_keys("the file", found, {"controls"}, {"rest"})
        if not isinstance(found["controls"], list) or not found["controls"]:
            raise ValueError(f"controls: expected a list of at least one, got {found['controls']!r}")
        controls = [_read_control(number, each) for number, each in enumerate(found["controls"])]
        return ActionMap(schema, controls, _read_values("rest", found.get("rest", {})))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is no action map: {' '.join(str(error).split())}") from error


def _read_control(number: int, given: Any) -> Control:
    where = f"control {number}"
    _require_keys(where, given, {"label", "columns"}, {"inputs"})
    label, inputs = given["label"], given.get("inputs", [])
    if not isinstance(label, str) or not 0 < len(label) <= 40:
        raise ValueError(f"{where}: label must be a text of up to 40 letters, got {label!r}")
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise ValueError(f"{where}: inputs must be a list of texts, got {inputs!r}")
    return Control(label, _read_values(where, given["columns"]), inputs)


def _read_values(where: str, given: Any) -> dict[str, float]:
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected values by the names of columns, got {given!r}")
    require_numbers({f"{where}: {name}": value for name, value in given.items()})
    return {str(name): float(value) for name, value in given.items()}


def _require_keys(where: str, given: Any, needed: Iterable[str], optional: Iterable[str]) -> None:
    needed, optional = set(needed), set(optional)
    keys = set(given) if isinstance(given, dict) else set()
    if not isinstance(given, dict) or not needed <= keys or not keys <= needed | optional:
        told = ", ".join(sorted(needed)) + "".join(f", {name} (if any)" for name in sorted(optional))
        raise ValueError(f"{where}: expected {told}, got {sorted(map(str, keys)) if keys else given!r}")
