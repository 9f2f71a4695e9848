"""What every rank has of its own samples, brought together."""

import torch
from lightning.pytorch import Trainer
from torch import Tensor


def gather_rows(trainer: Trainer, rows: Tensor) -> Tensor:
    """The rows of all ranks, rank after rank; waits until every rank has come.

    Args:
        trainer: whose ranks take part, all of them.
        rows: `[N, columns]` with an N for each rank.

    Returns:
        `[sum of N, columns]` on the CPU, the same on every rank.
    """
    strategy = trainer.strategy
    rows = rows.to(strategy.root_device)
    longest = int(strategy.reduce(torch.tensor(len(rows), device=rows.device), reduce_op="max"))
    # Only equal lengths can be gathered: the last column says what is padding.
    padded = torch.zeros(longest, rows.shape[1] + 1, dtype=rows.dtype, device=rows.device)
    padded[: len(rows), :-1], padded[: len(rows), -1] = rows, 1
    gathered = strategy.all_gather(padded).reshape(-1, padded.shape[1]).cpu()
    return gathered[gathered[:, -1] == 1, :-1]
