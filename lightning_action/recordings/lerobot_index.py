"""The index of a LeRobot data set: what its `meta` folder says, in the versions 2.0, 2.1 and 3.0 of the format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lightning_action.recordings.local_folder import LocalFolder

_VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Feature:
    """A feature of the data set: a column of its tables, or a video.

    Args:
        dtype: Type, such as `float32`, `video` or `image`.
        shape: Shape of one value.
        names: Names of the values, if they have any.
        is_depth: Whether it is a picture of distances and not of colours.
    """

    dtype: str
    shape: tuple[int, ...]
    names: list[str]
    is_depth: bool

    @property
    def is_camera(self) -> bool:
        """Whether it is a picture of colours."""
        return self.dtype in ("video", "image") and not self.is_depth


@dataclass(frozen=True)
class EpisodeEntry:
    """What the index says of an episode.

    Args:
        index: Number of the episode.
        length: Number of frames.
        tasks: Texts of its tasks.
        data_file: File of its rows, relative to the folder.
        video_files: File and time of its first frame in that file in seconds, for each camera of videos.
    """

    index: int
    length: int
    tasks: list[str]
    data_file: str
    video_files: dict[str, tuple[str, float]]


@dataclass(frozen=True)
class LeRobotIndex:
    """What a data set holds.

    Args:
        fps: Number of frames of a second.
        features: Features by name.
        tasks: Texts of the tasks by number.
        episodes: Episodes in the order of their numbers.
    """

    fps: float
    features: dict[str, Feature]
    tasks: dict[int, str]
    episodes: list[EpisodeEntry]

    @property
    def cameras(self) -> list[str]:
        """Names of the features that are pictures of colours."""
        return [name for name, feature in self.features.items() if feature.is_camera]


def read_index(folder: LocalFolder) -> LeRobotIndex:
    """Read the index of a data set.

    Raises:
        FileNotFoundError: A file of the index is missing.
        ValueError: The format is another, or a file of the index is broken.
    """
    info = _read_json(folder, "meta/info.json")
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise ValueError(
            f"{folder.address} is in version {version!r} of the LeRobot format, expected {', '.join(_VERSIONS)}: "
            "convert it with the lerobot library"
        )
    missing = [key for key in ("fps", "features", "data_path") if not info.get(key)]
    if missing:
        raise ValueError(f"meta/info.json of {folder.address} has no {', '.join(missing)}")
    features = {name: _feature(name, content) for name, content in info["features"].items()}
    videos = [name for name, feature in features.items() if feature.dtype == "video" and feature.is_camera]
    read = _episodes_of_v3 if version == "v3.0" else _episodes_of_v2
    tasks = _tasks_of_v3(folder) if version == "v3.0" else _tasks_of_v2(folder)
    episodes = sorted(read(folder, info, videos), key=lambda episode: episode.index)
    return LeRobotIndex(float(info["fps"]), features, tasks, episodes)


def _feature(name: str, content: Mapping[str, Any]) -> Feature:
    info = content.get("info") or content.get("video_info") or {}
    is_depth = bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
    return Feature(str(content.get("dtype")), tuple(content.get("shape") or ()), _names(content.get("names")), is_depth)


def _names(names: Any) -> list[str]:
    """Flatten names, which writers nest in lists and dicts, such as `{"motors": ["x", "y"]}`."""
    if isinstance(names, Mapping):
        return [name for key, value in names.items() for name in (_names(value) or [str(key)])]
    if isinstance(names, list | tuple):
        return [name for value in names for name in _names(value)]
    return [names] if isinstance(names, str) else []


def _episodes_of_v2(folder: LocalFolder, info: Mapping[str, Any], videos: list[str]) -> list[EpisodeEntry]:
    chunks_size = int(info.get("chunks_size", 1000))

    def entry(line: Mapping[str, Any]) -> EpisodeEntry:
        index = int(line["episode_index"])
        place = partial(_formatted, episode_chunk=index // chunks_size, episode_index=index)
        return EpisodeEntry(
            index,
            int(line["length"]),
            [str(task) for task in line.get("tasks") or []],
            place(info["data_path"]),
            {key: (place(info["video_path"], video_key=key), 0.0) for key in videos},
        )

    return [entry(line) for line in _read_lines(folder, "meta/episodes.jsonl")]


def _tasks_of_v2(folder: LocalFolder) -> dict[int, str]:
    return {int(line["task_index"]): str(line["task"]) for line in _read_lines(folder, "meta/tasks.jsonl")}


def _episodes_of_v3(folder: LocalFolder, info: Mapping[str, Any], videos: list[str]) -> list[EpisodeEntry]:
    import pyarrow.parquet as parquet

    def entry(row: Mapping[str, Any]) -> EpisodeEntry:
        def place(template: str, prefix: str, **more: str) -> str:
            indices = {key: int(row[f"{prefix}/{key}"]) for key in ("chunk_index", "file_index")}
            return _formatted(template, **indices, **more)

        return EpisodeEntry(
            int(row["episode_index"]),
            int(row["length"]),
            [str(task) for task in row.get("tasks") or []],
            place(info["data_path"], "data"),
            {
                key: (place(info["video_path"], f"videos/{key}", video_key=key), row[f"videos/{key}/from_timestamp"])
                for key in videos
            },
        )

    found = []
    for relative in folder.list("meta/episodes/**/*.parquet"):
        with parquet.ParquetFile(folder.path(relative)) as file:
            # Statistics are most of the columns, and not to be relied on: those of merged data sets may be wrong.
            columns = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
            rows = file.read(columns=columns).to_pylist()
        try:
            found += [entry(row) for row in rows]
        except KeyError as error:
            raise ValueError(f"{relative} of {folder.address} has no column {error}") from error
    return found


def _tasks_of_v3(folder: LocalFolder) -> dict[int, str]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(folder.path("meta/tasks.parquet"))
    # Writers up to 0.4 leave the text in a nameless index, later ones call it `task`.
    texts = [name for name in table.column_names if name in ("task", "__index_level_0__")]
    if "task_index" not in table.column_names or not texts:
        raise ValueError(f"meta/tasks.parquet of {folder.address} has {table.column_names}, not task_index and task")
    numbers = np.asarray(table["task_index"]).tolist()
    return dict(zip(numbers, table[texts[0]].to_pylist(), strict=True))


def _formatted(template: str, **values: Any) -> str:
    try:
        return template.format(**values)
    except (KeyError, IndexError, AttributeError, ValueError) as error:
        raise ValueError(f"meta/info.json has the path {template!r}, which nothing gives {error}") from error


def _read_json(folder: LocalFolder, relative: str) -> dict[str, Any]:
    path = folder.path(relative)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected an object")
    return content


def _read_lines(folder: LocalFolder, relative: str) -> list[dict[str, Any]]:
    path = folder.path(relative)
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: no JSON object ({error})") from error
    return found
