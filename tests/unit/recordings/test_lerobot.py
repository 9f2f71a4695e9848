"""Broken and unusual LeRobot data sets; tests/parity/test_lerobot.py compares whole ones with the library."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from lightning_action.recordings.lerobot import read_lerobot
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Recording
from tests.support.written_videos import lerobot_copy, numbered_frames, numbers_in

CAMERA = "observation.images.top"
V21_DATA, V21_VIDEO = "data/chunk-000/episode_000001.parquet", f"videos/chunk-000/{CAMERA}/episode_000001.mp4"


def read(root: Path, **kwargs: Any) -> Recording:
    return read_lerobot(LocalFolder(str(root)), **kwargs)


def change_table(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write a parquet file anew with other columns."""
    table = parquet.read_table(path)
    parquet.write_table(arrow.table(change({name: table[name] for name in table.column_names})), path)


def change_info(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    change(info)
    (root / "meta/info.json").write_text(json.dumps(info))


def cut(root: Path) -> None:
    path = root / V21_VIDEO
    path.write_bytes(path.read_bytes()[:3000])


def drop_column(root: Path) -> None:
    change_table(root / V21_DATA, lambda table: {name: each for name, each in table.items() if name != "action"})


def shift_time(root: Path) -> None:
    def change(table: dict[str, Any]) -> dict[str, Any]:
        stamps = np.asarray(table["timestamp"]).copy()
        stamps[20:] += 0.05
        return {**table, "timestamp": stamps}

    change_table(root / V21_DATA, change)


def put_nan(root: Path) -> None:
    def change(table: dict[str, Any]) -> dict[str, Any]:
        rows = [list(row) for row in table["action"].to_pylist()]
        rows[7][1] = float("nan")
        return {**table, "action": rows}

    change_table(root / V21_DATA, change)


def empty_row(root: Path) -> None:
    change_table(root / V21_DATA, lambda table: {**table, "action": [None, *table["action"].to_pylist()[1:]]})


def remove_rows(root: Path) -> None:
    change_table(root / V21_DATA, lambda table: {name: each.slice(0, 30) for name, each in table.items()})


def other_episode(root: Path) -> None:
    change_table(root / V21_DATA, lambda table: {**table, "episode_index": [9] * 40})


def unknown_task(root: Path) -> None:
    change_table(root / V21_DATA, lambda table: {**table, "task_index": [5] * 40})


def other_size(root: Path) -> None:
    from tests.support.written_videos import write_video

    write_video(root / V21_VIDEO, numbered_frames(40))


def short_video(root: Path) -> None:
    from tests.support.written_videos import write_video

    write_video(root / V21_VIDEO, numbered_frames(30, 64, 64))


def remove_file(root: Path) -> None:
    (root / V21_DATA).unlink()


def no_parquet(root: Path) -> None:
    (root / V21_DATA).write_bytes(b"PAR1")


FAULTS = [
    (cut, r"episode_000001.mp4.*cut off"),
    (drop_column, r"episode_000001.parquet has no column action; it has"),
    (shift_time, r"do not fit 10 frames a second: frame 20 is at 2.05 s, expected 2 s"),
    (put_nan, "its actions hold nan at frame 7, column 1"),
    (empty_row, "column action: 1 rows are empty"),
    (remove_rows, r"the index lists 40 frames, .*episode_000001.parquet holds 30 rows of it"),
    (other_episode, r"the index lists it, but .*episode_000001.parquet holds no rows of it"),
    (unknown_task, "it has task 5, which meta/tasks does not list"),
    (other_size, r"has frames of \(32, 48\), meta/info.json says \[64, 64, 3\]"),
    (short_video, r"has 30 frames, the index wants frames 0 to 39"),
    (remove_file, r"has no file data/chunk-000/episode_000001.parquet"),
    (no_parquet, r"episode_000001.parquet cannot be read as parquet"),
]


@pytest.mark.parametrize(("break_it", "message"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_a_broken_episode_is_refused_or_passed_over_by_its_name(
    tmp_path: Path, break_it: Callable[[Path], None], message: str
) -> None:
    root = lerobot_copy("v21", tmp_path)
    break_it(root)
    with pytest.raises(ValueError, match=rf"v21, episode 1: .*{message}"):
        read(root)
    found = read(root, bad_episodes="skip")
    assert [episode.index for episode in found.episodes] == [0, 2]
    assert "passed over 1 of 3 episodes" in found.passed_over and "episode 1" in found.passed_over
    assert read(root, exclude=[1]).passed_over == ""


def set_key(key: str, value: object) -> Callable[[Path], None]:
    return lambda root: change_info(root, lambda info: info.update({key: value}))


@pytest.mark.parametrize(
    ("name", "break_it", "message"),
    [
        ("v21", set_key("data_path", "../../{episode_index}.parquet"), "leads out of the data set"),
        ("v3", set_key("video_path", "/etc/{video_key}"), "leads out of the data set"),
        ("v3", set_key("video_path", "{camera}.mp4"), "has the path '{camera}.mp4', which nothing gives"),
        ("v21", set_key("codebase_version", "v1.6"), "is in version 'v1.6' of the LeRobot format, expected v2.0, v2.1"),
        ("v21", set_key("fps", 0), "has no fps"),
        ("v21", lambda root: (root / "meta/info.json").write_text("{"), "is no JSON"),
        ("v21", lambda root: (root / "meta/episodes.jsonl").write_text(""), "has no episodes to read"),
        ("v21", lambda root: (root / "meta/episodes.jsonl").write_text("{}\n[1]"), "line 2: no JSON object"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, name: str, break_it: Callable[[Path], object], message: str) -> None:
    root = lerobot_copy(name, tmp_path)
    break_it(root)
    with pytest.raises(ValueError, match=message):
        read(root)


def test_choices_that_the_data_set_does_not_have_are_refused(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)
    with pytest.raises(ValueError, match=rf"expected cameras out of {CAMERA}, got \['front'\]"):
        read(root, cameras=["front"])
    with pytest.raises(ValueError, match=r"has episodes 0 to 2, not \[7, 8\]"):
        read(root, episodes=[0, 8], exclude=[7])
    with pytest.raises(ValueError, match=r"has no features \['effort'\], only \['action'\]"):
        read(root, action_keys=["action", "effort"])
    assert [episode.index for episode in read(root, episodes=[2, 0], exclude=[0]).episodes] == [2]


def test_several_keys_make_one_row(tmp_path: Path) -> None:
    found = read(lerobot_copy("v3", tmp_path), action_keys=["action", "observation.state"])
    assert found.columns == ["action.dx", "action.dy", "observation.state.x", "observation.state.y"]
    assert np.asarray(found.episodes[0].rows)[0].tolist() == pytest.approx([0.547847, -0.920853, 32, 32], abs=1e-6)


def test_without_the_feature_there_are_no_actions(tmp_path: Path) -> None:
    found = read(lerobot_copy("v3", tmp_path), action_keys=["pedal"])
    assert found.columns == [] and all(episode.rows is None for episode in found.episodes)


def test_an_episode_of_several_tasks_is_cut_where_the_task_changes(tmp_path: Path) -> None:
    root = lerobot_copy("v21", tmp_path)
    change_table(root / V21_DATA, lambda table: {**table, "task_index": [0] * 25 + [1] * 15})
    whole = read(lerobot_copy("v3", tmp_path)).episodes[1]
    parts = [episode for episode in read(root).episodes if episode.index == 1]
    assert [(each.name, each.prompt, each.num_frames) for each in parts] == [
        ("episode 1, frames 0 to 24", "move the red dot", 25),
        ("episode 1, frames 25 to 39", "push the red dot to the left", 15),
    ]
    np.testing.assert_array_equal(np.asarray(parts[1].rows), np.asarray(whole.rows)[25:])
    whole_video = read(root).episodes[1].cameras[0].read([24])
    assert whole_video.shape == (1, 64, 64, 3)
    direct = read(root, episodes=[1]).episodes
    np.testing.assert_array_equal(direct[1].cameras[0].read([0]), direct[0].cameras[0].read([25]))


def test_what_is_not_known_is_passed_over(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)

    def change(info: dict[str, Any]) -> None:
        info["tools"] = {"anything": 1}
        info["features"] = {
            "observation.depth": {
                "dtype": "video",
                "shape": [64, 64, 1],
                "names": None,
                "info": {"is_depth_map": True},
            },
            **info["features"],
            "language": {"dtype": "string", "shape": [1], "names": None},
        }

    change_info(root, change)
    assert len(read(root).episodes) == 3
    with pytest.raises(ValueError, match="expected cameras out of"):
        read(root, cameras=["observation.depth"])


def test_pictures_in_tables_are_frames(tmp_path: Path) -> None:
    root = lerobot_copy("v21", tmp_path)

    def png(frame: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    pictures = [png(frame) for frame in numbered_frames(40)]
    for episode in range(3):
        path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
        change_table(path, lambda table: {**table, "front": pictures})
    feature = {"dtype": "image", "shape": [32, 48, 3], "names": ["height", "width", "channels"]}
    change_info(root, lambda info: info["features"].update({"front": feature}))
    found = read(root, cameras=["front"])
    assert numbers_in(found.episodes[2].cameras[0].read([39, 0, 12])) == [39, 0, 12]
    assert found.episodes[0].frame_size == (32, 48)
    pictures[0] = {"bytes": b"no picture", "path": None}
    change_table(root / V21_DATA, lambda table: {**table, "front": pictures})
    with pytest.raises(ValueError, match=r"episode 1: .*column front, row 0: a broken picture"):
        read(root, cameras=["front"])
