"""The index of a LeRobot data set: what its `meta` folder says, in the versions 2.0, 2.1 and 3.0 of the format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_action.recordings.faults import reading
from lightning_action.recordings.local_folder import LocalFolder

_Record = Mapping[str, Any]
_VERSIONS = ("v2.0", "v2.1", "v3.0")


@dataclass(frozen=True)
class Feature:
    """A feature of the data set: a column of its tables, or a video.

    Args:
        dtype: Type, such as `float32`, `video` or `image`.
        shape: Shape of one value.
        names: Names of the values, if they have any.
        is_depth: True if it is a picture of distances and not of colours.
    """

    dtype: str
    shape: tuple[int, ...]
    names: list[str]
    is_depth: bool

    @property
    def is_camera(self) -> bool:
        """True if it is a picture of colours."""
        return self.dtype in ("video", "image") and not self.is_depth


@dataclass(frozen=True)
class EpisodeEntry:
    """Entry of the index for an episode.

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
    """Index of what a data set holds.

    Args:
        fps: Number of frames of a second.
        features: Features by name.
        tasks: Texts of the tasks by number.
        episodes: Functions that read the entries of episodes, by their numbers and in their order. They raise a
            ValueError where an entry is broken.
        whole_videos: True if a video file holds one episode.
    """

    fps: float
    features: dict[str, Feature]
    tasks: dict[int, str]
    episodes: dict[int, Callable[[], EpisodeEntry]]
    whole_videos: bool

    @property
    def cameras(self) -> list[str]:
        """Names of the features that are pictures of colours."""
        return [name for name, feature in self.features.items() if feature.is_camera]


def read_index(folder: LocalFolder) -> LeRobotIndex:
    """Read the index of a data set.

    Raises:
        FileNotFoundError: A file of the index is missing.
        ValueError: The format is not one that is read here, or a file of the index is broken.
    """
    path = folder.path("meta/info.json")
    with reading(path):
        info = dict(json.loads(path.read_text(encoding="utf-8")))
    version = info.get("codebase_version")
    if version not in _VERSIONS:
        raise ValueError(
            f"{folder.address} is in version {version!r} of the LeRobot format, expected {', '.join(_VERSIONS)}: "
            "convert it with the lerobot library"
        )
    with reading(path):
        fps, chunks_size = float(info["fps"]), _whole(info, "chunks_size", 1000)
        if not 0 < fps < math.inf or chunks_size < 1:
            raise ValueError(f"expected fps and chunks_size above 0, got {fps:g} and {chunks_size}")
        features = {name: _feature(name, content) for name, content in info["features"].items()}
        videos = [name for name, feature in features.items() if feature.dtype == "video" and feature.is_camera]
        paths = {key: info[key] for key in ("data_path", *(["video_path"] if videos else []))}
        if not all(isinstance(value, str) for value in paths.values()):
            raise ValueError(f"expected paths, got {paths}")
    if version == "v3.0":
        read, records, tasks = partial(_entry_of_v3, paths, videos), _records_of_v3(folder), _tasks_of_v3(folder)
    else:
        read = partial(_entry_of_v2, paths, videos, chunks_size)
        records, tasks = _read_lines(folder, "meta/episodes.jsonl"), _tasks_of_v2(folder)
    return LeRobotIndex(fps, features, tasks, _by_number(records, read), version != "v3.0")


def _by_number(
    records: Iterable[tuple[str, _Record]], read: Callable[[_Record], EpisodeEntry]
) -> dict[int, Callable[[], EpisodeEntry]]:
    """Sort records by the numbers of their episodes; the rest of each is read later, for it alone may be broken."""

    def entry(source: str, record: _Record) -> EpisodeEntry:
        with reading(source):
            return read(record)

    found: dict[int, Callable[[], EpisodeEntry]] = {}
    for source, record in records:
        with reading(source):
            number = _whole(record, "episode_index")
        if number in found:
            raise ValueError(f"{source} lists episode {number} again: list each once")
        found[number] = partial(entry, source, record)
    return dict(sorted(found.items()))


def _feature(name: str, content: Mapping[str, Any]) -> Feature:
    info = content.get("info") or content.get("video_info") or {}
    is_depth = bool(info.get("is_depth_map") or info.get("video.is_depth_map"))
    shape = tuple(int(side) for side in content.get("shape") or ())
    return Feature(str(content.get("dtype")), shape, _names(content.get("names")), is_depth)


def _names(names: Any) -> list[str]:
    """Flatten names, which writers nest in lists and dicts, such as `{"motors": ["x", "y"]}`."""
    if isinstance(names, Mapping):
        return [name for key, value in names.items() for name in (_names(value) or [str(key)])]
    if isinstance(names, list | tuple):
        return [name for value in names for name in _names(value)]
    return [names] if isinstance(names, str) else []


def _entry_of_v2(paths: dict[str, str], videos: list[str], chunks_size: int, record: _Record) -> EpisodeEntry:
    index = _whole(record, "episode_index")
    place = partial(_formatted, episode_chunk=index // chunks_size, episode_index=index)
    return EpisodeEntry(
        index,
        _whole(record, "length"),
        [str(task) for task in record.get("tasks") or []],
        place(paths["data_path"]),
        {key: (place(paths["video_path"], video_key=key), 0.0) for key in videos},
    )


def _tasks_of_v2(folder: LocalFolder) -> dict[int, str]:
    found = {}
    for source, record in _read_lines(folder, "meta/tasks.jsonl"):
        with reading(source):
            found[_whole(record, "task_index")] = str(record["task"])
    return found


def _entry_of_v3(paths: dict[str, str], videos: list[str], record: _Record) -> EpisodeEntry:
    def place(template: str, prefix: str, **more: str) -> str:
        indices = {key: _whole(record, f"{prefix}/{key}") for key in ("chunk_index", "file_index")}
        return _formatted(template, **indices, **more)

    return EpisodeEntry(
        _whole(record, "episode_index"),
        _whole(record, "length"),
        [str(task) for task in record.get("tasks") or []],
        place(paths["data_path"], "data"),
        {
            key: (
                place(paths["video_path"], f"videos/{key}", video_key=key),
                float(record[f"videos/{key}/from_timestamp"]),
            )
            for key in videos
        },
    )


def _records_of_v3(folder: LocalFolder) -> Iterator[tuple[str, _Record]]:
    pattern = "meta/episodes/**/*.parquet"
    files = folder.list(pattern)
    if not files:
        raise FileNotFoundError(f"the data set {folder.address} has no files {pattern}: copy it again")
    for relative in files:
        path = folder.path(relative)
        # Statistics are most of the columns, and not to be relied on: those of merged data sets may be wrong.
        table = read_parquet(path, lambda names: [name for name in names if not name.startswith("stats/")])
        for number, record in enumerate(table.to_pylist()):
            yield f"{path}, row {number}", record


def _tasks_of_v3(folder: LocalFolder) -> dict[int, str]:
    path = folder.path("meta/tasks.parquet")
    table = read_parquet(path, lambda names: names)
    # Writers up to 0.4 leave the text in a nameless index, later ones call it `task`.
    texts = [name for name in table.column_names if name in ("task", "__index_level_0__")]
    if "task_index" not in table.column_names or not texts:
        raise ValueError(f"{path} has the columns {table.column_names}, not task_index and task")
    return dict(zip(table["task_index"].to_pylist(), map(str, table[texts[0]].to_pylist()), strict=True))


def read_parquet(path: Path, choose: Callable[[list[str]], list[str]]) -> Any:
    """Read some columns of a parquet file as a pyarrow table.

    Args:
        path: File.
        choose: Function that takes the names of all columns, and returns those to read.

    Raises:
        ValueError: The file is cut off or broken, or `choose` raises.
    """
    import pyarrow.parquet as parquet

    with reading(path), parquet.ParquetFile(path) as file:
        return file.read(columns=choose(file.schema_arrow.names))


def _formatted(template: str, **values: Any) -> str:
    try:
        return template.format(**values)
    except (KeyError, IndexError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"meta/info.json has the path {template!r}, which nothing gives {error}") from error


def _read_lines(folder: LocalFolder, relative: str) -> Iterator[tuple[str, _Record]]:
    """Read lines of JSON objects, each with its place in words."""
    path = folder.path(relative)
    with reading(path):
        lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if line.strip():
            with reading(f"{path}, line {number}"):
                record = dict(json.loads(line))
            yield f"{path}, line {number}", record


def _whole(record: _Record, key: str, default: int | None = None) -> int:
    value = record[key] if default is None else record.get(key, default)
    if not isinstance(value, int | float) or value % 1:
        raise ValueError(f"{key} is {value!r}, expected a whole number")
    return int(value)
