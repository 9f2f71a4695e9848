from __future__ import annotations

from typing import Any

import pytest

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
