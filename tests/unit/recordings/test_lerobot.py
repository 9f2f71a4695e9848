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
V3_DATA, V3_EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


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


def put(root: Path, value: float) -> None:
    def change(table: dict[str, Any]) -> dict[str, Any]:
        rows = [list(row) for row in table["action"].to_pylist()]
        rows[7][1] = value
        return {**table, "action": rows}

    change_table(root / V21_DATA, change)


def put_nan(root: Path) -> None:
    put(root, float("nan"))


def put_huge(root: Path) -> None:
    put(root, 1e300)


def widen(root: Path) -> None:
    change_table(
        root / V21_DATA, lambda table: {**table, "action": [[*row, 0.0] for row in table["action"].to_pylist()]}
    )


def break_pages(root: Path) -> None:
    content = bytearray((root / V21_DATA).read_bytes())
    content[50:900] = bytes(850)
    (root / V21_DATA).write_bytes(bytes(content))


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


def long_video(root: Path) -> None:
    from tests.support.written_videos import write_video

    write_video(root / V21_VIDEO, numbered_frames(45, 64, 64))


def change_second_line(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    lines = (root / "meta/episodes.jsonl").read_text().splitlines()
    entry = json.loads(lines[1])
    change(entry)
    (root / "meta/episodes.jsonl").write_text("\n".join([lines[0], json.dumps(entry), lines[2]]))


def no_length(root: Path) -> None:
    change_second_line(root, lambda entry: entry.pop("length"))


def null_length(root: Path) -> None:
    change_second_line(root, lambda entry: entry.update(length=None))


def remove_file(root: Path) -> None:
    (root / V21_DATA).unlink()


def no_parquet(root: Path) -> None:
    (root / V21_DATA).write_bytes(b"PAR1")


FAULTS = [
    (cut, r"episode_000001.mp4.*cut off"),
    (drop_column, r"episode_000001.parquet cannot be read: it has no column action, only observation.state"),
    (shift_time, r"do not fit 10 frames a second: frame 20 is at 2.05 s, expected 2 s"),
    (put_nan, r"its actions in .*episode_000001.parquet hold nan at frame 7, column 1"),
    (put_huge, r"its actions in .*episode_000001.parquet hold 1e\+300 at frame 7, column 1"),
    (widen, r"episode_000001.parquet has actions of 3 columns, meta/info.json says 2"),
    (break_pages, r"episode_000001.parquet cannot be read: "),
    (empty_row, r"column action cannot be read: rows have different numbers of values, \[None, 2\]"),
    (remove_rows, r"the index lists 40 frames, .*episode_000001.parquet holds 30 rows of it"),
    (other_episode, r"the index lists it, but .*episode_000001.parquet holds no rows of it"),
    (unknown_task, "it has task 5, which meta/tasks does not list"),
    (other_size, r"has frames of \(32, 48\), meta/info.json says \[64, 64, 3\]"),
    (short_video, r"episode_000001.mp4 has no frame at 3.0000 s: nearest is 2.9000 s, of 30 frames"),
    (long_video, r"episode_000001.mp4 has 45 frames up to 4.4 s, which is longer than its 40 rows up to 3.9 s"),
    (no_length, r"episodes.jsonl, line 2 cannot be read: no 'length'"),
    (null_length, r"episodes.jsonl, line 2 cannot be read: length is None, expected a whole number"),
    (remove_file, r"has no file data/chunk-000/episode_000001.parquet"),
    (no_parquet, r"episode_000001.parquet cannot be read: Parquet file size is 4 bytes"),
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
        ("v21", set_key("fps", 0), "info.json cannot be read: expected fps and chunks_size above 0, got 0 and 1000"),
        ("v21", set_key("fps", float("nan")), "info.json cannot be read: expected fps and chunks_size above 0"),
        ("v21", set_key("fps", "ten"), "info.json cannot be read: could not convert string to float: 'ten'"),
        ("v21", set_key("chunks_size", 0), "info.json cannot be read: expected fps and chunks_size above 0"),
        ("v3", set_key("features", ["action"]), "info.json cannot be read: "),
        ("v21", lambda root: change_info(root, lambda info: info.pop("video_path")), "cannot be read: no 'video_path'"),
        ("v21", set_key("video_path", None), "info.json cannot be read: expected paths, got"),
        ("v21", lambda root: (root / "meta/info.json").write_text("{"), "info.json cannot be read: Expecting property"),
        ("v21", lambda root: (root / "meta/episodes.jsonl").write_text(""), "none. there is none to be read"),
        ("v21", lambda root: (root / "meta/episodes.jsonl").write_text("[1]"), "episodes.jsonl, line 1 cannot be read"),
        ("v21", lambda root: (root / "meta/episodes.jsonl").write_bytes(b"\xff"), "episodes.jsonl cannot be read"),
        ("v21", lambda root: change_second_line(root, lambda entry: entry.update(episode_index=0)), "line 2 lists ep"),
        ("v21", lambda root: (root / "meta/tasks.jsonl").write_text("{}"), "tasks.jsonl, line 1 cannot be read: no 't"),
        ("v3", lambda root: (root / V3_EPISODES).write_bytes(b"PAR1"), "episodes.*file-000.parquet cannot be read"),
        ("v3", lambda root: (root / "meta/tasks.parquet").write_bytes(b"PAR1"), "tasks.parquet cannot be read"),
    ],
)
def test_a_broken_index_is_refused(tmp_path: Path, name: str, break_it: Callable[[Path], object], message: str) -> None:
    root = lerobot_copy(name, tmp_path)
    break_it(root)
    for bad_episodes in ("refuse", "skip"):
        with pytest.raises(ValueError, match=message):
            read(root, bad_episodes=bad_episodes)


def set_row(path: Path, column: str, row: int, value: object) -> None:
    """Write a parquet file anew with another value in one place."""

    def change(table: dict[str, Any]) -> dict[str, Any]:
        values = table[column].to_pylist()
        values[row] = value
        return {**table, column: values}

    change_table(path, change)


@pytest.mark.parametrize(
    ("path", "column", "row", "value", "message"),
    [
        (V3_DATA, "action", 50, None, r"rows have different numbers of values, \[2, None\]"),
        (V3_DATA, "action", 50, [1.0], r"rows have different numbers of values, \[2, 1\]"),
        (V3_DATA, "action", 50, [1.0, None], "1 values are empty"),
        (V3_EPISODES, f"videos/{CAMERA}/from_timestamp", 1, None, "row 1 cannot be read: float"),
        (V3_EPISODES, f"videos/{CAMERA}/from_timestamp", 1, 4.05, "has no frame at 4.0500 s: nearest is 4."),
        (V3_EPISODES, f"videos/{CAMERA}/from_timestamp", 1, -1.0, "has no frame at -1.0000 s: nearest is 0.0000 s"),
        (V3_EPISODES, f"videos/{CAMERA}/from_timestamp", 1, float("nan"), "has no frame at nan s"),
        (V3_EPISODES, "data/file_index", 1, None, "row 1 cannot be read: data/file_index is None"),
        (V3_EPISODES, "data/file_index", 1, 9, "has no file data/chunk-000/file-009.parquet"),
    ],
)
def test_one_episode_of_a_file_is_broken_alone(
    tmp_path: Path, path: str, column: str, row: int, value: object, message: str
) -> None:
    root = lerobot_copy("v3", tmp_path)
    set_row(root / path, column, row, value)
    with pytest.raises(ValueError, match=rf"v3, episode 1: .*{message}"):
        read(root)
    assert [episode.index for episode in read(root, bad_episodes="skip").episodes] == [0, 2]
    assert [episode.index for episode in read(root, exclude=[1]).episodes] == [0, 2]


def test_an_index_that_lists_an_episode_twice_is_refused(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)
    set_row(root / V3_EPISODES, "episode_index", 2, 1)
    with pytest.raises(ValueError, match=r"file-000.parquet, row 2 lists episode 1 again"):
        read(root, bad_episodes="skip")


def test_a_missing_file_of_the_index_is_named(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)
    (root / V3_EPISODES).unlink()
    with pytest.raises(FileNotFoundError, match=r"has no files meta/episodes/\*\*/\*.parquet"):
        read(root, bad_episodes="skip")


def test_nested_lists_are_one_row(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)
    flat = read(root).episodes[1].rows
    change_table(
        root / V3_DATA, lambda table: {**table, "action": [[[x], [y]] for x, y in table["action"].to_pylist()]}
    )
    change_info(root, lambda info: info["features"]["action"].update(shape=[2, 1]))
    np.testing.assert_array_equal(np.asarray(read(root).episodes[1].rows), np.asarray(flat))


def test_choices_that_the_data_set_does_not_have_are_refused(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)
    with pytest.raises(ValueError, match=rf"expected cameras out of {CAMERA}, got \['front'\]"):
        read(root, cameras=["front"])
    with pytest.raises(ValueError, match=r"has episodes 0 to 2, not \[7, 8\]"):
        read(root, episodes=[0, 8], exclude=[7])
    with pytest.raises(ValueError, match=r"has no features \['effort'\], only observation.images.top"):
        read(root, action_keys=["action", "effort"])
    with pytest.raises(ValueError, match=r"has no features \['actions'\], only"):
        read(root, action_keys=["actions"])
    with pytest.raises(ValueError, match=r"of the episodes of .* \(0 to 2\) there is none to be read"):
        read(root, exclude=[0, 1, 2])
    assert [episode.index for episode in read(root, episodes=[2, 0], exclude=[0]).episodes] == [2]


def test_several_keys_make_one_row(tmp_path: Path) -> None:
    found = read(lerobot_copy("v3", tmp_path), action_keys=["action", "observation.state"])
    assert found.columns == ["action.dx", "action.dy", "observation.state.x", "observation.state.y"]
    assert np.asarray(found.episodes[0].rows)[0].tolist() == pytest.approx([0.547847, -0.920853, 32, 32], abs=1e-6)


def test_without_the_feature_there_are_no_actions(tmp_path: Path) -> None:
    root = lerobot_copy("v3", tmp_path)
    change_info(root, lambda info: info["features"].pop("action"))
    for found in (read(root), read(lerobot_copy("v21", tmp_path), action_keys=[])):
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
    whole_video = read(root).episodes[1].cameras[0]([24])
    assert whole_video.shape == (1, 64, 64, 3)
    direct = read(root, episodes=[1]).episodes
    np.testing.assert_array_equal(direct[1].cameras[0]([0]), direct[0].cameras[0]([25]))


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
    assert numbers_in(found.episodes[2].cameras[0]([39, 0, 12])) == [39, 0, 12]
    assert found.episodes[0].frame_sizes == ((32, 48),)
    pictures[0] = {"bytes": b"no picture", "path": None}
    change_table(root / V21_DATA, lambda table: {**table, "front": pictures})
    with pytest.raises(ValueError, match=r"episode 1: .*column front, row 0: a broken picture"):
        read(root, cameras=["front"])


def test_version_2_0_has_one_file_of_statistics(tmp_path: Path) -> None:
    root = lerobot_copy("v21", tmp_path)
    change_info(root, lambda info: info.update({"codebase_version": "v2.0"}))
    (root / "meta/episodes_stats.jsonl").rename(root / "meta/stats.json")
    assert [episode.num_frames for episode in read(root).episodes] == [40, 40, 40]
