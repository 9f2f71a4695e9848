from __future__ import annotations

import json
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import torch
from torch import Tensor

from lightning_action import ActionPart, ActionSchema, VideoFolderDataModule
from lightning_action.batch import without_actions
from lightning_action.data.recorded import RecordedDataModule
from lightning_action.data.resumable import ResumableDataLoader
from lightning_action.recordings.lerobot import read_lerobot
from lightning_action.recordings.local_folder import LocalFolder
from tests.support.lerobot_data import lerobot_data, lerobot_module
from tests.support.sprite_module import ready
from tests.support.written_videos import LEROBOT, lerobot_copy, numbered_frames, write_video


def ready_data(**changes: Any) -> RecordedDataModule:
    data = lerobot_data(**changes)
    data.setup("fit")
    return data


def test_windows_are_the_frames_and_rows_of_one_episode() -> None:
    data = ready_data(frame_size=None, validation_share=0, test_share=0, window_step=3)
    episodes = read_lerobot(LocalFolder(str(LEROBOT / "v3"))).episodes
    windows = data.dataset("train")
    assert len(windows) == 3 * 11  # type: ignore[arg-type]
    for index in (0, 10, 11, 32):
        episode, start = episodes[index // 11], index % 11 * 3
        sample = windows[index]
        expected = torch.from_numpy(episode.cameras[0](list(range(start, start + 9)))).permute(0, 3, 1, 2)
        assert torch.equal(((sample["video"] + 1) * 127.5).round().byte(), expected)
        assert sample["action"].tolist() == np.asarray(episode.rows)[start : start + 8].tolist()
        assert (sample["prompt"], sample["sample_id"]) == (episode.prompt, index)
    with pytest.raises(IndexError):
        windows[33]


def test_windows_are_the_same_in_a_process_that_is_spawned(tmp_path: Path) -> None:
    for windows in (ready_data().dataset("train"), mixed_folder(tmp_path).dataset("train")):
        again = pickle.loads(pickle.dumps(windows))
        assert torch.equal(again[1]["video"], windows[1]["video"])


def test_splits_are_whole_episodes_and_the_same_in_every_run() -> None:
    data, again, other = ready_data(), ready_data(), ready_data(seed=1)
    names = {split: [clip.name for clip in data.clips(split)] for split in ("train", "validation", "test")}
    assert sorted(name for split in names.values() for name in split) == ["episode 0", "episode 1", "episode 2"]
    assert all(len(split) == 1 for split in names.values())
    assert [clip.name for clip in again.clips("train")] == names["train"]
    assert [clip.name for clip in other.clips("train")] != names["train"]
    assert data.clips("predict") is data.clips("test")
    with pytest.raises(ValueError, match="3 episodes leave none to train on beside validation, test"):
        ready_data(validation_share=0.6, test_share=0.3)


def test_held_out_windows_do_not_overlap_and_are_spread() -> None:
    data = ready_data(predict_size=2)
    places = [data.dataset("test")[index]["start"] for index in range(4)]
    assert places == [0, 9, 18, 27]
    loaded = [batch["sample_id"].tolist() for batch in data.predict_dataloader()]
    assert loaded == [[0, 2]]


def test_an_epoch_has_every_window_once_in_another_order_each_time() -> None:
    data = ready_data(batch_size=1)
    loader = data.train_dataloader()
    epochs = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        epochs.append([batch["sample_id"].item() for batch in loader])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(32)) and epochs[0] != epochs[1]


def test_a_loader_with_workers_resumes_in_the_middle() -> None:
    def samples(num_workers: int, state: dict[str, Any] | None = None) -> list[list[int]]:
        loader = ready_data(num_workers=num_workers).train_dataloader()
        assert isinstance(loader, ResumableDataLoader)
        if state is not None:
            loader.load_state_dict(state)
        return [batch["sample_id"].tolist() for batch in loader]

    whole = samples(2)
    assert whole == samples(0)
    assert samples(2, {"epoch": 0, "num_given": 5}) == whole[5:]


def test_the_schema_is_that_of_the_training_episodes() -> None:
    data = ready_data(fps=5, alignment="state", combine="mean")
    rows = np.concatenate([np.asarray(clip.episode.rows) for clip in data.clips("train")])  # type: ignore[attr-defined]
    assert data.action_schema == ActionSchema(
        data.action_schema.parts,  # type: ignore[union-attr]
        "state",
        "mean",
        4,
        2,
    )
    low = np.quantile(rows.astype(np.float64), 0.01, axis=0)
    assert data.action_schema.parts[0].low == pytest.approx(low.tolist(), rel=1e-5)  # type: ignore[union-attr]
    batch = next(iter(data.train_dataloader()))
    vectors, present = data.action_schema.encode(batch["action"], 3)  # type: ignore[union-attr]
    assert vectors.shape == (4, 3, 2) and bool(present.all())


@pytest.mark.parametrize(("bad_episodes", "left"), [("refuse", 0), ("skip", 2)])
def test_a_video_shorter_than_a_window(tmp_path: Path, bad_episodes: str, left: int) -> None:
    for name, count in (("a.mp4", 12), ("b.mp4", 8), ("c.mp4", 9)):
        write_video(tmp_path / name, numbered_frames(count))
    data = VideoFolderDataModule(
        str(tmp_path),
        num_latents=3,
        validation_share=0,
        test_share=0,
        bad_episodes=bad_episodes,  # type: ignore[arg-type]
    )
    if not left:
        with pytest.raises(ValueError, match=r"b.mp4: it has 8 frames at 10 frames a second, a window has 9\. Mend"):
            data.setup("fit")
        return
    with pytest.warns(UserWarning, match=r"passed over 1 of 3 episodes: .*, b.mp4: it has 8 frames"):
        data.setup("fit")
    assert [clip.name for clip in data.clips("train")] == ["a.mp4", "c.mp4"]


def test_other_sizes_need_a_frame_size(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(9))
    write_video(tmp_path / "b.mp4", numbered_frames(9, 48, 48))
    shares: dict[str, Any] = {"num_latents": 3, "validation_share": 0, "test_share": 0}
    with pytest.raises(ValueError, match=r"b.mp4: its frames are 48 x 48, those of a.mp4 32 x 48: give a frame_s"):
        VideoFolderDataModule(str(tmp_path), **shares).setup("fit")
    data = VideoFolderDataModule(str(tmp_path), frame_size=(16, 32), **shares)
    data.setup("fit")
    assert {data.dataset("train")[index]["video"].shape for index in range(2)} == {(9, 3, 16, 32)}


def test_cameras_stand_side_by_side(tmp_path: Path) -> None:
    root = lerobot_copy("v21", tmp_path)
    import json

    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["wrist"] = {**info["features"]["observation.images.top"], "shape": [48, 96, 3]}
    (root / "meta/info.json").write_text(json.dumps(info))
    folder = root / "videos/chunk-000"
    (folder / "wrist").mkdir()
    for episode in range(3):
        write_video(folder / f"wrist/episode_{episode:06d}.mp4", numbered_frames(40, 48, 96))
    data = ready_data(root=root, cameras=["observation.images.top", "wrist"], frame_size=(32, 16))
    video = data.dataset("train")[5]["video"]
    assert video.shape == (9, 3, 32, 32)
    wrist = (video[..., 16:].mean(dim=(1, 2, 3)) + 1) * 127.5 / 5
    assert wrist.round().tolist() == list(range(5, 14))
    top, other = "64 x 64, scaled to 32 x 32", "48 x 96, scaled to 32 x 64"
    cut = "middle cut to 32 x 16"
    assert data.frame_rule.endswith(f"; {top}, {cut}; {other}, {cut}; 2 cameras side by side")
    alone = ready_data(root=root, cameras=["observation.images.top"], frame_size=(32, 16)).dataset("train")[5]["video"]
    assert torch.equal(video[..., :16], alone)


def mixed_folder(folder: Path) -> VideoFolderDataModule:
    """Two videos with actions and one without."""
    random = np.random.default_rng(0)
    for name in "abc":
        write_video(folder / f"{name}.mp4", random.integers(0, 256, (9, 16, 16, 3), dtype=np.uint8))
        if name != "b":
            np.save(folder / f"{name}.npy", random.uniform(-1, 1, (9, 2)).astype(np.float32))
    data = VideoFolderDataModule(
        str(folder), num_latents=3, batch_size=3, validation_share=0, test_share=0, size_multiple=8
    )
    data.setup("fit")
    return data


def test_clips_without_actions_train_beside_the_others(tmp_path: Path) -> None:
    data = mixed_folder(tmp_path)
    batch = next(iter(data.train_dataloader()))
    order = batch["sample_id"].tolist()
    assert batch["has_action"].tolist() == [sample != 1 for sample in order]
    module, _ = ready(schema=data.action_schema)
    losses = module.matched_losses(batch)["true"].per_sample
    null = module.matched_losses(without_actions({key: batch[key] for key in batch if key != "has_action"}))["true"]
    other = module.matched_losses({**batch, "action": batch["action"].flip(0)})["true"]
    without = order.index(1)
    for sample in range(3):
        is_same = bool(losses[sample] == null.per_sample[sample])
        assert is_same == (sample == without)
        assert bool(losses[sample] == other.per_sample[sample]) == (sample in (without, 1))


def test_a_recording_without_actions_trains_without(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)
    info = json.loads((root / "meta/info.json").read_text())
    del info["features"]["action"]
    (root / "meta/info.json").write_text(json.dumps(info))
    data = ready_data(root=root)
    assert data.action_schema is None
    assert next(iter(data.train_dataloader()))["action"] is None


def test_an_empty_choice_of_actions_trains_without() -> None:
    assert ready_data(action_keys=[]).action_schema is None


def test_classes_of_held_out_episodes_are_counted(tmp_path: Path) -> None:
    root = lerobot_copy("v21", tmp_path)
    held_out = ready_data().clips("validation")[0].name
    for episode in range(3):
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        table = parquet.read_table(path)
        rows = arrow.array([[7 if held_out == f"episode {episode}" else row % 3] for row in range(40)])
        parquet.write_table(table.set_column(table.column_names.index("action"), "action", rows), path)
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["action"] = {"dtype": "int64", "shape": [1], "names": ["key"]}
    (root / "meta/info.json").write_text(json.dumps(info))
    data = ready_data(root=root)
    assert data.action_schema == ActionSchema([ActionPart("key", "discrete", 8)], "transition", "concat", 4, 1)
    assert data.statistics[0].high == 2
    batch = next(iter(data.val_dataloader()))
    assert data.action_schema.encode(batch["action"], 3)[1][:, 1:].all()


def test_a_short_episode_is_named_with_folder_and_file() -> None:
    with pytest.raises(ValueError, match=r"v3, episode 0, data/chunk-000/file-000.parquet: it has 40 frames"):
        ready_data(num_latents=12)


def middle(video: Tensor) -> tuple[Tensor, Tensor]:
    shape = video.shape[:2]
    return torch.stack([video.mean(dim=(2, 3, 4))] * 2, dim=-1), torch.ones(shape, dtype=torch.bool)


def test_a_locator_measures_positions(tmp_path: Path) -> None:
    data = ready_data(locator=middle)
    batch = next(iter(data.test_dataloader()))
    positions, found = data.read_positions(batch["video"], batch, "test")
    assert torch.equal(batch["position"], positions) and found.shape == (3, 9)
    plain = ready_data()
    assert "position" not in next(iter(plain.test_dataloader()))
    with pytest.raises(ValueError, match="there is no locator"):
        plain.read_positions(batch["video"], batch, "test")


def test_codec_videos_are_spread_over_the_episodes() -> None:
    data = ready_data(validation_share=0, test_share=0)
    videos = data.codec_videos(6)
    assert videos.shape == (6, 9, 3, 16, 16)
    assert torch.equal(videos[2], data.dataset("train")[32]["video"])


@pytest.mark.parametrize("locator", [None, middle])
def test_it_trains_validates_tests_and_predicts(tmp_path: Path, locator: Any) -> None:
    module = lerobot_module()
    trainer = L.Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=1,
        val_check_interval=2,
    )
    data = lerobot_data(locator=locator)
    trainer.fit(module, data)
    assert module.schema == data.action_schema and module.schema.parts[0].size == 2
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["action_statistics"]
    assert [column["name"] for column in saved] == ["dx", "dy"] and saved == data.action_statistics
    (tested,) = trainer.test(module, data, verbose=False)
    assert ("test/sign_accuracy" in tested) == (locator is not None)
    predicted = trainer.predict(module, data)
    assert predicted is not None and len(predicted[0]["video"]) == 3  # type: ignore[call-overload, arg-type]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_two_ranks_with_four_workers_share_the_windows() -> None:
    shares = []
    for rank in range(2):
        data = ready_data(num_workers=4, batch_size=2)
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank)  # type: ignore[assignment]
        shares.append([sample for batch in data.train_dataloader() for sample in batch["sample_id"].tolist()])
    assert len(shares[0]) == len(shares[1]) == 16
    assert sorted(shares[0] + shares[1]) == list(range(32))
