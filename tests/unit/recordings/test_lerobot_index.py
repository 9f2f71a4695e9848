"""The index alone; tests/unit/recordings/test_lerobot.py reads whole data sets, and breaks each part of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from lightning_action.recordings.lerobot_index import EpisodeEntry, Feature, LeRobotIndex, read_index, read_parquet
from lightning_action.recordings.local_folder import LocalFolder

INFO: dict[str, Any] = {
    "fps": 10,
    "chunks_size": 2,
    "data_path": "data/{episode_chunk:03d}/{episode_index:06d}.parquet",
    "video_path": "videos/{video_key}/{episode_index:06d}.mp4",
    "features": {
        "top": {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
        "depth": {"dtype": "video", "shape": [48, 64, 1], "video_info": {"video.is_depth_map": True}},
        "action": {"dtype": "float32", "shape": [3], "names": {"arm": ["x", "y"], "gripper": None}},
    },
}
FILES = {"data_path": "d/{chunk_index}-{file_index}.parquet", "video_path": "v/{video_key}/{chunk_index}-{file_index}"}


def lines(*records: dict[str, Any]) -> str:
    return "\n".join(map(json.dumps, records)) + "\n\n"


def index_of_v2(folder: Path, *episodes: dict[str, Any], version: str = "v2.1", **changes: Any) -> LeRobotIndex:
    (folder / "meta").mkdir(exist_ok=True)
    (folder / "meta/info.json").write_text(json.dumps({**INFO, "codebase_version": version, **changes}))
    (folder / "meta/episodes.jsonl").write_text(lines(*episodes))
    (folder / "meta/tasks.jsonl").write_text(
        lines({"task_index": 0, "task": "push"}, {"task_index": 1, "task": "pull"})
    )
    return read_index(LocalFolder(str(folder)))


def index_of_v3(folder: Path, *episodes: dict[str, Any], text: str = "task") -> LeRobotIndex:
    (folder / "meta/episodes/chunk-000").mkdir(parents=True)
    (folder / "meta/info.json").write_text(json.dumps({**INFO, **FILES, "codebase_version": "v3.0"}))
    parquet.write_table(arrow.Table.from_pylist(list(episodes)), folder / "meta/episodes/chunk-000/file-000.parquet")
    parquet.write_table(arrow.table({"task_index": [1, 0], text: ["pull", "push"]}), folder / "meta/tasks.parquet")
    return read_index(LocalFolder(str(folder)))


def test_features_by_hand(tmp_path: Path) -> None:
    index = index_of_v2(tmp_path)
    assert index.features["top"] == Feature("video", (48, 64, 3), ["height", "width", "channels"], False)
    assert index.features["action"].names == ["x", "y", "gripper"] and not index.features["action"].is_camera
    assert index.features["depth"].is_depth and index.cameras == ["top"]
    assert (index.fps, index.tasks, index.episodes) == (10.0, {0: "push", 1: "pull"}, {})


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_version_2_has_files_for_each_episode(tmp_path: Path, version: str) -> None:
    episodes = ({"episode_index": 3, "length": 40.0, "tasks": ["push"]}, {"episode_index": 0, "length": 7})
    index = index_of_v2(tmp_path, *episodes, version=version)
    assert index.whole_videos and list(index.episodes) == [0, 3]
    assert index.episodes[3]() == EpisodeEntry(
        3, 40, ["push"], "data/001/000003.parquet", {"top": ("videos/top/000003.mp4", 0.0)}
    )
    assert index.episodes[0]().tasks == []


def test_version_3_has_several_episodes_in_a_file(tmp_path: Path) -> None:
    record = {
        "episode_index": 4,
        "length": 12,
        "tasks": ["pull"],
        **{"data/chunk_index": 1, "data/file_index": 2},
        **{"videos/top/chunk_index": 3, "videos/top/file_index": 5, "videos/top/from_timestamp": 1.5},
        "stats/action/max": 9.0,
    }
    index = index_of_v3(tmp_path, record)
    assert not index.whole_videos and index.tasks == {1: "pull", 0: "push"}
    assert index.episodes[4]() == EpisodeEntry(4, 12, ["pull"], "d/1-2.parquet", {"top": ("v/top/3-5", 1.5)})


def test_early_writers_keep_tasks_in_a_nameless_index(tmp_path: Path) -> None:
    assert index_of_v3(tmp_path / "old", {"episode_index": 0}, text="__index_level_0__").tasks == {1: "pull", 0: "push"}
    with pytest.raises(
        ValueError, match=r"tasks.parquet has the columns \['task_index', 'words'\], not task_index and"
    ):
        index_of_v3(tmp_path / "other", {"episode_index": 0}, text="words")


def test_an_entry_that_is_broken_is_told_when_it_is_read(tmp_path: Path) -> None:
    index = index_of_v2(tmp_path, {"episode_index": 0, "length": 5}, {"episode_index": 1, "length": 5.5})
    assert index.episodes[0]().length == 5
    with pytest.raises(
        ValueError, match="episodes.jsonl, line 2 cannot be read: length is 5.5, expected a whole number"
    ):
        index.episodes[1]()


def test_paths_that_nothing_fills_are_told(tmp_path: Path) -> None:
    index = index_of_v2(tmp_path, {"episode_index": 0, "length": 5}, data_path="data/{part}.parquet")
    with pytest.raises(ValueError, match=r"has the path 'data/\{part\}.parquet', which nothing gives 'part'"):
        index.episodes[0]()


def test_an_index_is_refused_where_it_is_not_understood(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is in version 'v1.6' of the LeRobot format, expected v2.0, v2.1, v3.0: conv"):
        index_of_v2(tmp_path, version="v1.6")
    for fps in (0, float("inf")):
        with pytest.raises(ValueError, match="expected fps and chunks_size above 0"):
            index_of_v2(tmp_path, fps=fps)
    with pytest.raises(ValueError, match="line 2 lists episode 0 again: list each once"):
        index_of_v2(tmp_path, {"episode_index": 0}, {"episode_index": 0})
    (tmp_path / "meta/info.json").unlink()
    with pytest.raises(FileNotFoundError, match="meta/info.json"):
        read_index(LocalFolder(str(tmp_path)))


def test_columns_of_a_table_are_chosen(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"a": [1], "b": [2], "c": [3]}), tmp_path / "t.parquet")
    assert read_parquet(tmp_path / "t.parquet", lambda names: names[1:]).to_pylist() == [{"b": 2, "c": 3}]
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="t.parquet cannot be read: "):
        read_parquet(tmp_path / "t.parquet", lambda names: names)
