from __future__ import annotations

import torch

from lightning_action.generator.float8 import FLOAT8, to_float8


def test_the_largest_of_each_row_becomes_448() -> None:
    x = torch.tensor([[448.0, -224.0, 0.0], [0.5, -1.75, 0.25]])
    numbers, scale = to_float8(x, (-1,))
    assert numbers.dtype == FLOAT8 and scale.dtype == torch.float32
    assert numbers.tolist() == [[448, -224, 0], [128, -448, 64]] and scale.tolist() == [[1.0], [2**-8]]


def test_dims_that_are_spanned_have_one_scale() -> None:
    x = torch.arange(2 * 3 * 5.0).view(2, 3, 5)
    numbers, scale = to_float8(x, (0, 2))
    assert scale.shape == (1, 3, 1)
    torch.testing.assert_close(scale.flatten(), torch.tensor([19.0, 24.0, 29.0]) / 448)
    # Three bits behind the first: half a step of the last one is a sixteenth.
    assert ((numbers.float() * scale - x).abs() <= x / 16).all()


def test_zeros_stay_zeros_and_another_layout_becomes_contiguous() -> None:
    numbers, scale = to_float8(torch.zeros(3, 2, dtype=torch.bfloat16).t(), (-1,))
    assert not numbers.float().any() and scale.isfinite().all() and numbers.is_contiguous()
