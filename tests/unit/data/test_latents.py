"""Batches from a store: their windows, their order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
import torch
from torch import Tensor

from lightning_action import LatentDataModule, LinearVideoCodec
from lightning_action.action.schema import ActionSchema
from lightning_action.cli.encode import encode
from lightning_action.data.latent_store import LatentStore
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import EncodedData
from tests.support.latent_stores import NoiseClip, clips, frozen_parts, schema, write_store, writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, FrozenParts]:
    folder = tmp_path_factory.mktemp("store")
    return str(folder), write_store(folder)


def data(address: str, **changes: Any) -> LatentDataModule:
    settings: dict[str, Any] = {"num_latents": 3, "batch_size": 2, "eval_batch_size": 2}
    return LatentDataModule(address, **{**settings, **changes})


def samples(loader: Any) -> list[int]:
    return [int(sample) for batch in loader for sample in batch["sample_id"]]


def test_a_batch_has_what_the_frozen_parts_make(written: tuple[str, FrozenParts]) -> None:
    source, store = data(written[0], num_latents=2), LatentStore(written[0])
    windows = source.dataset("train").dataset
    batch = windows.__getitems__([5, 1])  # type: ignore[attr-defined]
    assert batch["latents"].shape == (2, 2, 5, 2, 3) and batch["sample_id"].tolist() == [5, 1]
    assert torch.equal(batch["latents"][0], store.window(1, 0, 2)) and torch.equal(
        batch["action"][0], store.action(1, 0, 2)
    )
    assert torch.equal(batch["latents"][1], store.window(0, 1, 2)) and torch.equal(
        batch["action"][1], store.action(0, 1, 2)
    )
    assert batch["prompt"] == ["two green discs", "a red disc"] and batch["frame_size"].tolist() == [[8, 12]] * 2
    assert batch["text"].shape == (2, 3, 6) and torch.equal(batch["text"][1, :3], store.text(0))
    alone = windows[5]
    assert torch.equal(alone["latents"], batch["latents"][0]) and alone["prompt"] == "two green discs"


def test_text_is_zero_past_the_end_of_a_prompt(
    written: tuple[str, FrozenParts], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatentStore, "text", lambda store, number: torch.ones(3 - 2 * number, 2))
    windows = data(written[0], num_latents=2).dataset("train").dataset
    batch = windows.__getitems__([1, 5])  # type: ignore[attr-defined]
    assert batch["text"].tolist() == [[[1, 1]] * 3, [[1, 1], [0, 0], [0, 0]]]


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({}, [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]),
        ({"latent_step": 2}, [(0, 0), (0, 2), (1, 0)]),
        ({"window_starts": "clip_start"}, [(0, 0), (1, 0)]),
        ({"window_starts": "clip_start", "num_latents": 1}, [(0, 0), (1, 0), (2, 0)]),
        ({"num_latents": 6}, [(0, 0)]),
    ],
)
def test_windows_stay_inside_their_clips(
    written: tuple[str, FrozenParts], changes: dict[str, Any], places: list[tuple[int, int]]
) -> None:
    windows = data(written[0], **changes).dataset("train").dataset
    assert [windows.place(index) for index in range(len(windows))] == places  # type: ignore[attr-defined,arg-type]


def test_held_out_windows_do_not_overlap_and_are_limited(written: tuple[str, FrozenParts]) -> None:
    source = data(written[0])
    windows = source.dataset("test").dataset
    assert [windows.place(index) for index in range(len(windows))] == [(5, 0), (5, 3)]  # type: ignore[attr-defined,arg-type]
    assert samples(source.test_dataloader()) == [0, 1]
    assert samples(data(written[0], test_size=1).test_dataloader()) == [0]
    assert samples(data(written[0], num_latents=1, predict_size=3).predict_dataloader()) == [0, 2, 4]


def test_clips_without_actions_are_beside_those_with_them(written: tuple[str, FrozenParts]) -> None:
    source = data(written[0])
    batches = list(source.val_dataloader())
    assert samples(batches) == [0, 1, 2]
    assert batches[0]["has_action"].tolist() == [False, False] and "has_action" not in batches[1]
    assert batches[0]["action"].shape == batches[1]["action"].repeat(2, 1, 1).shape
    assert torch.equal(batches[1]["action"][0], LatentStore(written[0]).action(4, 0, 3))


def test_an_epoch_has_each_window_once_and_resumes_in_the_middle(written: tuple[str, FrozenParts]) -> None:
    for num_workers in (0, 2):
        source = data(written[0], num_latents=1, batch_size=3, num_workers=num_workers)
        loader = source.train_dataloader()
        order = samples(loader)
        assert len(order) == 9 and len(set(order)) == 9 and order != sorted(order)
        loader.sampler.set_epoch(1)
        assert samples(loader) != order
        begun = iter(source.train_dataloader())
        loader = source.train_dataloader()
        next(begun)
        loader.load_state_dict({"epoch": 0, "num_given": 1})  # type: ignore[attr-defined]
        assert samples(loader) == order[3:]


def test_samples_to_predict_may_be_chosen_before_they_are_read(written: tuple[str, FrozenParts]) -> None:
    source = data(written[0], num_latents=2)
    source.setup("predict")
    seen: list[dict[str, Any]] = []
    source.select_predict_samples(lambda sample: bool(seen.append(sample)) or sample["sample_id"] != 1)
    assert samples(source.predict_dataloader()) == [0, 2]
    assert seen[0].keys() == {"sample_id", "action", "prompt"} and seen[1]["prompt"] == "a blue disc"
    assert torch.equal(seen[1]["action"], LatentStore(written[0]).action(5, 2, 2))
    source.setup("predict")
    assert samples(source.predict_dataloader()) == [0, 1, 2]


def test_a_store_may_be_read_from_an_address(written: tuple[str, FrozenParts], tmp_path: Path) -> None:
    fsspec.filesystem("memory").put(written[0], "/latents", recursive=True)
    near, far = (data(address, cache_dir=str(tmp_path / "cache")) for address in (written[0], "memory://latents"))
    for here, there in zip(near.train_dataloader(), far.train_dataloader(), strict=True):
        assert torch.equal(here["latents"], there["latents"]) and torch.equal(here["text"], there["text"])
    copied = {path.name for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert copied < {path.name for path in Path(written[0]).iterdir()}, "those of other splits are not copied"
    assert far.codec_tensors().keys() == near.codec_tensors().keys() != set()


def test_parts_that_encode_something_else_are_refused(written: tuple[str, FrozenParts]) -> None:
    source, frozen = data(written[0]), written[1]
    assert isinstance(source, EncodedData) and source.action_schema == schema()
    source.require_made_by(frozen.vae, frozen.text_encoder, schema())
    source.require_made_by(frozen.vae, frozen.text_encoder, None)
    other = LinearVideoCodec(5, 4)
    other.fit(torch.rand(4, 9, 3, 8, 12))
    with pytest.raises(ValueError, match=r"with the VAE LinearVideoCodec \w+, the model has LinearVideoCodec \w+: use"):
        source.require_made_by(other, frozen.text_encoder, schema())
    with pytest.raises(
        ValueError, match="with the action schema .*alignment='transition'.*, the model has .*'per_latent'"
    ):
        source.require_made_by(frozen.vae, frozen.text_encoder, ActionSchema(alignment="per_latent"))

    class OtherText(HashingTextEncoder):
        pass

    with pytest.raises(ValueError, match="with the text encoder HashingTextEncoder, the model has OtherText"):
        source.require_made_by(frozen.vae, OtherText(6, 4), schema())


def test_settings_that_give_nothing_are_refused(written: tuple[str, FrozenParts]) -> None:
    with pytest.raises(ValueError, match="no train clip of at least num_latents 7 latent frames"):
        data(written[0], num_latents=7).train_dataloader()
    with pytest.raises(ValueError, match="do not fill one batch of batch_size 6 on each device"):
        data(written[0], batch_size=6).train_dataloader()
    with pytest.raises(ValueError, match="latent_step must be a whole number of at least 1, got 0"):
        data(written[0], latent_step=0)
    with pytest.raises(ValueError, match="anywhere or clip_start, got 'everywhere'"):
        data(written[0], window_starts="everywhere")


def middle(video: Tensor) -> tuple[Tensor, Tensor]:
    """Takes the brightest red for the object."""
    size = video.shape[:2]
    place = video[:, :, 0].flatten(2).argmax(dim=2)
    return torch.stack([place % 12, place // 12], dim=2).float(), torch.ones(size, dtype=torch.bool)


def test_positions_are_those_of_the_frames(tmp_path: Path, written: tuple[str, FrozenParts]) -> None:
    frozen = frozen_parts()
    encode(writer(tmp_path, frozen), frozen, clips(), torch.device("cpu"), middle)
    source = data(str(tmp_path), locator=middle)
    (batch,) = source.test_dataloader()
    videos = torch.stack([clips()["test"][0].video(4 * start, 9) for start in (0, 3)])
    assert torch.equal(batch["position"], middle(videos)[0])
    assert torch.equal(source.read_positions(videos, batch, "test")[0], batch["position"])
    assert "position" not in next(iter(data(str(tmp_path)).test_dataloader()))
    with pytest.raises(ValueError, match="there is no locator"):
        data(str(tmp_path)).read_positions(videos, batch, "test")
    with pytest.raises(ValueError, match="has no positions: give a locator to the data, and encode it"):
        data(written[0], locator=middle).test_dataloader()


def test_a_store_without_actions_says_nothing_of_them(tmp_path: Path) -> None:
    frozen = frozen_parts()
    encode(writer(tmp_path, frozen), frozen, {"train": [NoiseClip("a", 21, 1, has_actions=False)]}, torch.device("cpu"))
    source = data(str(tmp_path))
    assert source.action_schema is None and next(iter(source.train_dataloader()))["action"] is None
    assert source.val_dataloader() == []
    with pytest.raises(ValueError, match="with the action schema None, the model has"):
        source.require_made_by(frozen.vae, frozen.text_encoder, schema())


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_ranks_share_the_windows(written: tuple[str, FrozenParts]) -> None:
    given = []
    for rank in range(2):
        source = data(written[0], num_latents=1, batch_size=1, num_workers=4)
        source.trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
        given.append(samples(source.train_dataloader()))
    assert len(given[0]) == len(given[1]) == 5 and set(given[0]) | set(given[1]) == set(range(10))
