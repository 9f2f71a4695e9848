"""What the loaders of every DataModule have in common: shares, orders, chosen samples, positions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, default_collate

from lightning_action.batch import Batch
from lightning_action.data.resumable import ResumableDataLoader
from lightning_action.data.split_data import SPLITS, SampleDataset, Split, SplitDataModule, SpreadSamples
from tests.support.split_batches import ids


class Numbers(SampleDataset):
    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def command(self, index: int) -> Batch:
        return {"sample_id": index, "action": None, "prompt": str(index)}

    def __getitem__(self, index: int) -> Batch:
        return {"sample_id": index}


class NumberData(SplitDataModule):
    collate = staticmethod(default_collate)  # type: ignore[assignment]

    def __init__(self, **changes: Any) -> None:
        settings: dict[str, Any] = {"batch_size": 4, "eval_batch_size": 5, "seed": 0, "num_workers": 0}
        sizes = {**dict(zip(SPLITS, (11, 5, 6, 7), strict=True)), **changes.pop("sizes", {})}
        super().__init__(sizes, **{**settings, **changes})

    def dataset(self, split: Split) -> Numbers:
        return Numbers(self.sizes[split])


def train_loader(**changes: Any) -> DataLoader[Batch]:
    return NumberData(**changes).train_dataloader()


def epoch(loader: DataLoader[Batch], number: int) -> list[int]:
    assert isinstance(loader.sampler, DistributedSampler)
    loader.sampler.set_epoch(number)
    return ids(loader)


def test_the_order_changes_with_the_epoch_and_can_be_had_again() -> None:
    loader, again = train_loader(), train_loader()
    orders = [epoch(loader, number) for number in range(3)]
    assert orders == [epoch(again, number) for number in range(3)] and len({tuple(order) for order in orders}) == 3
    assert all(len(set(order)) == 8 and set(order) < set(range(11)) for order in orders)
    # A resumed run goes straight to its epoch.
    assert epoch(train_loader(), 2) == orders[2]
    assert epoch(train_loader(seed=1), 0) != orders[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_goes_on_in_the_middle_of_an_epoch(num_workers: int) -> None:
    loader, resumed = (train_loader(sizes={"train": 13}, num_workers=num_workers) for _ in range(2))
    assert isinstance(loader, ResumableDataLoader) and isinstance(resumed, ResumableDataLoader)
    whole = ids(loader)
    batches = iter(loader)
    assert next(batches)["sample_id"].tolist() == whole[:4]
    resumed.load_state_dict(loader.state_dict())
    assert ids(resumed) == whole[4:]
    assert ids(resumed) == whole  # the next epoch is whole again


def test_held_out_samples_come_in_order_and_all_of_them() -> None:
    module = NumberData()
    loaders = (module.val_dataloader(), module.test_dataloader(), module.predict_dataloader())
    assert [ids(loader) for loader in loaders] == [list(range(size)) for size in (5, 6, 7)]


def test_a_prediction_can_do_with_some_of_the_samples() -> None:
    module = NumberData()
    module.select_predict_samples(lambda sample: sample["prompt"] in "135")
    assert ids(module.predict_dataloader()) == [1, 3, 5] and ids(module.test_dataloader()) == list(range(6))
    module.select_predict_samples(lambda sample: False)
    assert ids(module.predict_dataloader()) == []
    module.setup("predict")
    assert ids(module.predict_dataloader()) == list(range(7))


def test_ranks_share_the_samples_of_an_epoch() -> None:
    parts = []
    for rank in range(2):
        module = NumberData(sizes={"train": 16})
        module.trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
        parts.append(ids(module.train_dataloader()))
    assert len(parts[0]) == len(parts[1]) == 8 and sorted(parts[0] + parts[1]) == list(range(16))


def test_a_share_that_fills_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="train_size 3 does not fill one batch of batch_size 4"):
        NumberData(sizes={"train": 3})
    module = NumberData(sizes={"train": 7})
    assert len(module.train_dataloader()) == 1
    module.trainer = SimpleNamespace(world_size=2, global_rank=0)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="7 training samples do not fill one batch of batch_size 4 on each device"):
        module.train_dataloader()


def test_some_samples_are_spread_over_all() -> None:
    spread = SpreadSamples(Numbers(10), 4)
    assert [spread[index]["sample_id"] for index in range(len(spread))] == [0, 2, 5, 7]
    assert spread.command(2)["prompt"] == "5"
    assert len(SpreadSamples(Numbers(10), 20)) == 10 and len(SpreadSamples(Numbers(0), 4)) == 0


def test_positions_are_found_by_a_locator() -> None:
    def locate(video: Tensor) -> tuple[Tensor, Tensor]:
        return video[:, :, :2, 0, 0], torch.ones(video.shape[:2], dtype=torch.bool)

    video = torch.rand(2, 5, 3, 4, 4)
    positions, found = NumberData(locator=locate).read_positions(video, {}, "test")
    assert torch.equal(positions, video[:, :, :2, 0, 0]) and bool(found.all())
    with pytest.raises(ValueError, match="there is no locator"):
        NumberData().read_positions(video, {}, "test")
