from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.play.spaces import action_rows, action_space

STICK = ActionPart("stick", size=2, low=[-1.0, 0.0], high=2.0)
THROTTLE = ActionPart("throttle", size=1, low=0.0, high=1.0)
KEY, GEAR = ActionPart("key", "discrete", 5), ActionPart("gear", "discrete", 3)
BUTTONS = ActionPart("buttons", "multi_hot", 4)
LOW, HIGH = np.float32([-1, 0]), np.float32([2, 2])

SPACES: list[tuple[list[ActionPart], Any, Any]] = [
    ([STICK], spaces.Box(LOW, HIGH), spaces.Box(np.tile(LOW, (6, 1)), np.tile(HIGH, (6, 1)))),
    ([STICK, THROTTLE], spaces.Box(np.float32([-1, 0, 0]), np.float32([2, 2, 1])), None),
    ([KEY], spaces.Discrete(5), spaces.MultiDiscrete([5] * 6)),
    ([KEY, GEAR], spaces.MultiDiscrete([5, 3]), spaces.MultiDiscrete([[5, 3]] * 6)),
    ([BUTTONS], spaces.MultiBinary(4), spaces.MultiBinary((6, 4))),
    ([KEY, STICK], spaces.Dict({"key": spaces.Discrete(5), "stick": spaces.Box(LOW, HIGH)}), None),
]


@pytest.mark.parametrize(("parts", "single", "block"), SPACES)
def test_each_schema_has_its_space_and_rows_that_it_takes(parts: list[ActionPart], single: Any, block: Any) -> None:
    schema = ActionSchema(parts)
    assert action_space(schema) == single
    assert block is None or action_space(schema, 6) == block
    for num_rows in (None, 6):
        space = action_space(schema, num_rows)
        space.seed(3)
        rows = action_rows(schema, space.sample(), num_rows)
        assert rows.shape == (num_rows or 1, schema.num_columns) and rows.dtype == np.float32


def test_parts_of_a_dict_need_names_of_their_own() -> None:
    same = [ActionPart("action", "discrete", 5), ActionPart("action", size=2)]
    with pytest.raises(ValueError, match="which must differ, got action, action"):
        action_space(ActionSchema(same))
    assert action_space(ActionSchema([STICK, STICK])).shape == (4,)


def test_values_stand_in_their_columns() -> None:
    mixed = ActionSchema([KEY, STICK])
    assert action_rows(mixed, {"stick": np.float32([0.5, 0.25]), "key": np.int64(4)}).tolist() == [[4, 0.5, 0.25]]
    assert action_rows(ActionSchema([KEY, GEAR]), np.array([[4, 1], [0, 2]]), 2).tolist() == [[4, 1], [0, 2]]
    assert action_rows(ActionSchema([KEY]), np.array([4, 0, 2]), 3).tolist() == [[4], [0], [2]]
    with pytest.raises(ValueError, match="expected an action of 1 x 2 values, got one of shape \\(3,\\)"):
        action_rows(ActionSchema([STICK]), [0.0, 1.0, 2.0])
