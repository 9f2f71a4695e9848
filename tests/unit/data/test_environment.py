"""Every sample follows from (seed, split, index), in whatever batch, order and process it is played."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_action import EnvironmentDataModule
from lightning_action.batch import Batch, check_batch, check_pixels
from lightning_action.configuration.class_paths import only_importing
from lightning_action.data.split_data import SPLITS, Split
from lightning_action.evaluation.known_state import StateReader
from lightning_action.frozen.interfaces import CodecVideos
from tests.support.dot_world import DotWorld, locate
from tests.support.split_batches import equal, ids, loaders

ENV = "tests.support.dot_world:DotWorld"
POSITION = "tests.support.dot_world:place_of"
# Of 3 latent frames at ratio 3.
NUM_FRAMES = 7


def data(**changes: Any) -> EnvironmentDataModule:
    sizes = {"train_size": 11, "validation_size": 5, "test_size": 6, "predict_size": 3}
    shape = {"num_latents": 3, "temporal_compression_ratio": 3, "batch_size": 4, "eval_batch_size": 5}
    return EnvironmentDataModule(**{"env": ENV, "prompt": "a dot", "locator": locate, **shape, **sizes, **changes})


def test_batches_have_the_documented_keys_and_shapes() -> None:
    shapes = []
    for split, loader in loaders(data()).items():
        for batch in loader:
            size = len(batch["prompt"])
            shapes.append((split, size))
            assert {key: tuple(value.shape) for key, value in batch.items() if isinstance(value, Tensor)} == {
                "video": (size, NUM_FRAMES, 3, 32, 48),
                "action": (size, NUM_FRAMES - 1, 2),
                "position": (size, NUM_FRAMES, 2),
                "sample_id": (size,),
            }
            check_batch(batch)
            check_pixels(batch)
            assert set(batch["prompt"]) == {"a dot"} and batch["video"].dtype == batch["action"].dtype == torch.float32
    # An incomplete batch is left out of training only.
    assert shapes == [("train", 4), ("train", 4), ("validation", 5), ("test", 5), ("test", 1), ("predict", 3)]


def test_an_action_leads_from_its_frame_to_the_next() -> None:
    sample = data(position=POSITION).dataset("test")[2]
    moved = sample["position"][:-1] + sample["action"]
    room = torch.tensor([48.0, 32.0]) - 3
    torch.testing.assert_close(sample["position"][1:], moved.clamp(min=torch.tensor(3.0), max=room))
    assert sample["action"].abs().max() > 0.5


def test_a_frame_is_what_the_environment_renders() -> None:
    sample, env = data(position=POSITION).dataset("train")[0], DotWorld()
    for frame, place in zip(sample["video"], sample["position"], strict=True):
        env.place = place.numpy()
        rendered = torch.from_numpy(env.render()).permute(2, 0, 1) / 127.5 - 1
        # The place is known in float32 alone, so a value that lies between two may be rounded to either.
        torch.testing.assert_close(frame, rendered, atol=1.01 / 127.5, rtol=0)


@pytest.mark.parametrize("split", SPLITS)
def test_a_sample_is_the_same_in_every_order(split: Split) -> None:
    one, other = data().dataset(split), data().dataset(split)
    forward = {index: one[index] for index in (0, 2, 1)}
    backward = {index: other[index] for index in (1, 2, 0)}
    assert all(equal(forward[index], backward[index]) for index in range(3))


def test_splits_seeds_and_indices_are_other_videos() -> None:
    samples = [data(seed=seed).dataset(split)[index] for seed in (0, 1) for split in SPLITS for index in range(3)]
    assert len({tuple(sample["action"].flatten().tolist()) for sample in samples}) == 2 * 4 * 3


def test_processes_play_what_one_process_plays() -> None:
    assert equal(
        next(iter(data(num_workers=2).val_dataloader())),
        next(iter(data().val_dataloader())),
    )
    dataset = data().dataset("test")
    assert equal(pickle.loads(pickle.dumps(dataset))[1], dataset[1])


def test_a_prediction_can_do_with_some_of_the_samples() -> None:
    module, seen = data(), []

    def is_odd(sample: Batch) -> bool:
        seen.append(sample)
        return int(sample["sample_id"]) % 2 == 1

    module.select_predict_samples(is_odd)
    assert ids(module.predict_dataloader()) == [1]
    for index, command in enumerate(seen):
        sample = module.dataset("predict")[index]
        assert command.keys() == {"sample_id", "action", "prompt"}
        assert equal(command, {key: sample[key] for key in command})
    module.setup("predict")
    assert ids(module.predict_dataloader()) == [0, 1, 2]


def test_positions_are_known_or_read_off_the_videos() -> None:
    for module in (data(), data(position=POSITION), data(position=POSITION, frame_size=(16, 36))):
        assert isinstance(module, StateReader)
        (batch,) = module.val_dataloader()
        positions, found = module.read_positions(batch["video"], batch, "validation")
        assert bool(found.all())
        # Centroids of a disc whose edge is one pixel soft, and after resizing.
        torch.testing.assert_close(positions, batch["position"], atol=0.2, rtol=0)
    blind = data(locator=None)
    (batch,) = blind.val_dataloader()
    assert "position" not in batch
    with pytest.raises(ValueError, match="there is no locator"):
        blind.read_positions(batch["video"], batch, "validation")


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("box", [("continuous", 2)]),
        ("discrete", [("discrete", 5)]),
        ("multi_binary", [("multi_hot", 4)]),
        ("multi_discrete", [("discrete", 3), ("discrete", 3)]),
    ],
)
def test_the_schema_follows_from_the_action_space(kind: str, parts: list[tuple[str, int]]) -> None:
    module = data(env_kwargs={"actions": kind})
    assert [(part.kind, part.size) for part in module.action_schema.parts] == parts
    (batch,) = module.val_dataloader()
    vectors, present = module.action_schema.encode(batch["action"], num_latents=3)
    assert vectors.shape == (5, 3, module.action_schema.action_dim) and present[0].tolist() == [False, True, True]
    assert vectors.abs().max() == 1 or (kind == "box" and 0.8 < vectors.abs().max() < 1)


def test_videos_for_a_codec_are_training_videos() -> None:
    module = data()
    assert isinstance(module, CodecVideos)
    expected = torch.stack([module.dataset("train")[index]["video"] for index in range(3)])
    assert torch.equal(module.codec_videos(3), expected)
    assert len(module.codec_videos()) == 11


def test_clips_are_the_samples() -> None:
    module = data()
    clips, dataset = module.clips("test"), module.dataset("test")
    assert len(clips) == len(list(clips)) == 6 and [clip.name for clip in clips[1:3]] == [
        "test-1-seed-0",
        "test-2-seed-0",
    ]
    clip, sample = clips[-1], dataset[5]
    assert (clip.num_frames, clip.fps, clip.prompt, clip.has_actions) == (NUM_FRAMES, 10, "a dot", True)
    assert torch.equal(clip.video(0, NUM_FRAMES), sample["video"])
    assert torch.equal(clip.video(2, 4), sample["video"][2:6])
    assert torch.equal(clip.action(2, 4), sample["action"][2:5])
    with pytest.raises(ValueError, match=r"test-5-seed-0 has 7 frames, not 4 from 5 on"):
        clip.video(5, 4)


def test_a_clip_that_is_read_in_parts_is_played_once() -> None:
    """A second play would differ, for no seed governs this world."""
    restless = data(env="tests.support.dot_world:RestlessDotWorld", position=POSITION)
    clip, other = restless.clips("test")[:2]
    parts = torch.cat([clip.video(0, 3), clip.video(3, 4)])
    assert clip.prompt == "a dot" and torch.equal(clip.action(0, 3), clip.action(0, 7)[:2])
    assert torch.equal(parts, clip.video(0, 7))
    other.video(0, 1)
    assert not torch.equal(parts, clip.video(0, 7))


def test_episodes_that_are_too_short_are_begun_again_or_refused() -> None:
    assert data(env_kwargs={"end_after": NUM_FRAMES}).dataset("test")[0]["video"].shape[0] == NUM_FRAMES
    message = "sample 3: of 20 episodes of tests.support.dot_world:DotWorld the longest had 6 frames .* a video has 7"
    with pytest.raises(ValueError, match=message):
        data(env_kwargs={"end_after": NUM_FRAMES - 1}).dataset("test")[3]


def test_lucky_episodes_are_found() -> None:
    """A dot that leaves the left half ends the episode: some samples need several attempts, and stay the same."""
    ending = {"end_right_of": 24.0}
    dataset, again = (data(env_kwargs=ending, position=POSITION).dataset("train") for _ in range(2))
    for index in range(5):
        assert dataset[index]["position"][:-1, 0].max() <= 24 and equal(dataset[index], again[index])
    free = data(position=POSITION).dataset("train")
    assert any(not equal(dataset[index], free[index]) for index in range(5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env": "NoSuch-v0"}, "cannot make the environment 'NoSuch-v0'"),
        ({"policy": "expert"}, "the policy is random, hold, or module:name"),
        ({"policy": "tests.support.dot_world:nobody"}, "no attribute 'nobody'"),
        ({"env_kwargs": {"actions": "unbounded"}}, "has no bounds: wrap the environment"),
        ({"env_kwargs": {"actions": "dict"}}, "is none of Box"),
        ({"train_size": 3}, "train_size 3 does not fill one batch of batch_size 4"),
        ({"position": POSITION, "locator": None}, "nothing finds it in generated videos: add locator"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        data(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, "tests.support.dot_world.DotWorld"),
        ({"env": "tests.support.dot_world:Dot-v0"}, "tests.support.dot_world"),
        ({"env": "math:pi", "policy": "tests.support.dot_world:to_the_right"}, "math.pi"),
    ],
)
def test_a_configuration_imports_only_what_is_allowed(changes: dict[str, Any], named: str) -> None:
    module = named.partition(".")[0]
    with (
        pytest.raises(ValueError, match=f"names '{named}', which is neither .* nor allowed: .* --allow {module} "),
        only_importing(),
    ):
        data(**changes)
    with only_importing(["tests"]):
        data(policy="tests.support.dot_world:to_the_right", position=POSITION)
    for name in ("policy", "position"):
        with pytest.raises(ValueError, match="names 'math.sin'"), only_importing(["tests"]):
            data(**{name: "math:sin"})


def test_a_configuration_can_say_it_all() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(EnvironmentDataModule, "data")
    arguments = {"env": ENV, "env_kwargs": {"size": [16, 20]}, "locator": "tests.support.dot_world.locate"}
    arguments |= {"frame_size": [32, 40], "num_latents": 2}
    config = {"class_path": "lightning_action.EnvironmentDataModule", "init_args": arguments}
    with only_importing(["tests"]):
        module = parser.instantiate_classes(parser.parse_object({"data": config})).data
    assert module.dataset("test")[0]["video"].shape == (5, 3, 32, 40)
    assert module.locator is locate
