"""Videos of another program: found, put together, read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_action.recordings.episode_files import (
    find_actions,
    find_videos,
    match_by_manifest,
    match_by_name,
    numbers_of,
    open_given_video,
    require_same_names,
)
from tests.support.written_videos import numbered_frames, numbers_in, write_video

FRAMES = numbered_frames(12)


def write_pictures(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{index}.png")


def write_gif(path: Path, frames: np.ndarray) -> None:
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(path, save_all=True, append_images=rest, duration=100, loop=0)


@pytest.mark.parametrize("name", ["a.mp4", "a.webm", "a.mkv", "a.gif", "a", "a.pt"])
def test_all_frames_of_any_kind_are_read_in_order(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a":
        write_pictures(path, FRAMES)
    elif name == "a.gif":
        write_gif(path, FRAMES)
    elif name == "a.pt":
        torch.save({"sample_id": 3, "video": torch.from_numpy(FRAMES).permute(0, 3, 1, 2)}, path)
    else:
        write_video(path, FRAMES, codec="libvpx-vp9" if name == "a.webm" else "libx264")
    video = open_given_video(path)
    assert (video.num_frames, video.frame_size) == (12, (32, 48))
    assert numbers_in(video.read()) == list(range(12))
    assert find_videos(tmp_path) == {"a": path}


def test_beside_saved_tensors_nothing_else_is_a_video(tmp_path: Path) -> None:
    for name in ("000000.pt", "000000.mp4", "000000.json", "manifest.jsonl"):
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == {"000000": tmp_path / "000000.pt"}


def test_names_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("take_10.mp4", "take_9.gif", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert list(find_videos(tmp_path)) == ["take_9", "take_10"]


def test_what_is_missing_or_too_much_is_named(tmp_path: Path) -> None:
    for name in ("own/a.mp4", "own/b.gif", "own/c.mp4", "truth/a.gif", "truth/d.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    folders = {"videos": tmp_path / "own", "truth": tmp_path / "truth"}
    with pytest.raises(
        ValueError, match="truth has no b, c, and has d, to which .*; expected the names of .*own, .*rename"
    ):
        match_by_name(folders)
    (tmp_path / "truth" / "d.mp4").unlink()
    for name in ("truth/b.webm", "truth/c.mp4"):
        (tmp_path / name).touch()
    found = match_by_name(folders)
    assert list(found["truth"]) == ["a", "b", "c"] and found["truth"]["b"].name == "b.webm"


def test_a_manifest_puts_together_what_has_other_names(tmp_path: Path) -> None:
    for name in ("own/x/one.mp4", "own/two.mp4", "truth/7.gif", "truth/two.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folders = {"videos": tmp_path / "own", "truth": tmp_path / "truth"}
    table = tmp_path / "table.csv"
    table.write_text("videos,truth,sample_id\nx/one.mp4,7.gif,40\ntwo.mp4,,2\n")
    lines = tmp_path / "table.jsonl"
    lines.write_text(
        '{"videos": "x/one.mp4", "truth": "7.gif", "sample_id": 40}\n{"videos": "two.mp4", "sample_id": 2}'
    )
    assert match_by_manifest(table, folders) == match_by_manifest(lines, folders)
    files, numbers = match_by_manifest(table, folders)
    assert numbers == {"x/one": 40, "two": 2}
    assert {name: path.name for name, path in files["truth"].items()} == {"x/one": "7.gif", "two": "two.mp4"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("videos,colour\na.mp4,red\n", "entry 1: expected videos, and perhaps truth or sample_id, got"),
        ("truth\na.mp4\n", "entry 1: expected videos"),
        ("videos\na.mp4\na.mp4\n", "entry 2: a.mp4 is there already"),
        ("videos,truth\na.mp4,b.mp4\n", "entry 1: there is no .*truth/b.mp4"),
        ("videos,truth\na.mp4,../own/a.mp4\n", "entry 1: ../own/a.mp4 leads out of .*truth"),
        ("videos,sample_id\na.mp4,-1\n", "entry 1: sample_id is a whole number from 0 on, got '-1'"),
        ("videos,sample_id\na.mp4,1\nb.mp4,\n", "some entries have a sample_id, and others have none"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(tmp_path: Path, text: str, told: str) -> None:
    for name in ("own/a.mp4", "own/b.mp4", "truth/a.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    if "some entries" in told:
        (tmp_path / "truth/b.mp4").touch()
    (tmp_path / "table.csv").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        match_by_manifest(tmp_path / "table.csv", {"videos": tmp_path / "own", "truth": tmp_path / "truth"})


def test_samples_are_the_last_numbers_of_names() -> None:
    assert numbers_of(["run2_episode_000007", "8"]) == {"run2_episode_000007": 7, "8": 8}
    with pytest.raises(ValueError, match="'intro' has no number that says which sample it is"):
        numbers_of(["intro"])
    with pytest.raises(ValueError, match="'a_7' and 'b_07' are both sample 7"):
        numbers_of(["a_7", "b_07"])


def test_actions_are_a_table_for_each_name(tmp_path: Path) -> None:
    rows = {"a": np.ones((4, 2)), "b": np.zeros((4, 2))}
    np.savez(tmp_path / "all.npz", **rows)
    (tmp_path / "each").mkdir()
    np.save(tmp_path / "each" / "a.npy", rows["a"])
    (tmp_path / "each" / "b.csv").write_text("0,0\n" * 4)
    for path in (tmp_path / "all.npz", tmp_path / "each"):
        found = find_actions(path, ["a", "b"])
        assert {name: table.tolist() for name, table in found.items()} == {n: r.tolist() for n, r in rows.items()}
    assert find_actions(tmp_path / "each" / "a.npy", ["whatever"])["whatever"].shape == (4, 2)
    with pytest.raises(ValueError, match="each has no c, and has b, to which nothing belongs"):
        find_actions(tmp_path / "each", ["a", "c"])
    with pytest.raises(FileNotFoundError, match="actions of 2 videos are a folder of tables .*a.npy"):
        find_actions(tmp_path / "each" / "a.npy", ["a", "b"])
    np.savez(tmp_path / "broken.npz", a=[[np.nan]], b=[[1.0]])
    with pytest.raises(ValueError, match="broken.npz, a, row 0, column 0 .* nan is no finite float32"):
        find_actions(tmp_path / "broken.npz", ["a", "b"])


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder at .*nowhere: give the folder that holds a video"):
        find_videos(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file is a file: give the folder"):
        find_videos(tmp_path / "file")
    with pytest.raises(ValueError, match="holds no videos"):
        find_videos(tmp_path)
    for name in ("a.mp4", "a.gif"):
        (tmp_path / name).write_bytes(b"no video")
    with pytest.raises(ValueError, match="has two of the name 'a': a.gif and a.mp4"):
        find_videos(tmp_path)
    with pytest.raises(ValueError, match="a.mp4 cannot be read as a video"):
        open_given_video(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match="no video at"):
        open_given_video(tmp_path / "b.mp4")
    torch.save({"state_dict": {}}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last.pt is not of PredictionWriter: it has no `video`"):
        open_given_video(tmp_path / "last.pt")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no pictures"):
        open_given_video(tmp_path / "none")


def test_many_missing_names_are_counted() -> None:
    with pytest.raises(ValueError, match="^there has no 0, 1, 2, 3, 4 and 6 more$"):
        require_same_names("there", [], range(11))
