"""Samples of a data module by split, and whether two batches are the same."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.batch import Batch
from lightning_action.data.split_data import Split, SplitDataModule


def equal(one: Batch, other: Batch) -> bool:
    """Compare every entry to all digits; both have to have the same keys."""
    assert one.keys() == other.keys()
    return all(
        torch.equal(one[key], other[key]) if isinstance(one[key], Tensor) else one[key] == other[key] for key in one
    )


def ids(loader: Iterable[Batch]) -> list[int]:
    """Numbers of the samples of a loader, in its order."""
    return [number for batch in loader for number in batch["sample_id"].tolist()]


def loaders(module: SplitDataModule) -> dict[Split, DataLoader[Batch]]:
    """The loader of each split."""
    validation = module.val_dataloader()
    assert isinstance(validation, DataLoader)
    return {
        "train": module.train_dataloader(),
        "validation": validation,
        "test": module.test_dataloader(),
        "predict": module.predict_dataloader(),
    }
