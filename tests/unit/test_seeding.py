"""Seeds from whole numbers alone: the same for ever and everywhere."""

from __future__ import annotations

from itertools import product

import torch

from lightning_action.seeding import generator_for, mix_seed


def test_seeds_are_the_same_for_ever() -> None:
    # Datasets, noise and initial weights follow from these.
    assert mix_seed(0) == 893442142816765029
    assert mix_seed(1) == 9116012252223111705
    assert mix_seed(0, 1, 2) == 4450782424123420391
    assert mix_seed(-7, 2**62) == 2848342587031755435


def test_other_numbers_orders_and_lengths_give_other_seeds() -> None:
    tuples = [numbers for length in range(1, 5) for numbers in product((-1, 0, 1, 2), repeat=length)]
    seeds = {mix_seed(*numbers) for numbers in tuples}
    assert len(seeds) == len(tuples) == 340
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**61


def test_a_seed_is_a_number_to_mix_again() -> None:
    seeds = [mix_seed(number) for number in range(50)]
    assert len({mix_seed(seed, 3) for seed in seeds}) == 50


def test_generators_start_where_their_numbers_say() -> None:
    before = torch.get_rng_state()
    one, again, other = (torch.randn(5, generator=generator_for(*numbers)) for numbers in ((4, 2), (4, 2), (2, 4)))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(one, torch.randn(5, generator=torch.Generator().manual_seed(mix_seed(4, 2))))
    assert torch.equal(torch.get_rng_state(), before)


def test_neighbouring_numbers_give_unrelated_draws() -> None:
    draws = torch.stack([torch.randn(200, generator=generator_for(0, index)) for index in range(20)])
    correlations = torch.corrcoef(draws) - torch.eye(20)
    # 190 pairs of 200 draws: the standard deviation of one is 0.07.
    assert correlations.abs().max() < 0.35
