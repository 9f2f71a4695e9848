"""Every sample follows from (seed, split, index), in whatever batch and order it comes."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from lightning_action.batch import Batch
from lightning_action.data.split_data import SPLITS, Split
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.evaluation.known_state import Simulator, StateReader
from lightning_action.frozen.interfaces import CodecVideos
from tests.support.split_batches import equal, ids, loaders

# Of 3 latent frames at ratio 3.
NUM_FRAMES = 7


def data(**changes: Any) -> SpriteDataModule:
    sizes = {"train_size": 11, "validation_size": 5, "test_size": 6, "predict_size": 2}
    world = MovingSpriteWorld(image_size=20, sprite_radius=3.0)
    return SpriteDataModule(
        **{
            "world": world,
            "num_latents": 3,
            "temporal_compression_ratio": 3,
            "batch_size": 4,
            "eval_batch_size": 5,
            **sizes,
            **changes,
        }
    )


def test_batches_have_the_documented_keys_and_shapes() -> None:
    shapes = []
    for split, loader in loaders(data()).items():
        for batch in loader:
            size = len(batch["prompt"])
            shapes.append((split, size))
            assert {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, Tensor)} == {
                "video": (size, NUM_FRAMES, 3, 20, 20),
                "action": (size, NUM_FRAMES - 1, 2),
                "position": (size, NUM_FRAMES, 2),
                "sample_id": (size,),
            }
            assert all(isinstance(prompt, str) for prompt in batch["prompt"])
            assert batch["video"].dtype == batch["action"].dtype == batch["position"].dtype == torch.float32
            assert batch["video"].abs().max() <= 1
    # An incomplete batch is left out of training only.
    assert shapes == [("train", 4), ("train", 4), ("validation", 5), ("test", 5), ("test", 1), ("predict", 2)]


def test_a_sample_is_a_sample_of_a_batch() -> None:
    sample = data().dataset("train")[3]
    assert {key: tuple(value.shape) for key, value in sample.items() if isinstance(value, Tensor)} == {
        "video": (NUM_FRAMES, 3, 20, 20),
        "action": (NUM_FRAMES - 1, 2),
        "position": (NUM_FRAMES, 2),
        "sample_id": (),
    }
    assert isinstance(sample["prompt"], str)


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_is_the_same_in_every_batch(split: Split) -> None:
    one, other = data().dataset(split), data().dataset(split)
    indices = [5, 0, 3]
    batch = one.batch(indices)
    assert equal(batch, other.__getitems__(indices))
    for row, index in enumerate(indices):
        assert equal(other[index], {key: value[row] for key, value in batch.items()})
    assert batch["sample_id"].tolist() == indices


def test_a_batch_is_what_the_simulator_says() -> None:
    module = data()
    batch = module.dataset("test").batch([1, 4])
    start = module.world.start(module.dataset("test").seeds([1, 4]))
    positions = module.world.simulate(start, batch["action"])
    assert torch.equal(positions, batch["position"])
    assert torch.equal(module.world.render(start, positions), batch["video"])
    assert batch["prompt"] == start.prompts


def test_splits_seeds_and_indices_are_other_worlds() -> None:
    batches = [data(seed=seed).dataset(split).batch(range(3)) for seed in (0, 1) for split in SPLITS]
    starts = [tuple(position[0].tolist()) for batch in batches for position in batch["position"]]
    assert len(set(starts)) == 2 * 4 * 3
    seeds = [seed for seed in (0, 1) for split in SPLITS for seed in data(seed=seed).dataset(split).seeds(range(100))]
    assert len(set(seeds)) == 2 * 4 * 100


def test_the_sizes_of_splits_change_no_sample() -> None:
    small, large = data(), data(train_size=1000, num_latents=3, batch_size=7)
    assert equal(small.dataset("train").batch([2, 9]), large.dataset("train").batch([2, 9]))
    assert [len(small.dataset(split)) for split in SPLITS] == [11, 5, 6, 2]


def test_a_prediction_can_do_with_some_of_the_samples() -> None:
    module = data(predict_size=7)
    seen: list[Batch] = []

    def is_odd(sample: Batch) -> bool:
        seen.append(sample)
        return int(sample["sample_id"]) % 2 == 1

    module.select_predict_samples(is_odd)
    (batch,) = module.predict_dataloader()
    assert batch["sample_id"].tolist() == [1, 3, 5]
    assert equal(batch, module.dataset("predict").batch([1, 3, 5]))
    for index, command in enumerate(seen):
        assert command.keys() == {"sample_id", "action", "prompt"}
        sample = module.dataset("predict")[index]
        assert equal(command, {name: sample[name] for name in command})
    assert ids(module.test_dataloader()) == list(range(6))
    module.select_predict_samples(lambda sample: False)
    assert ids(module.predict_dataloader()) == []
    module.setup("predict")
    assert ids(module.predict_dataloader()) == list(range(7))


def test_positions_are_read_off_the_videos_of_a_split() -> None:
    module = data()
    assert isinstance(module, StateReader) and isinstance(module, Simulator)
    for split in ("validation", "test"):
        batch = module.dataset(split).batch([4, 0, 2])
        positions, found = module.read_positions(batch["video"], batch, split)
        assert bool(found.all())
        # As exact as pixels with a soft edge allow, see the simulator's own tests.
        torch.testing.assert_close(positions, batch["position"], atol=0.15, rtol=0)
        wrong, _ = module.read_positions(batch["video"].flip(0), batch, split)
        assert (wrong - batch["position"]).abs().max() > 1


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_actions_are_played_from_the_starts_of_a_split(kind: Literal["continuous", "discrete"]) -> None:
    module = data(world=MovingSpriteWorld(image_size=20, sprite_radius=3.0, action_kind=kind))
    batch = module.dataset("validation").batch([4, 0, 2])
    video, positions = module.simulate({"sample_id": batch["sample_id"], "action": batch["action"]}, "validation")
    assert torch.equal(video, batch["video"]) and torch.equal(positions, batch["position"])
    other = {**batch, "action": batch["action"].roll(1, dims=0)}
    video, positions = module.simulate(other, "validation")
    assert torch.equal(video[:, 0], batch["video"][:, 0]) and not torch.equal(video[:, -1], batch["video"][:, -1])
    assert torch.equal(
        positions,
        module.world.simulate(module.world.start(module.dataset("validation").seeds([4, 0, 2])), other["action"]),
    )
    assert not torch.equal(module.simulate(batch, "test")[0][:, 0], batch["video"][:, 0])


def test_videos_for_a_codec_are_training_videos() -> None:
    module = data()
    assert isinstance(module, CodecVideos)
    assert torch.equal(module.codec_videos(3), module.dataset("train").batch([0, 1, 2])["video"])
    assert len(module.codec_videos()) == 11


def test_the_schema_fits_the_batches() -> None:
    module = data()
    batch = module.dataset("train").batch([0, 1])
    vectors, present = module.action_schema.encode(batch["action"], num_latents=3)
    assert vectors.shape == (2, 3, 6)
    assert torch.equal(vectors[:, 1:].flatten(1), batch["action"].flatten(1))
    assert present.tolist() == [[False, True, True]] * 2
