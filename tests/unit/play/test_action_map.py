"""From what is held to action rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.play.action_map import ActionMap, Control, default_map, read_action_map

STICK = ActionSchema([ActionPart("move", "continuous", 2, [-1.0, -4.0], [2.0, 2.0])])
MIXED = ActionSchema(
    [ActionPart("lift", "continuous", 3), ActionPart("mode", "discrete", 4), ActionPart("lamp", "multi_hot", 2)]
)


def labels(mapped: ActionMap) -> list[str]:
    return [control.label for control in mapped.controls]


def number(mapped: ActionMap, given: str) -> int:
    """Of the control that an input holds."""
    return next(index for index, control in enumerate(mapped.controls) if given in control.inputs)


def test_arrows_go_half_way_and_sticks_all_of_it() -> None:
    mapped = default_map(STICK)
    held = {given: mapped.row([(number(mapped, given), 1.0)]).tolist() for given in ("key:ArrowRight", "stick:0+")}
    assert held == {"key:ArrowRight": [1.0, 0.0], "stick:0+": [2.0, 0.0]}
    assert mapped.row([(number(mapped, "key:KeyW"), 1.0)]).tolist() == [0.0, -2.0]
    assert mapped.row([(number(mapped, "mouse:y-"), 0.25)]).tolist() == [0.0, -1.0]
    assert default_map(STICK, 1.0).row([(0, 1.0)]).tolist() == [2.0, 0.0]


def test_what_is_held_adds_up_within_the_bounds() -> None:
    mapped = default_map(STICK)
    right, left, push = (number(mapped, given) for given in ("key:ArrowRight", "key:ArrowLeft", "stick:0+"))
    assert mapped.row().tolist() == [0.0, 0.0]
    assert mapped.row([(right, 1.0), (left, 1.0)]).tolist() == [0.5, 0.0]
    assert mapped.row([(right, 1.0), (push, 1.0)]).tolist() == [2.0, 0.0]


def test_rest_is_the_middle_where_nothing_is_zero() -> None:
    far = ActionSchema([ActionPart("place", "continuous", 1, 3.0, 7.0)])
    assert default_map(far).row().tolist() == [5.0]
    assert default_map(far).row([(0, 1.0)]).tolist() == [6.0]


def test_every_schema_is_playable() -> None:
    mapped = default_map(MIXED)
    assert [label for label in labels(mapped) if label] == [
        *("→", "←", "↓", "↑", "lift_2 +", "lift_2 −"),
        *("mode 1", "mode 2", "mode 3", "lamp_0", "lamp_1"),
    ]
    one, three, lamp = (number(mapped, f"key:Digit{digit}") for digit in (1, 3, 5))
    assert mapped.row([(one, 1.0), (lamp, 1.0)]).tolist() == [0, 0, 0, 1, 0, 1]
    assert mapped.row([(one, 1.0), (three, 1.0)]).tolist() == [0, 0, 0, 3, 0, 0]
    assert mapped.row([(three, 1.0), (one, 0.4)]).tolist() == [0, 0, 0, 3, 0, 0]
    many = default_map(ActionSchema([ActionPart("a", "continuous", 30), ActionPart("b", "discrete", 99)]))
    without_keys = [control.label for control in many.controls if not control.inputs]
    assert without_keys[0] == "a_9 +" and without_keys[-1] == "b 98"


def test_every_row_of_a_default_map_is_one_of_the_schema() -> None:
    mapped = default_map(MIXED)
    for index in range(len(mapped.controls)):
        MIXED.encode(mapped.row([(index, 1.0)]).expand(1, 4, -1), 2)


FILE = """
rest: {lift_1: -0.5}
controls:
  - {label: rise, columns: {lift_0: 1.0, lift_1: 0.5}, inputs: ["key:KeyP", "button:12"]}
  - {label: lamps, columns: {lamp_0: 1, lamp_1: 1}}
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(FILE)
    mapped = read_action_map(tmp_path / "map.yaml", MIXED)
    assert mapped.shown() == [
        {"label": "rise", "inputs": ["key:KeyP", "button:12"]},
        {"label": "lamps", "inputs": []},
    ]
    assert mapped.row().tolist() == [0, -0.5, 0, 0, 0, 0]
    assert mapped.row([(0, 0.5), (1, 1.0)]).tolist() == [0.5, 0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file: expected controls, rest .if any., got"),
        ("controls: []", "controls: expected a list of at least one"),
        ("controls: [{label: a}]", "control 0: expected columns, label, inputs .if any., got .'label'."),
        ("controls: [{label: '', columns: {lift_0: 1}}]", "control 0: label must be a text of up to 40"),
        ("controls: [{label: a, columns: [1]}]", "control 0: expected values by the names of columns"),
        ("controls: [{label: a, columns: {lift_0: high}}]", "control 0: lift_0 must be a finite number, got 'high'"),
        ("controls: [{label: a, columns: {lift_9: 1}}]", "a: there is no column 'lift_9', the schema has lift_0"),
        ("controls: [{label: a, columns: {lift_0: 2}}]", "a: lift_0 must be .* of at most 1"),
        ("controls: [{label: a, columns: {mode: 1.5}}]", "a: mode is discrete, whose values are whole, got 1.5"),
        ("rest: {mode: 4}\ncontrols: [{label: a, columns: {mode: 1}}]", "rest: mode must be .* of at most 3"),
        ("controls: [{label: a, columns: {mode: 1}, inputs: [mouse]}]", "a: expected an input such as key:ArrowRight"),
        ("controls: [{label: a, columns: {mode: 1}, inputs: ['key:Space']}]", "key:Space is for the page itself"),
        ("controls: [{label: a, columns: {mode: 1}, inputs: key}]", "inputs must be a list of texts, got 'key'"),
        ("controls: [{label: a, columns: {mode: 1}, keys: x}]", "expected columns, label, inputs"),
        ("controls: {", "is no action map"),
        ("controls: [{label: a, columns: {mode: 1}, inputs: ['key:A', 'key:A']}]", "key:A holds 'a' and 'a'"),
    ],
)
def test_what_is_no_map_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        read_action_map(tmp_path / "map.yaml", MIXED)
    assert str(tmp_path / "map.yaml") in str(refused.value)


def test_a_missing_file_and_too_many_controls() -> None:
    with pytest.raises(FileNotFoundError, match="no action map at 'nowhere.yaml'"):
        read_action_map(Path("nowhere.yaml"), MIXED)
    with pytest.raises(ValueError, match="at most 256 controls, got 257"):
        ActionMap(MIXED, [Control("a", {"mode": 1.0})] * 257)
    with pytest.raises(ValueError, match="strength must be .* above 0"):
        default_map(MIXED, 0.0)
