"""Training, validation, test and predict samples, and how they are loaded."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import lightning as L
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from lightning_action.batch import Batch
from lightning_action.data.resumable import ResumableDataLoader, ResumableSampler

Split = Literal["train", "validation", "test", "predict"]
SPLITS: tuple[Split, ...] = get_args(Split)
Locator = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions `[B, T, 2]` of an object in videos `[B, T, 3, H, W]` in [-1, 1], and whether it is there, `[B, T]` bool."""


class SampleDataset(Dataset[Batch]):
    """Samples by their number, from 0 on."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def command(self, index: int) -> Batch:
        """Return `sample_id`, `action` and `prompt` of a sample, whose video is not made or read for it."""


class SpreadSamples(Subset[Batch], SampleDataset):
    """Subset of at most so many samples of a dataset, spread over all of it."""

    dataset: SampleDataset

    def __init__(self, dataset: SampleDataset, size: int) -> None:
        total = len(dataset)
        count = min(total, size)
        super().__init__(dataset, [index * total // count for index in range(count)])

    def command(self, index: int) -> Batch:
        return self.dataset.command(self.indices[index])


class SplitDataModule(L.LightningDataModule):
    """Loads the samples of each split; subclasses say what a sample is.

    Args:
        sizes: Largest number of samples of each split; one that is not named has all of them.
        batch_size: Number of training samples of a step, on each device.
        eval_batch_size: Number of samples of a validation, test or predict step.
        seed: Random seed of the order of the training samples, which changes from epoch to epoch.
        num_workers: Number of processes that make samples.
        locator: Function that finds the object to be measured in videos; None measures no positions.
    """

    def __init__(
        self,
        sizes: Mapping[Split, int],
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
        locator: Locator | None = None,
    ) -> None:
        super().__init__()
        if sizes.get("train", batch_size) < batch_size:
            raise ValueError(f"train_size {sizes['train']} does not fill one batch of batch_size {batch_size}")
        self.sizes = sizes
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.seed, self.num_workers, self.locator = seed, num_workers, locator
        self._is_wanted: Callable[[Batch], bool] | None = None

    @abstractmethod
    def dataset(self, split: Split) -> SampleDataset:
        """Return the samples of a split."""

    @property
    def collate(self) -> Callable[[Any], Batch]:
        """Function that makes a batch of what the dataset gives, which is a batch already, if it has `__getitems__`."""
        return _already_a_batch

    def setup(self, stage: str) -> None:
        """Begin with all samples."""
        self._is_wanted = None

    def select_predict_samples(self, is_wanted: Callable[[Batch], bool]) -> None:
        """Generate only those predict samples for which `is_wanted` is true, for a writer that has some of them.

        Args:
            is_wanted: Function of a dict with `sample_id`, `action` and `prompt` of a sample.
        """
        self._is_wanted = is_wanted

    def read_positions(self, video: Tensor, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Find the object in videos, by `locator`.

        Args:
            video: Videos, `[B, T, 3, H, W]` in [-1, 1].
            batch: Batch that they were generated for.
            split: Split that the batch is from.

        Returns:
            Positions in pixels, `[B, T, 2]`, and whether the object is there, `[B, T]` bool.

        Raises:
            ValueError: The data has no locator.
        """
        if self.locator is None:
            raise ValueError("there is no locator that finds the object: give one to the data")
        return self.locator(video.cpu())

    def train_dataloader(self) -> DataLoader[Batch]:
        """Load training samples, shuffled anew each epoch from (seed, epoch) alone, so that resumed runs see the same.

        Raises:
            ValueError: A rank's share of the samples does not fill one batch.
        """
        dataset = self.dataset("train")
        loader = self._loader(dataset, self.batch_size, shuffle=True)
        if not len(loader):
            raise ValueError(
                f"{len(dataset)} training samples do not fill one batch of batch_size {self.batch_size} on each "
                "device: lower batch_size, or give more data"
            )
        return loader

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return self._loader(self.dataset("validation"), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.dataset("test"), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Batch]:
        dataset = self.dataset("predict")
        if self._is_wanted is None:
            return self._loader(dataset, self.eval_batch_size)
        wanted = [index for index in range(len(dataset)) if self._is_wanted(dataset.command(index))]
        return self._loader(Subset(dataset, wanted), self.eval_batch_size)

    def _loader(self, dataset: Dataset[Batch], batch_size: int, shuffle: bool = False) -> DataLoader[Batch]:
        """Load this rank's share; batches that are shuffled are full."""
        world_size, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        sampler = ResumableSampler(dataset, world_size, rank, shuffle=shuffle, seed=self.seed, drop_last=shuffle)
        loader_class = ResumableDataLoader if shuffle else DataLoader
        return loader_class(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            drop_last=shuffle,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            persistent_workers=self.num_workers > 0,
        )


def _already_a_batch(batch: Any) -> Batch:
    return batch
