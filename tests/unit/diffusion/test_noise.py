from __future__ import annotations

import torch

from lightning_action.diffusion.noise import frame_noise, own_noise, starting_from

SHAPE = (3, 2, 5)


def test_noise_belongs_to_seed_sample_frame_and_step_alone() -> None:
    whole = frame_noise(1, (7, 2**40), SHAPE)(range(0, 6), 2)
    assert whole.shape == (2, 6, *SHAPE)
    assert torch.equal(frame_noise(1, (2**40,), SHAPE)(range(3, 5), 2), whole[1:, 3:5])
    others = [
        frame_noise(2, (7,), SHAPE)(range(0, 1), 2),
        frame_noise(1, (8,), SHAPE)(range(0, 1), 2),
        frame_noise(1, (7,), SHAPE)(range(1, 2), 2),
        frame_noise(1, (7,), SHAPE)(range(0, 1), 3),
    ]
    assert not any(torch.equal(other, whole[:1, :1]) for other in others)


def test_noise_is_standard_normal() -> None:
    values = frame_noise(0, range(20), (10, 10, 10))(range(2), 0)
    assert abs(values.mean()) < 0.02 and abs(values.std() - 1) < 0.02
    assert abs((values[:-1] * values[1:]).mean()) < 0.02 and abs((values[:, 0] * values[:, 1]).mean()) < 0.02


def test_given_noise_is_the_first_and_no_other() -> None:
    start, later = torch.randn(2, 6, *SHAPE), frame_noise(1, (7, 9), SHAPE)
    noise = starting_from(start, later)
    assert torch.equal(noise(range(2, 5), 0), start[:, 2:5])
    assert torch.equal(noise(range(2, 5), 1), later(range(2, 5), 1))


def test_noise_belongs_to_the_sample() -> None:
    like = torch.zeros(1, dtype=torch.float64)
    both = own_noise((4, 3), [torch.Generator().manual_seed(seed) for seed in (1, 2)], like)
    alone = own_noise((4, 3), [torch.Generator().manual_seed(2)], like)
    assert both.dtype == torch.float64 and torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])
