from __future__ import annotations

import torch

from lightning_action.generator.rope import rotate, rotation

CPU = torch.device("cpu")


def test_pairs_are_shared_out_as_in_wan() -> None:
    """128 channels are 64 pairs: 22 of time, 21 of rows, 21 of columns."""
    angles = rotation((5,), 3, 2, 128, CPU)
    assert angles.shape == (6, 1, 64, 2)
    token = 1 * 2 + 1
    expected = torch.cat([position * 10000.0 ** -(torch.arange(n) / n) for position, n in ((5, 22), (1, 21), (1, 21))])
    torch.testing.assert_close(angles[token, 0, :, 0], expected.cos(), atol=1e-5, rtol=0)
    torch.testing.assert_close(angles[token, 0, :, 1], expected.sin(), atol=1e-5, rtol=0)


def test_rotation_is_complex_multiplication() -> None:
    x = torch.randn(2, 6, 3, 10)
    angles = rotation((0, 3), 1, 3, 10, CPU)
    expected = torch.view_as_complex(x.unflatten(-1, (5, 2))) * torch.view_as_complex(angles)
    expected = torch.view_as_real(expected).flatten(-2)
    torch.testing.assert_close(rotate(x, angles), expected, atol=1e-6, rtol=0)
    compiled = torch.compile(rotate, backend="eager")
    torch.testing.assert_close(compiled(x, angles), expected, atol=1e-6, rtol=0)


def test_a_range_and_its_numbers_are_the_same_positions() -> None:
    assert torch.equal(rotation(range(1000, 1003), 3, 2, 64, CPU), rotation((1000, 1001, 1002), 3, 2, 64, CPU))


def test_scores_depend_on_distance_alone() -> None:
    query, key = torch.randn(1, 1, 1, 24), torch.randn(1, 1, 1, 24)

    def score(i: int, j: int) -> torch.Tensor:
        return (rotate(query, rotation((i,), 1, 1, 24, CPU)) * rotate(key, rotation((j,), 1, 1, 24, CPU))).sum()

    torch.testing.assert_close(score(7, 4), score(2003, 2000), atol=1e-4, rtol=0)
    assert (score(7, 4) - score(7, 5)).abs() > 1e-3
