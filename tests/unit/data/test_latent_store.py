"""Windows that a store gives are what encoding them on the fly gives, where the codec has no memory."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_action.action.schema import Alignment
from lightning_action.cli.encode import encode
from lightning_action.data.latent_store import INDEX, LatentStore, StoredClip, StoreIndex
from lightning_action.frozen.holder import FrozenParts
from tests.support.latent_stores import RATIO, NoiseClip, clips, frozen_parts, write_store, writer


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FrozenParts]:
    folder = tmp_path_factory.mktemp("store")
    return folder, write_store(folder)


@pytest.mark.parametrize(("start", "num_latents"), [(0, 6), (0, 1), (1, 3), (2, 4), (5, 1)])
def test_a_window_is_what_encoding_it_gives(written: tuple[Path, FrozenParts], start: int, num_latents: int) -> None:
    folder, frozen = written
    store, clip = LatentStore(str(folder)), clips()["train"][0]
    num_frames = 1 + RATIO * (num_latents - 1)
    expected = frozen.encode_video(clip.video(RATIO * start, num_frames)[None])[0]
    window = store.window(0, start, num_latents)
    torch.testing.assert_close(window, expected, atol=1e-6, rtol=0)
    assert torch.equal(store.action(0, start, num_latents), clip.action(RATIO * start, num_frames))
    if start:
        of_clip = frozen.encode_video(clip.video(0, clip.num_frames)[None])[0]
        assert (window[0] - of_clip[start]).abs().max() > 0.1, "the first latent of a window stands for one frame"


@pytest.mark.parametrize("alignment", ["transition", "state", "per_latent"])
def test_action_rows_are_those_of_the_pixel_frames(alignment: Alignment, tmp_path: Path) -> None:
    frozen = frozen_parts()
    clip = NoiseClip("a", 21, 1, alignment=alignment)
    assert encode(writer(tmp_path, frozen, alignment=alignment), frozen, {"train": [clip]}, torch.device("cpu")) == 0
    store = LatentStore(str(tmp_path))
    for start, num_latents in ((0, 6), (2, 3), (5, 1)):
        expected = clip.action(RATIO * start, 1 + RATIO * (num_latents - 1))
        assert torch.equal(store.action(0, start, num_latents), expected)


def test_prompts_and_codec(written: tuple[Path, FrozenParts]) -> None:
    folder, frozen = written
    store = LatentStore(str(folder))
    assert store.index.prompts == ["a red disc", "two green discs", "a blue disc"]
    encoded = frozen.encode_text(["two green discs", "a red disc"])
    assert torch.equal(store.text(1), encoded[0, :3]) and torch.equal(store.text(0), encoded[1, :3])
    fitted = frozen.vae.fitted_tensors()  # type: ignore[attr-defined]
    assert store.codec_tensors().keys() == fitted.keys()
    assert all(torch.equal(tensor, fitted[name]) for name, tensor in store.codec_tensors().items())
    assert store.index.encoding.vae == frozen.vae.identity()


def test_a_worker_opens_files_of_its_own(written: tuple[Path, FrozenParts]) -> None:
    store = LatentStore(str(written[0]))
    window = store.window(0, 1, 3)
    copied = pickle.loads(pickle.dumps(store))
    assert torch.equal(copied.window(0, 1, 3), window) and store._open and copied._open is not store._open


def test_latents_may_be_stored_in_half_the_space(written: tuple[Path, FrozenParts], tmp_path: Path) -> None:
    write_store(tmp_path, "bfloat16")
    window = LatentStore(str(tmp_path)).window(0, 1, 3)
    assert window.dtype == torch.bfloat16
    assert torch.equal(window, LatentStore(str(written[0])).window(0, 1, 3).bfloat16())


def test_an_index_is_read_as_it_was_written(written: tuple[Path, FrozenParts]) -> None:
    values = json.loads((written[0] / INDEX).read_text())
    index = StoreIndex.from_dict(values)
    assert json.loads(json.dumps(index.to_dict())) == values
    assert "labels" not in values["encoding"]["schema"]["parts"][0]
    assert [clip.num_latents for clip in index.clips] == [6, 3, 1, 6, 4, 6]
    assert index.splits == {"train": [0, 1, 2], "validation": [3, 4], "test": [5], "predict": [5]}
    assert [column["name"] for column in index.statistics] == ["move_0", "move_1"]
    rows = torch.cat([clip.action(0, 1 + 4 * ((clip.num_frames - 1) // 4)) for clip in clips()["train"]])
    assert index.statistics[0]["mean"] == pytest.approx(rows[:, 0].mean().item())
    assert (index.statistics[1]["low"], index.statistics[1]["high"]) == (rows[:, 1].min(), rows[:, 1].max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "expected format 1 of a store of latents, got 2"),
        ({"clips": [{"name": "a"}]}, "it is not whole"),
        ({"splits": {"train": [99]}}, "a split names a clip that it does not hold"),
        ({"encoding": {}}, "it is not whole: KeyError"),
    ],
)
def test_a_damaged_index_is_refused(
    written: tuple[Path, FrozenParts], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    values = json.loads((written[0] / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=f"is no index of a store: {message}"):
        LatentStore(str(tmp_path))


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no index.json in .*: give the folder that `encode` wrote"):
        LatentStore(str(tmp_path))
    for text in ("{", "[1]", '"x"'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(ValueError, match="is no index of a store"):
            LatentStore(str(tmp_path))


@pytest.mark.parametrize("shard", ["../latents.safetensors", "/etc/passwd", "a\\b"])
def test_an_index_that_points_outside_its_folder_is_refused(shard: str) -> None:
    with pytest.raises(ValueError, match="in a file of the store"):
        StoredClip("a", 1, 1, 10.0, "", False, shard=shard)


def test_damaged_and_missing_shards_are_named(tmp_path: Path) -> None:
    write_store(tmp_path)
    store = LatentStore(str(tmp_path))
    first = store.index.clips[0]
    with pytest.raises(ValueError, match=rf"a in {first.shard} has no latent frames 4 to 9"):
        store.window(0, 4, 6)
    shard = tmp_path / first.shard
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(ValueError, match=rf"{first.shard} of the store .* is damaged"):
        LatentStore(str(tmp_path)).window(0, 0, 2)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"has no file {first.shard}"):
        LatentStore(str(tmp_path)).window(0, 0, 2)
