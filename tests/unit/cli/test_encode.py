"""The verb `encode`: what it shares out, finds again, and refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_action import LatentDataModule
from lightning_action.cli import main
from lightning_action.cli.encode import (
    EncodeCLI,
    clips_of,
    encode,
    encoding_of,
    frame_size_of,
    prepare_frozen,
    run_encode,
)
from lightning_action.cli.support.folder_lock import FolderLock
from lightning_action.data.action_file import ActionFileDataModule
from lightning_action.data.latent_store import CODEC, INDEX, LatentStore
from lightning_action.frozen.interfaces import FittedCodec
from lightning_action.weights.safetensors_files import read_safetensors
from tests.support.latent_stores import NoiseClip, clips, frozen_parts, schema, writer
from tests.support.small_commands import small
from tests.support.sprite_module import build, data

CPU = torch.device("cpu")


def command(folder: Path, *more: str) -> list[str]:
    return small("encode", folder, "--model.pretrained=null", f"--output={folder / 'store'}", *more)[1:]


def test_ranks_share_the_clips_and_the_last_one_writes_the_index(tmp_path: Path) -> None:
    frozen = frozen_parts()
    left = [encode(writer(tmp_path, frozen, rank, 3), frozen, clips(), CPU) for rank in (2, 0, 1)]
    assert left[0] == 4 and left[1] == 2 and left[2] == 0, left
    store, alone = LatentStore(str(tmp_path)), tmp_path / "alone"
    assert encode(writer(alone, frozen), frozen, clips(), CPU) == 0
    expected = LatentStore(str(alone))
    assert [replace(clip, shard="") for clip in store.index.clips] == [
        replace(clip, shard="") for clip in expected.index.clips
    ]
    for number, clip in enumerate(store.index.clips):
        assert torch.equal(store.window(number, 0, clip.num_latents), expected.window(number, 0, clip.num_latents))


def test_what_is_finished_is_not_encoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, read = frozen_parts(), []
    video = NoiseClip.video
    monkeypatch.setattr(NoiseClip, "video", lambda clip, *args: (read.append(clip.name), video(clip, *args))[1])
    begun = {"train": clips()["train"][:2]}
    assert encode(writer(tmp_path, frozen), frozen, begun, CPU) == 0 and sorted(read) == ["a", "b"]
    assert encode(writer(tmp_path, frozen), frozen, clips(), CPU) == 0 and sorted(read) == list("abcdef")
    index = (tmp_path / INDEX).read_bytes()
    assert encode(writer(tmp_path, frozen), frozen, clips(), CPU) == 0 and len(read) == 6
    assert (tmp_path / INDEX).read_bytes() == index


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 25}, "num_frames 21, now 25"),
        ({"prompt": "another", "fps": 5.0}, "fps 10.0, now 5.0; prompt 'a red disc', now 'another'"),
        ({"has_actions": False}, "has_actions True, now False"),
    ],
)
def test_data_that_has_changed_does_not_go_on_with_a_store(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    frozen, clip = frozen_parts(), NoiseClip("a", 21, 1)
    encode(writer(tmp_path, frozen), frozen, {"train": [clip]}, CPU)
    with pytest.raises(ValueError, match=rf"holds another clip 'a' \({message}\): the data has changed"):
        encode(writer(tmp_path, frozen), frozen, {"train": [replace(clip, **change)]}, CPU)


def test_the_codec_is_fitted_once_and_kept(tmp_path: Path) -> None:
    first, second = build(), build()
    prepare_frozen(first, data(), tmp_path)
    kept = (tmp_path / CODEC).read_bytes()
    prepare_frozen(second, data(seed=7), tmp_path)
    assert isinstance(second.frozen.vae, FittedCodec) and second.frozen.vae.identity() == first.frozen.vae.identity()
    assert (tmp_path / CODEC).read_bytes() == kept
    expected = build().frozen.vae
    expected.fit(data().codec_videos())  # type: ignore[attr-defined]
    assert expected.identity() == first.frozen.vae.identity()
    assert read_safetensors(tmp_path / CODEC).keys() == expected.fitted_tensors().keys()  # type: ignore[attr-defined]


def test_actions_of_the_data_are_those_of_the_model() -> None:
    module = build()
    module.frozen.vae.fit(data().codec_videos())  # type: ignore[attr-defined]
    clip = data().clips("train")[0]
    assert frame_size_of(clip, module, data().action_schema) == frame_size_of(clip, module, None) == (16, 16)
    assert encoding_of(module, None, (16, 16), "float32").schema == module.schema
    with pytest.raises(ValueError, match="the data has the actions .*, the model .*: correct model.schema"):
        frame_size_of(clip, module, schema())
    without = build(action_projection=None)
    assert frame_size_of(clip, without, schema()) == (16, 16)
    assert encoding_of(module, schema(), (16, 16), "float32").schema == schema()


def test_what_does_not_fit_is_refused_before_a_codec_is_written(tmp_path: Path) -> None:
    odd = ["--data.init_args.world.init_args.image_size=18", "--data.init_args.world.init_args.sprite_radius=3.0"]
    with pytest.raises(ValueError, match="expected frames with sides of multiples of 8, got 18 x 18"):
        run_encode([*command(tmp_path), *odd])
    assert not (tmp_path / "store").exists()


def test_data_without_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ActionFileDataModule has no clips to encode: give a DataModule with `clips"):
        clips_of(ActionFileDataModule(str(tmp_path / "a.csv"), frame_size=(16, 16)))
    source = data()
    source.clips = lambda split: []  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="SpriteDataModule has no clips to encode: its data is empty"):
        clips_of(source)
    source.clips = lambda split: [NoiseClip("a", 5, 1)] * 2  # type: ignore[method-assign,list-item,return-value]
    with pytest.raises(ValueError, match="two clips of train have the name 'a': each needs one of its own"):
        clips_of(source)


def test_a_share_is_that_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    run_encode(command(tmp_path))
    assert "rank 1 is done; 15 clips of others are not, so that" in capsys.readouterr().out
    assert not (tmp_path / "store" / INDEX).exists()
    run_encode(command(tmp_path, "--rank=0"))
    assert f"written to {tmp_path / 'store'}" in capsys.readouterr().out
    index = json.loads((tmp_path / "store" / INDEX).read_text())
    assert {split: len(numbers) for split, numbers in index["splits"].items()} == {
        **{"train": 16, "validation": 4, "test": 6, "predict": 3}
    }
    assert index["encoding"]["dtype"] == "bfloat16"


def test_two_processes_of_one_rank_are_refused(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "store" / "unmerged" / "0")
    lock.acquire()
    with pytest.raises(
        BlockingIOError, match="is being written to by process .* or give another folder with --output, or "
    ):
        run_encode(command(tmp_path))
    lock.release()
    run_encode(command(tmp_path))
    assert not (tmp_path / "store" / "unmerged").exists()


def test_clips_may_be_cut_into_pieces(tmp_path: Path) -> None:
    run_encode(command(tmp_path, "--max_latents=2"))
    store = LatentStore(str(tmp_path / "store"))
    assert len(store.index.splits["train"]) == 4 * 16 and store.index.clips[0].num_latents == 2
    names = [clip.name for clip in store.index.clips]
    assert names[:2] == ["train-0-seed-0 from frame 0", "train-0-seed-0 from frame 5"]


def test_a_store_for_windows_that_begin_with_their_clip_is_half_as_large(tmp_path: Path) -> None:
    sizes = []
    for starts in ("anywhere", "clip_start"):
        folder = tmp_path / starts
        run_encode(command(folder, f"--window_starts={starts}", "--dtype=float32"))
        sizes.append(sum(path.stat().st_size for path in (folder / "store").glob("latents-*")))
    assert 0.5 < sizes[1] / sizes[0] < 0.6
    stores = [str(tmp_path / starts / "store") for starts in ("anywhere", "clip_start")]
    whole, half = (LatentDataModule(store, 5, "clip_start", batch_size=4).train_dataloader() for store in stores)
    for expected, found in zip(whole, half, strict=True):
        assert torch.equal(found["latents"], expected["latents"])
    with pytest.raises(ValueError, match="was encoded for windows that begin with their clip: set window_starts: clip"):
        LatentDataModule(stores[1], 5).train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rank=2", "--world_size=2"], "rank"),
        (["--world_size=0"], "world_size"),
        (["--shard_mb=0"], "shard_mb"),
        (["--max_latents=0"], "max_latents"),
        (["--dtype=float16"], "dtype"),
        (["--device=tpu9"], "expected a device such as cuda:0"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["encode", *command(tmp_path, *options)])
    told = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and told.startswith("error: ") and message in told
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("option", ["--output", "--out"])
def test_the_store_has_an_older_option_too(option: str, tmp_path: Path) -> None:
    arguments = small("encode", tmp_path, f"{option}={tmp_path / 'store'}")[1:]
    assert EncodeCLI("encode", None, arguments).config.output == str(tmp_path / "store")


def test_help_says_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["encode", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert stopped.value.code == 0 and "Encode all clips of a configuration's data into a store" in shown
    for option in (
        "--output",
        "--dtype",
        "--device",
        "--rank",
        "--world_size",
        "--max_latents",
        "--window_starts",
        "--shard_mb",
    ):
        assert option in shown


def test_positions_of_an_environment_are_in_its_store(tmp_path: Path) -> None:
    world = ["--data=lightning_action.EnvironmentDataModule", "--data.env=tests.support.dot_world:DotWorld"]
    found = ["--data.locator=tests.support.dot_world.locate", "--model.schema=auto", "--allow=tests"]
    run_encode(command(tmp_path, *world, *found))
    store = LatentStore(str(tmp_path / "store"))
    assert all(clip.has_positions for clip in store.index.clips) and store.position(0, 0, 3).shape == (9, 2)
