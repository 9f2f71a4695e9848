from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.generation.session_inputs import (
    given_frames,
    given_numbers,
    given_prompts,
    given_row,
    given_rows,
    given_rows_wanted,
    given_size,
    given_worlds,
)

SCHEMA = ActionSchema([ActionPart("stick", size=3)], "transition", "concat")


def test_what_fits_is_taken() -> None:
    assert given_prompts(None, 2) == ["", ""] and given_prompts("a", 2) == ["a", "a"]
    assert given_prompts(("a", "b"), 2) == ["a", "b"]
    assert given_numbers(torch.tensor([3, 3]), 2) == [3, 3] and given_worlds(torch.tensor([1, 0, 1]), 2) == [1, 0, 1]
    assert given_size(torch.zeros(2, 1, 3, 4, 6), None) == (4, 6) == given_size(None, (4, 6))
    frames = torch.tensor([-0.04, 0.0, 0.5, 1.04]).reshape(1, 1, 1, 2, 2).expand(2, 1, 3, 2, 2)
    torch.testing.assert_close(given_frames(frames, 2), 2 * frames - 1)


def test_rows_are_those_of_their_frames() -> None:
    """The first latent frame follows from no action, each later one from four."""
    rows = given_rows(None, range(1), SCHEMA, 2)
    assert rows is not None and rows.shape == (2, 0, 3)
    assert given_rows(None, range(2), SCHEMA, 2) is None
    given = torch.rand(2, 4, 3)
    assert given_rows(given.tolist(), range(2), SCHEMA, 2).equal(given)  # type: ignore[union-attr]
    assert given_rows_wanted(given.tolist(), 4, SCHEMA, 2).equal(given)
    assert given_row(given[:, 3], SCHEMA, 2).equal(given[:, 3:])
    assert given_row([0.5, -0.5, 1], SCHEMA, 2).equal(torch.tensor([[[0.5, -0.5, 1]]] * 2))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: given_prompts(["a"], 2), r"a prompt, or 2 of them, got \['a'\]"),
        (lambda: given_prompts([1, 2], 2), "a prompt, or 2 of them"),  # type: ignore[list-item]
        (lambda: given_numbers([0.5, 1], 2), "a whole number for each world"),
        (lambda: given_numbers([0], 2), r"sample_id of 2 worlds, got \[0\]"),
        (lambda: given_frames(torch.zeros(1, 1, 3, 2, 2), 2), r"\[2, T, 3, H, W\] in \[0, 1\], got torch.float32"),
        (lambda: given_frames(torch.full((2, 1, 3, 2, 2), 1.2), 2), "got values from 1.2 to 1.2"),
        (lambda: given_frames(torch.full((2, 1, 3, 2, 2), torch.nan), 2), "got values from nan"),
        (lambda: given_rows(torch.zeros(4, 3), range(2), SCHEMA, 2), r"\[2, rows, columns\], got \[4, 3\]"),
        (lambda: given_rows(torch.zeros(2, 5, 3), range(2), SCHEMA, 2), r"must be \[B, 4, 3\]"),
        (lambda: given_row(torch.zeros(1, 3), SCHEMA, 2), r"\[2, columns\], with 3 columns, got \[1, 3\]"),
        (lambda: given_row([0.5, torch.nan, 0], SCHEMA, 2), "not finite"),
        (lambda: given_rows_wanted(torch.zeros(2, 3, 3), 4, SCHEMA, 2), r"actions \[2, 4, 3\].*got \[2, 3, 3\]"),
        (lambda: given_size(torch.zeros(2, 1, 3, 4, 6), (4, 6)), "leave frame_size out"),
        (lambda: given_size(None, (4, 0)), "width must be a whole number of at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(refused: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused()


@pytest.mark.parametrize(
    "chosen", [[2], [-1], [], [True, False], torch.tensor([True, False]), np.array([True]), [0.0], [1, True], 1, "0"]
)
def test_what_names_no_worlds_is_refused(chosen: Any) -> None:
    with pytest.raises(ValueError, match="expected one or more worlds by their numbers from 0 to 1, got "):
        given_worlds(chosen, 2)
