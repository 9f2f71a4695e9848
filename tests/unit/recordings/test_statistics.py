from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_action.action.schema import ActionPart
from lightning_action.recordings.statistics import count_classes, measure, schema_from


@pytest.mark.parametrize("lengths", [[1], [2, 1], [40, 40, 40], [1000, 1, 503], [7] * 300])
def test_figures_are_those_of_all_rows_at_once(lengths: list[int]) -> None:
    random = np.random.default_rng(len(lengths))
    rows = random.standard_cauchy((sum(lengths), 3)).astype(np.float32)
    episodes = np.split(rows, np.cumsum(lengths)[:-1])
    found = measure(iter(episodes), ["a", "b", "c"], len(rows))
    exact = rows.astype(np.float64)
    for name, figures in {
        "mean": exact.mean(0),
        "std": exact.std(0),
        "low": exact.min(0),
        "high": exact.max(0),
        "q01": np.quantile(exact, 0.01, axis=0),
        "q99": np.quantile(exact, 0.99, axis=0),
    }.items():
        np.testing.assert_allclose([getattr(each, name) for each in found], figures, rtol=1e-9, err_msg=name)


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 5 action rows to measure, at least one, got 4"):
        measure([np.zeros((4, 1))], ["a"], 5)
    with pytest.raises(ValueError, match="at least one, got 0"):
        measure([], ["a"], 0)


def remarks(values: np.ndarray, name: str = "joint") -> str:
    return "; ".join(measure([values[:, None]], [name], len(values))[0].remarks())


def test_what_a_user_should_know_is_named() -> None:
    normal = np.random.default_rng(0).uniform(-1, 1, 500)
    assert remarks(normal) == ""
    assert "constant (0.25)" in remarks(np.full(10, 0.25))
    assert "outliers: from" in remarks(np.append(normal, 40.0))
    assert "gripper or a switch (two values alone): 0 and 1" in remarks((normal > 0).astype(float))
    assert "gripper or a switch (by its name)" in remarks(normal, "left_gripper")
    turning = (np.arange(500) * 0.1 + math.pi) % (2 * math.pi) - math.pi
    assert "an angle that wraps around" in remarks(turning)
    assert "an angle that wraps around" in remarks(np.degrees(turning))
    assert "see that it does not wrap" in remarks(normal, "wrist_roll")


def test_the_schema_maps_the_percentiles_to_one() -> None:
    rows = np.stack([np.linspace(-3, 5, 101), np.full(101, 0.5)], axis=1)
    schema = schema_from(measure([rows], ["x", "y"], 101), None, "state", "mean", 4, 3)
    assert schema.parts == [ActionPart("action", "continuous", 2, [-2.92, -0.5], [4.92, 1.5])]
    assert schema.parts[0].labels == ["x", "y"]
    of_one_name = schema_from(measure([rows], ["x", "x"], 101), None, "state", "mean", 4, 3)
    assert of_one_name.parts[0].labels is None
    assert (schema.alignment, schema.combine, schema.rows_per_frame) == ("state", "mean", 3)
    encoded = schema.parts[0].encode(torch.from_numpy(rows))
    assert encoded[:, 1].unique().tolist() == [0.0]


def test_whole_numbers_are_classes_if_they_are_stored_as_such() -> None:
    rows = np.array([[0.0], [4.0], [2.0]])
    figures = measure([rows], ["move"], 3)
    counted = count_classes([rows, rows + 3])
    assert counted == [8]
    assert schema_from(figures, counted, "transition", "concat", 4, 1).parts == [ActionPart("move", "discrete", 8)]
    assert schema_from(figures, None, "transition", "concat", 4, 1).parts[0].kind == "continuous"


@pytest.mark.parametrize("value", [-1.0, 0.5, 256.0])
def test_other_numbers_are_no_classes(value: float) -> None:
    assert count_classes([np.array([[3.0, 1.0]]), np.array([[0.0, value]])]) is None
