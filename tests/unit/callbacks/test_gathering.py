"""Rows of several ranks, brought together."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.callbacks.gathering import gather_rows


class Ranks:
    """A strategy of several ranks that take their turns, the last of which sees all."""

    root_device = torch.device("cpu")

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.padded: list[Tensor] = []

    def reduce(self, tensor: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "max"
        return torch.tensor(max(self.lengths))

    def all_gather(self, tensor: Tensor) -> Tensor:
        self.padded.append(tensor)
        return torch.stack(self.padded)


@pytest.mark.parametrize("lengths", [[3, 2, 5], [0, 2], [0, 0], [4]])
def test_rows_of_all_ranks_come_together_without_padding(lengths: list[int]) -> None:
    rows = [torch.randn(length, 3, dtype=torch.float64) for length in lengths]
    trainer: Any = SimpleNamespace(strategy=Ranks(lengths))
    assert torch.equal([gather_rows(trainer, of_rank) for of_rank in rows][-1], torch.cat(rows))
