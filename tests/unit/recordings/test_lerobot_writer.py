"""A LeRobot folder has the structure of the library's own, and gives back what was written."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from lightning_action.recordings.lerobot import read_lerobot
from lightning_action.recordings.lerobot_files import LIMITS, NumericFeature
from lightning_action.recordings.lerobot_writer import LeRobotWriter, writing_lerobot
from lightning_action.recordings.local_folder import LocalFolder

ROOT = Path(__file__).parents[3]
FPS, HEIGHT, WIDTH = 7, 32, 48
CAMERA = "observation.image"
LENGTHS = [6, 9, 4]
TASKS = ["move", "push", "move"]
FEATURES = {
    "observation.state": NumericFeature(["x", "y", "z"]),
    "action": NumericFeature(["dx", "dy"]),
    "key": NumericFeature(["key"], "int64"),
    "next.done": NumericFeature(["done"], "bool"),
}


def image(episode: int, frame: int) -> np.ndarray:
    """A grey block that moves over a gradient: of colours, the videos keep one for each four pixels."""
    shade = np.linspace(40, 200, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1).repeat(3, 2).astype(np.uint8)
    shade[8 : 8 + 8, 2 * frame + 8 * episode : 2 * frame + 8 * episode + 8] = 240
    return shade


def values(episode: int, frame: int) -> dict[str, Any]:
    return {
        "observation.state": [episode, frame / 3, -1.5],
        "action": np.array([frame - 2.25, 10.0 * episode]),
        "key": episode + frame,
        "next.done": frame == LENGTHS[episode] - 1,
    }


def write(path: Path, overwrite: bool = False) -> Path:
    with writing_lerobot(path, FPS, {CAMERA: (HEIGHT, WIDTH)}, FEATURES, "toy", overwrite) as writer:
        for episode, length in enumerate(LENGTHS):
            for frame in range(length):
                writer.add_frame({CAMERA: image(episode, frame)}, values(episode, frame))
            writer.end_episode(TASKS[episode])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("whole") / "toy")


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each episode, two files in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        for name, limit in (("data_files_size_in_mb", 0), ("video_files_size_in_mb", 0), ("chunks_size", 2)):
            patch.setitem(LIMITS, name, limit)
        return write(tmp_path_factory.mktemp("small") / "toy")


def info(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "meta/info.json").read_text())
    return content


def episodes(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    return rows


def decoded(path: Path) -> Iterator[tuple[Fraction, np.ndarray]]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.pts is not None and frame.time_base is not None
            yield frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2)))


def test_the_description_counts_what_was_written(folder: Path) -> None:
    described = info(folder)
    expected = {"codebase_version": "v3.0", "robot_type": "toy", "fps": FPS, "splits": {"train": "0:3"}}
    expected |= {"total_episodes": 3, "total_frames": 19, "total_tasks": 2, "chunks_size": 1000}
    assert {key: described[key] for key in expected} == expected
    features = described["features"]
    assert features[CAMERA]["shape"] == [HEIGHT, WIDTH, 3] and features[CAMERA]["dtype"] == "video"
    assert features["action"] == {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]}
    assert features["timestamp"] == {"dtype": "float32", "shape": [1], "names": None}


@pytest.mark.parametrize("name", ["folder", "small_files"])
def test_rows_come_back_exactly(name: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(name)
    described, index = info(root), 0
    for episode, row in enumerate(episodes(root)):
        place = {key: row[f"data/{key}"] for key in ("chunk_index", "file_index")}
        table = pq.read_table(root / described["data_path"].format(**place)).to_pylist()
        rows = [each for each in table if each["episode_index"] == episode]
        assert (row["dataset_from_index"], row["dataset_to_index"]) == (index, index + LENGTHS[episode])
        assert row["length"] == len(rows) == LENGTHS[episode] and row["tasks"] == [TASKS[episode]]
        for frame, read in enumerate(rows):
            written = values(episode, frame)
            assert read["observation.state"] == np.float32(written["observation.state"]).tolist()
            assert read["action"] == np.float32(written["action"]).tolist()
            assert (read["key"], read["next.done"]) == (written["key"], written["next.done"])
            assert (read["frame_index"], read["index"], read["task_index"]) == (frame, index, [0, 1, 0][episode])
            assert read["timestamp"] == np.float32(frame / FPS)
            index += 1


@pytest.mark.parametrize("name", ["folder", "small_files"])
def test_frames_come_back_at_their_times(name: str, request: pytest.FixtureRequest) -> None:
    root = request.getfixturevalue(name)
    described, files = info(root), set()
    for episode, row in enumerate(episodes(root)):
        place = {key: row[f"videos/{CAMERA}/{key}"] for key in ("chunk_index", "file_index")}
        path = root / described["video_path"].format(video_key=CAMERA, **place)
        files.add(path)
        frames = dict(decoded(path))
        first, last = (round(row[f"videos/{CAMERA}/{key}_timestamp"] * FPS) for key in ("from", "to"))
        assert last - first == LENGTHS[episode]
        for frame in range(LENGTHS[episode]):
            read = frames[Fraction(first + frame, FPS)]
            # Lossy: 40 dB is an error of 2.5 of 255; another frame's block would leave less than 25 dB.
            assert psnr(read, image(episode, frame)) > 40
            assert psnr(read, image(episode, frame + 1)) < 25
    assert sorted(files) == sorted(root.rglob("*.mp4"))
    # One time for each frame, in order, from 0 on; nothing else is in the files.
    for path in files:
        times = [time for time, _ in decoded(path)]
        assert times == [Fraction(index, FPS) for index in range(len(times))]


def test_files_that_are_full_are_followed_by_others(folder: Path, small_files: Path) -> None:
    expected = ["chunk-000/file-000", "chunk-000/file-001", "chunk-001/file-000"]
    for pattern, suffix in (("data", "parquet"), (f"videos/{CAMERA}", "mp4")):
        found = sorted((small_files / pattern).rglob(f"*.{suffix}"))
        assert [str(path.relative_to(small_files / pattern).with_suffix("")) for path in found] == expected
        assert len(list((folder / pattern).rglob(f"*.{suffix}"))) == 1


def test_frames_are_decoded_by_themselves_or_from_the_one_before(folder: Path) -> None:
    with av.open(str(next(folder.rglob("*.mp4")))) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    assert [packet.is_keyframe for packet in packets] == [index % 2 == 0 for index in range(19)]
    assert all(packet.pts == packet.dts for packet in packets)


def test_tasks_are_the_index_of_a_pandas_table(folder: Path) -> None:
    table = pq.read_table(folder / "meta/tasks.parquet")
    assert table.to_pylist() == [{"task_index": 0, "task": "move"}, {"task_index": 1, "task": "push"}]
    assert json.loads(table.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_structure_is_that_of_the_library(folder: Path) -> None:
    """Columns of an episode and types of a row, as lerobot 0.4.4 and 0.6.1 write them."""
    rows = pq.read_schema(folder / "data/chunk-000/file-000.parquet")
    assert {name: str(rows.field(name).type) for name in rows.names} == {
        "observation.state": "fixed_size_list<element: float>[3]",
        "action": "fixed_size_list<element: float>[2]",
        "key": "int64",
        "next.done": "bool",
        "timestamp": "float",
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64"),
    }
    schema = pq.read_schema(folder / "meta/episodes/chunk-000/file-000.parquet")
    kinds = {name: str(schema.field(name).type).replace("item", "element") for name in schema.names}
    statistics = ("min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99")
    assert {name for name in kinds if name.startswith("stats/")} == {
        f"stats/{feature}/{each}" for feature in info(folder)["features"] for each in statistics
    }
    nested = "list<element: list<element: list<element: double>>>"
    for name, kind in {
        **{"episode_index": "int64", "tasks": "list<element: string>", "length": "int64"},
        **{"data/chunk_index": "int64", "dataset_to_index": "int64", "meta/episodes/file_index": "int64"},
        **{f"videos/{CAMERA}/file_index": "int64", f"videos/{CAMERA}/to_timestamp": "double"},
        **{f"stats/{CAMERA}/q01": nested, f"stats/{CAMERA}/count": "list<element: int64>"},
        **{"stats/action/std": "list<element: double>", "stats/frame_index/max": "list<element: int64>"},
    }.items():
        assert kinds[name] == kind, name


def test_statistics_are_those_of_all_frames(folder: Path) -> None:
    stats = json.loads((folder / "meta/stats.json").read_text())
    assert stats.keys() == info(folder)["features"].keys()
    frames = [(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)]
    action = np.float32([values(*each)["action"] for each in frames]).astype(float)
    np.testing.assert_allclose(stats["action"]["mean"], action.mean(0), rtol=1e-12)
    np.testing.assert_allclose(stats["action"]["q01"], np.quantile(action, 0.01, axis=0), rtol=1e-12)
    assert stats["action"]["count"] == stats[CAMERA]["count"] == [19]
    pixels = np.stack([image(*each) for each in frames]) / 255
    for name, expected in (("min", pixels.min((0, 1, 2))), ("std", pixels.std((0, 1, 2)))):
        np.testing.assert_allclose(np.ravel(stats[CAMERA][name]), expected, rtol=1e-10)
    episode = episodes(folder)[1]
    np.testing.assert_allclose(episode["stats/action/max"], action[6:15].max(0), rtol=0)
    assert episode[f"stats/{CAMERA}/count"] == [9] and np.shape(episode[f"stats/{CAMERA}/mean"]) == (3, 1, 1)


def test_frames_of_an_episode_may_have_tasks_of_their_own(tmp_path: Path) -> None:
    with writing_lerobot(tmp_path / "toy", FPS, {CAMERA: (HEIGHT, WIDTH)}, FEATURES) as writer:
        for frame in range(LENGTHS[0]):
            writer.add_frame({CAMERA: image(0, frame)}, values(0, frame))
        with pytest.raises(ValueError, match=f"episode 0 has {LENGTHS[0]} frames and 1 tasks: give one for each"):
            writer.end_episode(["push"])
        writer.end_episode([*["push"] * 2, *["pull"] * (LENGTHS[0] - 3), "push"])
    (row,) = episodes(tmp_path / "toy")
    assert row["tasks"] == ["push", "pull"] and info(tmp_path / "toy")["total_tasks"] == 2
    parts = read_lerobot(LocalFolder(str(tmp_path / "toy"))).episodes
    assert [(part.prompt, part.num_frames) for part in parts] == [("push", 2), ("pull", LENGTHS[0] - 3), ("push", 1)]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    """In processes of their own, as a command runs in: other encoders in this one may leave their traces."""
    folder, again = tmp_path / "once", tmp_path / "again"
    code = "import sys; from tests.unit.recordings.test_lerobot_writer import *; write(Path(sys.argv[1]))"
    for path in (folder, again):
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert [path for path in files if (folder / path).read_bytes() != (again / path).read_bytes()] == []


def test_a_recording_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="camera"),
        writing_lerobot(tmp_path / "toy", FPS, {CAMERA: (HEIGHT, WIDTH)}, FEATURES) as writer,
    ):
        writer.add_frame({CAMERA: image(0, 0)}, values(0, 0))
        assert list(tmp_path.iterdir()) != []
        raise RuntimeError("camera is gone")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_replaced_only_if_it_is_a_recording(tmp_path: Path) -> None:
    write(tmp_path / "toy")
    with pytest.raises(FileExistsError, match="is there already"):
        write(tmp_path / "toy")
    (tmp_path / "toy/mark").touch()
    write(tmp_path / "toy", overwrite=True)
    assert not (tmp_path / "toy/mark").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter").touch()
    with pytest.raises(FileExistsError, match="is no LeRobot folder"):
        write(tmp_path / "home", overwrite=True)
    assert (tmp_path / "home/letter").exists()


def test_many_episodes_are_written_some_at_a_time(tmp_path: Path) -> None:
    with writing_lerobot(tmp_path / "toy", FPS, {}, {"key": NumericFeature(["key"], "int64")}) as writer:
        for episode in range(230):
            writer.add_frame({}, {"key": episode})
            writer.end_episode("move")
    found = episodes(tmp_path / "toy")
    assert [row["episode_index"] for row in found] == [row["stats/key/max"][0] for row in found] == list(range(230))
    assert json.loads((tmp_path / "toy/meta/stats.json").read_text())["key"]["count"] == [230]


def refuse_to_open(path: Path, fps: float, size: tuple[int, int]) -> None:
    with writing_lerobot(path, fps, {CAMERA: size}, FEATURES):  # type: ignore[arg-type]
        pass


@pytest.mark.parametrize(
    ("fps", "size", "message"),
    [
        (10, (33, 48), "frames of observation.image are 33 x 48, expected even sides"),
        (10, (32, 8), "at least 16 pixels"),
        (29.97, (32, 48), "a whole number of frames of a second, got 29.97"),
        (0, (32, 48), "got 0"),
        (10, (32, 48), "no episode was recorded"),
    ],
)
def test_what_cannot_be_written_is_refused(fps: float, size: tuple[int, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        refuse_to_open(tmp_path / "toy", fps, size)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"need pyarrow: pip install 'lightning_action\[data\]'"):
        refuse_to_open(tmp_path / "toy", FPS, (HEIGHT, WIDTH))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("picture", "change", "message"),
    [
        (
            image(0, 0)[:-2],
            {},
            r"episode 0, frame 0: observation.image must be \[32, 48, 3\] of uint8, got \[30, 48, 3\]",
        ),
        (image(0, 0) / 255, {}, "got .* of float64"),
        (image(0, 0), {"action": [0.0, np.nan]}, r"episode 0, frame 0: action must be 2 finite numbers, got .*nan"),
        (image(0, 0), {"action": [0.0]}, "action must be 2 finite numbers"),
    ],
)
def test_frames_that_do_not_fit_are_named(picture: Any, change: Any, message: str, tmp_path: Path) -> None:
    def add(writer: LeRobotWriter) -> None:
        writer.add_frame({CAMERA: picture}, values(0, 0) | change)

    with (
        pytest.raises(ValueError, match=message),
        writing_lerobot(tmp_path / "toy", FPS, {CAMERA: (HEIGHT, WIDTH)}, FEATURES) as writer,
    ):
        add(writer)


def test_an_episode_without_frames_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="episode 0 has no frame"),
        writing_lerobot(tmp_path / "toy", FPS, {CAMERA: (HEIGHT, WIDTH)}, FEATURES) as writer,
    ):
        writer.end_episode("nothing")
