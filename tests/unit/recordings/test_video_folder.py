from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Recording
from lightning_action.recordings.video_folder import read_video_folder
from tests.support.written_videos import numbered_frames, numbers_in, write_video

ROWS = np.arange(24, dtype=np.float32).reshape(12, 2)


def read(folder: Path, **kwargs: object) -> Recording:
    return read_video_folder(LocalFolder(str(folder)), **kwargs)  # type: ignore[arg-type]


def write_actions(path: Path, rows: np.ndarray = ROWS) -> None:
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".npz":
        np.savez(path, action=rows, other=np.zeros(3))
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"x": x, "y": y} for x, y in rows.tolist()]))
    elif path.suffix == ".csv":
        np.savetxt(path, rows, delimiter=",", header="x,y", comments="")
    else:
        parquet.write_table(arrow.table({"x": rows[:, 0], "y": rows[:, 1]}), path)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".json", ".csv", ".parquet"])
def test_actions_and_captions_go_by_the_name_of_the_video(tmp_path: Path, suffix: str) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(12))
    write_video(tmp_path / "b.webm", numbered_frames(9), codec="libvpx-vp9")
    write_actions(tmp_path / f"a{suffix}")
    (tmp_path / "a.txt").write_text("a dot\n")
    found = read(tmp_path)
    assert [(each.name, each.prompt, each.num_frames) for each in found.episodes] == [
        ("a.mp4", "a dot", 12),
        ("b.webm", "", 9),
    ]
    assert found.fps == 10.0
    assert found.columns == (["x", "y"] if suffix in (".json", ".csv", ".parquet") else ["action_0", "action_1"])
    np.testing.assert_array_equal(found.episodes[0].rows, ROWS)
    assert found.episodes[1].rows is None
    assert numbers_in(found.episodes[0].cameras[0]([7, 2])) == [7, 2]


def test_folders_of_pictures_are_videos(tmp_path: Path) -> None:
    (tmp_path / "deep/c").mkdir(parents=True)
    for number, frame in enumerate(numbered_frames(12)):
        Image.fromarray(frame).save(tmp_path / f"deep/c/frame_{number}.png")
    write_actions(tmp_path / "deep/c.npy", ROWS[:11])
    found = read(tmp_path, fps=5.0)
    assert [(each.name, each.num_frames) for each in found.episodes] == [("deep/c", 12)]
    assert numbers_in(found.episodes[0].cameras[0]([11, 2, 10])) == [11, 2, 10]
    np.testing.assert_array_equal(found.episodes[0].rows, np.concatenate([ROWS[:11], ROWS[10:11]]))
    with pytest.raises(ValueError, match="do not say how many make a second: give recorded_fps"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.json", "pairs.jsonl"])
def test_a_manifest_says_what_belongs_together(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "take1.mp4", numbered_frames(12))
    write_video(tmp_path / "take2.mp4", numbered_frames(12))
    write_actions(tmp_path / "log.npy")
    records = [
        {"video": "take2.mp4", "actions": "log.npy", "prompt": "a dot"},
        {"video": "take1.mp4", "actions": "", "prompt": ""},
    ]
    text = {
        ".csv": "video,actions,prompt\ntake2.mp4,log.npy,a dot\ntake1.mp4,,\n",
        ".json": json.dumps(records),
        ".jsonl": "\n".join(map(json.dumps, records)),
    }
    (tmp_path / name).write_text(text[Path(name).suffix])
    first, second = read(tmp_path, manifest=name).episodes
    assert (first.name, first.prompt, first.rows is None) == ("take2.mp4", "a dot", False)
    assert (second.name, second.prompt, second.rows is None) == ("take1.mp4", "", True)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.npy": ROWS[:5]}, "a.npy has 5 rows for 12 frames: expected a row for each, or for all but the last"),
        ({"a.npy": ROWS, "a.csv": ROWS}, "has several actions for a.mp4: a.csv, a.npy"),
        ({"a.npy": np.where(ROWS == 7, np.nan, ROWS)}, r"a.npy, row 3, column 1 .* is no finite float32"),
        (
            {"a.npy": ROWS, "b.npy": ROWS[:, :1]},
            r"b.npy has the columns \['action_0'\], expected \['action_0', 'action_1'\]",
        ),
    ],
    ids=["rows", "several", "nan", "columns"],
)
def test_bad_actions_are_named(tmp_path: Path, files: dict[str, np.ndarray], message: str) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, numbered_frames(12))
    for name, rows in files.items():
        write_actions(tmp_path / name, rows)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_broken_videos_are_named_and_passed_over_if_asked(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(12))
    write_video(tmp_path / "b.mp4", numbered_frames(12), fps=25)
    (tmp_path / "c.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:400])
    with pytest.raises(ValueError, match=r"b.mp4: it has 25 frames a second, expected 10 .*bad_episodes: skip"):
        read(tmp_path)
    found = read(tmp_path, bad_episodes="skip")
    assert [each.name for each in found.episodes] == ["a.mp4"]
    assert "passed over 2 of 3 episodes" in found.passed_over and "c.mp4" in found.passed_over


def test_columns_go_by_their_names(tmp_path: Path) -> None:
    for name, names in (("a", "dx,dy"), ("b", "dy,dx")):
        write_video(tmp_path / f"{name}.mp4", numbered_frames(12))
        np.savetxt(tmp_path / f"{name}.csv", ROWS + 0.5, delimiter=",", header=names, comments="")
    with pytest.raises(ValueError, match=r"b.csv has the columns \['dy', 'dx'\], expected \['dx', 'dy'\] as before it"):
        read(tmp_path)


def test_suffixes_may_be_in_capitals_and_hidden_files_are_left_alone(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(12))
    (tmp_path / "a.mp4").rename(tmp_path / "A.MP4")
    write_actions(tmp_path / "A.npy")
    (tmp_path / "A.npy").rename(tmp_path / "A.NPY")
    (tmp_path / "A.TXT").write_text("\ufeffa dot")
    (tmp_path / "._A.mp4").write_bytes(b"what a system hides")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX/b.mp4").write_bytes(b"")
    (episode,) = read(tmp_path).episodes
    assert (episode.name, episode.prompt, episode.rows is None) == ("A.MP4", "a dot", False)


def test_tables_that_belong_to_no_video_are_named(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(12))
    write_actions(tmp_path / "a_actions.npy")
    assert "not read, for they belong to no video: a_actions.npy" in read(tmp_path).passed_over


def test_frames_at_uneven_times_are_refused(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for number, pixels in enumerate(numbered_frames(12)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = number + 5 * (number > 6)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ValueError, match=r"a.mp4: its frames are not at even times: frame \d+ is at .* constant rate"):
        read(tmp_path)


def test_whole_numbers_are_classes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(12))
    np.save(tmp_path / "a.npy", np.arange(12)[:, None])
    assert read(tmp_path).classes
    np.save(tmp_path / "a.npy", np.arange(12.0)[:, None])
    assert not read(tmp_path).classes


def test_a_folder_without_videos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no videos"):
        read(tmp_path)
    (tmp_path / "m.csv").write_text("video,action\na.mp4,b.npy\n")
    with pytest.raises(ValueError, match=r"m.csv, entry 1: expected a video, and perhaps actions and prompt, got"):
        read(tmp_path, manifest="m.csv")
    (tmp_path / "m.csv").write_text("video,prompt\na.mp4,a; b\na.mp4,c\n")
    with pytest.raises(ValueError, match=r"m.csv, entry 2: a.mp4 is there already"):
        read(tmp_path, manifest="m.csv")
    (tmp_path / "m.csv").write_text("video,prompt\na.mp4\n")
    with pytest.raises(ValueError, match=r"m.csv, line 2: 1 cells, expected 2"):
        read(tmp_path, manifest="m.csv")
    (tmp_path / "m.csv").write_text("video\n../a.mp4\n")
    with pytest.raises(ValueError, match="leads out of the data set"):
        read(tmp_path, manifest="m.csv")
