from __future__ import annotations

import pytest
import torch
from torch.utils.data import SequentialSampler, TensorDataset

from lightning_action.data.resumable import ResumableDataLoader, ResumableSampler, move_to_batch


def loader(num_workers: int = 0) -> ResumableDataLoader:
    dataset = TensorDataset(torch.arange(23))
    sampler = ResumableSampler(dataset, num_replicas=2, rank=1, shuffle=True, seed=5, drop_last=True)
    return ResumableDataLoader(dataset, batch_size=3, sampler=sampler, drop_last=True, num_workers=num_workers)


def epoch(loaded: ResumableDataLoader, number: int) -> list[list[int]]:
    loaded.sampler.set_epoch(number)
    return [batch[0].tolist() for batch in loaded]


@pytest.mark.parametrize("given", [0, 1, 2, 3])
def test_the_rest_of_the_epoch_and_all_of_the_next(given: int) -> None:
    whole = loader()
    first, second = epoch(whole, 0), epoch(whole, 1)
    assert len(first) == len(whole) == 3 and first != second
    stopped = loader()
    batches = iter(stopped)
    for _ in range(given):
        next(batches)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert epoch(resumed, 0) == (first[given:] if given < 3 else first), "an epoch that is over is not resumed"
    assert epoch(resumed, 1) == second


def test_the_count_is_of_the_running_epoch() -> None:
    loaded = loader()
    epoch(loaded, 0)
    batches = iter(loaded)
    next(batches)
    assert loaded.state_dict() == {"epoch": 0, "num_given": 1}
    next(batches)
    assert loaded.state_dict() == {"epoch": 0, "num_given": 2}


def test_an_epoch_that_a_limit_cut_short_is_not_gone_on_with() -> None:
    whole, resumed = loader(), loader()
    second = epoch(whole, 1)
    resumed.load_state_dict({"epoch": 0, "num_given": 2})
    assert epoch(resumed, 1) == second
    resumed.load_state_dict({"num_given": 2})
    assert epoch(resumed, 1) == second[2:], "as it was saved before epochs were"


def test_any_sampler() -> None:
    data = TensorDataset(torch.arange(7))
    ordered = ResumableDataLoader(data, batch_size=2, sampler=SequentialSampler(data))
    batches = iter(ordered)
    next(batches)
    state = ordered.state_dict()
    assert state == {"epoch": None, "num_given": 1}
    ordered.load_state_dict(state)
    assert [batch[0].tolist() for batch in ordered] == [[2, 3], [4, 5], [6]]
    move_to_batch(state, epoch=2, num_batches=3)
    assert state == {"epoch": None, "num_given": 3}
