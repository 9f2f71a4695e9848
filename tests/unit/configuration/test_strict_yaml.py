from __future__ import annotations

from typing import Any

import pytest
import yaml

from lightning_action.configuration.strict_yaml import read_yaml, write_yaml


def test_aliases_are_fine_otherwise() -> None:
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {x: 1}, x: 2}") == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
        "c": {"x": 2},
    }


@pytest.mark.parametrize("value", ["1e3", "+1.5e-7", "1_0e2", "yes", "x", 1000.0, 1e-7, None, True, 3])
def test_what_is_written_is_read(value: Any) -> None:
    assert read_yaml(write_yaml({"a": value})) == {"a": value}


def test_exported_classes_are_found_wherever_a_saved_configuration_says_they_are() -> None:
    old = (
        "a: [{class_path: lightning_action.somewhere.else.CausalWanModel}]\nb: {class_path: lightning_action.x.Unknown}"
    )
    read = read_yaml(old)
    assert read["a"] == [{"class_path": "lightning_action.CausalWanModel"}]
    assert read["b"] == {"class_path": "lightning_action.x.Unknown"}, "the parser says what is wrong with it"
    callback = {"class_path": "lightning_action.callbacks.EMA"}
    assert read_yaml(write_yaml(callback)) == callback


def test_text_that_says_nothing_stands_for_itself() -> None:
    assert [read_yaml(text) for text in ("# nothing", "", "null", "a")] == ["# nothing", "", "null", "a"]


# The value of line n + 1 is 2 ** (n + 2) - 1 nodes.
BOMB = "a0: &a0 [1, 1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(20))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  b: 1\n  c: 2\n  b: 3\n", "line 4: the key 'b' stands there already, in line 2: keep one of them"),
        ("a: &x [1, *x]\n", r"line 1: an alias \(\*\) stands for a part that it is in itself"),
        (BOMB, "line 19: its aliases stand for more than 1,000,000 values"),
        ("a: [1", "expected ',' or ']'"),
    ],
)
def test_what_yaml_would_let_pass_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(yaml.YAMLError, match=message):
        read_yaml(text)


def test_numbers_that_yaml_takes_for_text_are_quoted() -> None:
    assert write_yaml({"b": "1e3", "a": ["ü", 1.5]}) == "b: '1e3'\na:\n- ü\n- 1.5\n"
