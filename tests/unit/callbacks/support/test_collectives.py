"""What a single process says; two of them are in tests/integration/callbacks/test_statistics_distributed.py."""

from typing import Literal

import pytest
import torch

from lightning_action.callbacks.support import collectives


def test_a_single_process_holds_everything_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([[3.0, -4.0]])
    assert collectives.world_size() == collectives.num_copies(values) == 1
    assert collectives.sum_of_squares(values) == 25
    assert torch.equal(collectives.sum_over_ranks(values), values)
    assert torch.equal(collectives.largest_over_ranks(values), values)
    assert collectives.gather("mine") == ["mine"]
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    assert collectives.sum_of_squares(values) == 12.5


def test_sparse_values_are_all_values() -> None:
    sparse = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse()
    assert torch.equal(collectives.local(sparse), sparse.to_dense())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_computed_in_float32_at_least(dtype: torch.dtype) -> None:
    # In half precision, the square would overflow.
    norm = collectives.norm(torch.tensor([300.0, 400.0]).to(dtype))
    assert norm.dtype == torch.float32 and norm == pytest.approx(500.0, rel=1e-2)
    assert collectives.norm(torch.zeros(0, dtype=dtype)) == 0


@pytest.mark.parametrize("order", [1, 2])
def test_norms_of_many_values_are_exact(order: Literal[1, 2]) -> None:
    values = torch.randn(1_000_000, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.vector_norm(values.double(), order)
    assert collectives.norm(values, order).item() == pytest.approx(exact.item(), rel=3e-7)
