"""What was finished is known from the files alone, whoever wrote them and wherever he was killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.data.latent_store import PROMPTS, LatentStore, StoredClip
from lightning_action.data.latent_writer import StoreWriter, write_once
from lightning_action.frozen.holder import FrozenParts
from lightning_action.weights.safetensors_files import read_safetensors
from tests.support.latent_stores import NoiseClip, frozen_parts, schema, writer


@pytest.fixture(scope="module")
def frozen() -> FrozenParts:
    return frozen_parts()


def entry(number: int, num_latents: int = 2) -> StoredClip:
    return StoredClip(f"clip {number}", num_latents, 5, 10.0, "a red disc", True)


def tensors(number: int, num_latents: int = 2) -> Mapping[str, Tensor]:
    latents = torch.full((num_latents, 5, 2, 3), float(number))
    return {"latents": latents, "first": -latents, "action": torch.ones(schema().num_rows(num_latents), 2)}


def files(folder: Path, pattern: str = "latents-*") -> list[str]:
    return sorted(path.name for path in folder.glob(pattern))


def test_clips_are_joined_to_shards(frozen: FrozenParts, tmp_path: Path) -> None:
    store = writer(tmp_path, frozen, max_shard_bytes=5000)
    sizes = []
    for number in range(5):
        store.add(number, entry(number), tensors(number))
        sizes.append((len(files(tmp_path)), len(files(tmp_path, "unmerged/0/*"))))
    assert sizes[0] == (0, 1) and sizes[-1][0] >= 1, sizes
    assert {clip.name for clip in store.recover().values()} == {f"clip {number}" for number in range(5)}
    store.merge()
    assert files(tmp_path, "unmerged/0/*") == []
    store.write_prompts(["a red disc"], lambda prompt: torch.ones(2, 6))
    assert store.write_index({"train": [NoiseClip(f"clip {number}", 5, 0) for number in range(5)]}) == 0
    store.tidy()
    assert not (tmp_path / "unmerged").exists()
    read = LatentStore(str(tmp_path))
    for number in range(5):
        assert torch.equal(read.window(number, 0, 2), tensors(number)["latents"])
        assert torch.equal(read.window(number, 1, 1), -torch.full((1, 5, 2, 3), float(number)))


def test_a_kill_between_two_steps_leaves_nothing_twice(frozen: FrozenParts, tmp_path: Path) -> None:
    store = writer(tmp_path, frozen, max_shard_bytes=10**9)
    for number in range(3):
        store.add(number, entry(number), tensors(number))
    kept = {path: path.read_bytes() for path in (tmp_path / "unmerged" / "0").iterdir()}
    store.merge()
    for path, content in kept.items():  # killed before they were removed
        path.write_bytes(content)
    (tmp_path / "unmerged" / "0" / ".000007.safetensors-0123").write_bytes(b"half")
    again = writer(tmp_path, frozen)
    assert again.recover().keys() == {"clip 0", "clip 1", "clip 2"}
    again.merge()
    assert len(files(tmp_path)) == 1 and files(tmp_path, "unmerged/0/0*") == []


def test_a_process_takes_over_what_one_without_a_number_left(frozen: FrozenParts, tmp_path: Path) -> None:
    writer(tmp_path, frozen, rank=3, world_size=4).add(3, entry(3), tensors(3))
    other = writer(tmp_path, frozen, rank=0, world_size=2)
    other.recover()
    other.merge()
    assert files(tmp_path) == [], "it is that of rank 1 of 2"
    writer(tmp_path, frozen, rank=1, world_size=2).merge()
    assert len(files(tmp_path)) == 1 and other.recover().keys() == {"clip 3"}


def test_the_index_waits_for_all_clips_and_prompts(frozen: FrozenParts, tmp_path: Path) -> None:
    wanted = {"train": [NoiseClip("clip 0", 5, 0), NoiseClip("clip 1", 5, 0)]}
    first, second = (writer(tmp_path, frozen, rank=rank, world_size=2) for rank in range(2))
    first.add(0, entry(0), tensors(0))
    first.merge()
    assert first.write_index(wanted) == 1
    second.add(1, entry(1), tensors(1))
    assert second.write_index(wanted) == 1, "what is not in a shard is in no index"
    second.merge()
    assert second.write_index(wanted) == 1 and not (tmp_path / "index.json").exists(), "there are no prompts"
    first.write_prompts(["a red disc"], lambda prompt: torch.ones(2, 6))
    assert second.write_index(wanted) == 0 and (tmp_path / "index.json").exists()


def test_prompts_are_encoded_once(frozen: FrozenParts, tmp_path: Path) -> None:
    store, encoded = writer(tmp_path, frozen), []

    def encode(prompt: str) -> Tensor:
        encoded.append(prompt)
        return torch.full((len(prompt), 6), 1.0)

    for _ in range(2):
        store.write_prompts(["ab", "c", "ab"], encode)
    assert encoded == ["ab", "c"]
    assert {name: len(text) for name, text in read_safetensors(tmp_path / PROMPTS).items()} == {"0": 2, "1": 1}
    store.write_prompts(["ab", "c", "d"], encode)
    assert encoded[2:] == ["ab", "c", "d"]


def test_another_vae_does_not_go_on_with_a_store(frozen: FrozenParts, tmp_path: Path) -> None:
    writer(tmp_path, frozen).add(0, entry(0), tensors(0))
    with pytest.raises(ValueError, match=r"was begun with dtype float32, now it is bfloat16: give a new"):
        writer(tmp_path, frozen, dtype="bfloat16").recover()
    codec = frozen.vae.fitted_tensors()["first.mean"]  # type: ignore[attr-defined]
    codec += 1
    try:
        with pytest.raises(ValueError, match="was begun with vae LinearVideoCodec .*, now it is LinearVideoCodec "):
            writer(tmp_path, frozen).recover()
    finally:
        codec -= 1


def test_a_damaged_file_is_named(frozen: FrozenParts, tmp_path: Path) -> None:
    (tmp_path / "latents-000000-0.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"000000-0.safetensors is no file of a store of latents \(it is damaged"):
        writer(tmp_path, frozen).recover()


def test_the_first_one_that_writes_a_file_wins(tmp_path: Path) -> None:
    for number in range(2):
        write_once(tmp_path / "codec.safetensors", {"a": torch.tensor([float(number)])})
    assert read_safetensors(tmp_path / "codec.safetensors")["a"].tolist() == [0.0]
    assert files(tmp_path, "*") == ["codec.safetensors"]


def test_statistics_are_of_training_clips_with_actions(frozen: FrozenParts, tmp_path: Path) -> None:
    store = writer(tmp_path, frozen)
    for number in range(2):
        store.add(number, entry(number), {**tensors(number), "action": torch.full((4, 2), 10.0 * number)})
    store.merge()
    store.write_prompts(["a red disc"], lambda prompt: torch.ones(2, 6))
    store.write_index({"train": [NoiseClip("clip 1", 5, 0)], "test": [NoiseClip("clip 0", 5, 0)]})
    statistics = json.loads((tmp_path / "index.json").read_text())["statistics"]
    assert [(column["low"], column["high"]) for column in statistics] == [(10.0, 10.0)] * 2


def test_world_of_one_is_the_default(frozen: FrozenParts, tmp_path: Path) -> None:
    store = StoreWriter(tmp_path, writer(tmp_path, frozen).encoding, 10)
    assert (store.rank, store.world_size) == (0, 1)
