"""Reader of LeRobot data sets, by pyarrow and PyAV alone."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lightning_action.recordings.faults import Faults, OnFault, reading
from lightning_action.recordings.lerobot_index import EpisodeEntry, LeRobotIndex, read_index, read_parquet
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Episode, Frames, Recording
from lightning_action.recordings.video_file import frames_nearest, open_video, probe_video

# Part of a frame's time by which a time stamp may be off.
_TOLERANCE = 0.25
# Seconds after which work is long enough for a progress bar.
_DELAY = 2.0
_CLASS_TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


def _video_frames(path: Path, start: float, fps: float, indices: list[int]) -> np.ndarray:
    """Decode frames of an episode inside a video file, in which its first one is at a time in seconds."""
    with open_video(path) as video:
        return video.frames_at([start + index / fps for index in indices], _TOLERANCE / fps)


def _table_frames(path: Path, column: str, rows: range, folder: LocalFolder, indices: list[int]) -> np.ndarray:
    """Decode frames of an episode that are pictures in some rows of a table; paths there start from a folder."""
    cells = _image_cells(path, column, rows[0], rows[-1] + 1, path.stat().st_mtime_ns)
    return np.stack([_decoded(cells[i], folder, f"{path}, column {column}, row {rows[i]}") for i in indices])


def _decoded(cell: dict[str, Any] | None, folder: LocalFolder, place: str) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    content, path = (cell or {}).get("bytes"), (cell or {}).get("path") or ""
    source = io.BytesIO(content) if content is not None else folder.path(path)
    try:
        with Image.open(source, formats=("PNG", "JPEG")) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{place}: a broken picture ({error})") from error


@lru_cache(maxsize=4)
def _image_cells(path: Path, column: str, start: int, stop: int, written: int) -> list[Any]:
    """Read the cells of an episode; row groups outside it are passed over."""
    import pyarrow.parquet as parquet

    cells: list[Any] = []
    with parquet.ParquetFile(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            if first < stop and last > start:
                taken = file.read_row_group(group, columns=[column])[column]
                cells += taken.slice(max(0, start - first), min(last, stop) - max(first, start)).to_pylist()
            first = last
    return cells


def read_lerobot(
    folder: LocalFolder,
    cameras: Sequence[str] | None = None,
    action_keys: Sequence[str] | None = None,
    episodes: Collection[int] | None = None,
    exclude: Collection[int] = (),
    bad_episodes: OnFault = "refuse",
) -> Recording:
    """Read a LeRobot data set of version 2.0, 2.1 or 3.0; frames are decoded later.

    Args:
        folder: Folder of the data set.
        cameras: Features that show the video, side by side if there are several; None takes the first.
        action_keys: Features whose columns make an action row; None takes `action`, and none where there is none.
        episodes: Numbers of the episodes to read; None takes all.
        exclude: Numbers of episodes to leave out.
        bad_episodes: Way to deal with broken episodes, `refuse` or `skip`.

    Raises:
        FileNotFoundError: The address names no folder, or its index lacks a file.
        ValueError: The index is broken, a name or number is not in it, or an episode is broken.
    """
    index = read_index(folder)
    keys = _action_keys(index, action_keys)
    columns = [name for key in keys for name in _column_names(index, key, len(keys) > 1)]
    reader = _Reader(folder, index, _chosen_cameras(index, cameras), keys, len(columns))
    unknown = sorted({*(episodes or ()), *exclude} - index.episodes.keys())
    if unknown:
        raise ValueError(f"{folder.address} has episodes {_span(index.episodes)}, not {unknown[:10]}")
    chosen = [number for number in index.episodes if (episodes is None or number in episodes) and number not in exclude]
    if not chosen:
        raise ValueError(f"of the episodes of {folder.address} ({_span(index.episodes)}) there is none to be read")
    faults = Faults(bad_episodes)
    found: list[Episode] = []
    for number in tqdm(chosen, "reading episodes", unit="episode", delay=_DELAY, leave=False):
        with faults.of(f"{folder.address}, episode {number}"):
            found += list(reader.episodes(index.episodes[number]()))
    if not found:
        raise ValueError(f"{folder.address} has no episodes to read: {faults.summary(len(chosen))}")
    return Recording(
        fps=index.fps,
        columns=columns,
        classes=bool(keys) and all(index.features[key].dtype in _CLASS_TYPES for key in keys),
        episodes=found,
        passed_over=faults.summary(len(chosen)) if faults.found else "",
    )


class _Reader:
    """Reads episodes one after the other; the rows of a file that holds several are read once."""

    def __init__(
        self, folder: LocalFolder, index: LeRobotIndex, cameras: list[str], action_keys: list[str], num_columns: int
    ) -> None:
        self.folder, self.index, self.cameras = folder, index, cameras
        self.action_keys, self.num_columns = action_keys, num_columns
        self._table_of_file = lru_cache(maxsize=1)(self._read_table)

    def episodes(self, entry: EpisodeEntry) -> Iterator[Episode]:
        """Check an episode, and give it in parts of one task each."""
        path = self.folder.path(entry.data_file)
        table, numbers = self._table_of_file(path)
        places = np.flatnonzero(numbers == entry.index)
        if not len(places):
            raise ValueError(f"the index lists it, but {path} holds no rows of it")
        if len(places) != entry.length or places[-1] - places[0] + 1 != entry.length:
            raise ValueError(f"the index lists {entry.length} frames, {path} holds {len(places)} rows of it")
        own = table.slice(places[0], entry.length)
        rows = {name: _numbers(own[name], path, name) for name in own.column_names}
        offset = self._offset(rows, path)
        actions = self._actions(rows, path)
        cameras = [self._frames(entry, camera, path, places, offset) for camera in self.cameras]
        for start, stop, prompt in self._tasks(entry, rows):
            part = "" if stop - start == entry.length else f", frames {start} to {stop - 1}"
            yield Episode(
                index=entry.index,
                name=f"episode {entry.index}{part}",
                prompt=prompt,
                cameras=tuple(partial(_later, frames, start) if start else frames for frames, _ in cameras),
                num_frames=stop - start,
                frame_sizes=tuple(size for _, size in cameras),
                rows=None if actions is None else actions[start:stop],
                file=entry.data_file,
            )

    def _read_table(self, path: Path) -> tuple[Any, np.ndarray]:
        """Read the columns that are needed, and of each row the number of its episode."""
        wanted = ["episode_index", "frame_index", "timestamp", *self.action_keys]

        def choose(names: list[str]) -> list[str]:
            missing = [name for name in wanted if name not in names]
            if missing:
                raise ValueError(f"it has no column {', '.join(missing)}, only {', '.join(names)}")
            return [*wanted, *(name for name in ("task_index",) if name in names)]

        table = read_parquet(path, choose)
        return table, _numbers(table["episode_index"], path, "episode_index")

    def _offset(self, rows: dict[str, np.ndarray], path: Path) -> float:
        """Return the time stamp of the first frame, from which all others follow at the frame rate."""
        stamps, frames = rows["timestamp"].astype(np.float64), rows["frame_index"]
        if not np.array_equal(frames, np.arange(len(frames))):
            raise ValueError(f"frame_index in {path} does not count from 0 to {len(frames) - 1}")
        expected = stamps[0] + np.arange(len(stamps)) / self.index.fps
        off = ~(np.abs(stamps - expected) <= _TOLERANCE / self.index.fps)
        if off.any():
            first = int(off.argmax())
            raise ValueError(
                f"time stamps in {path} do not fit {self.index.fps:g} frames a second: frame {first} is at "
                f"{stamps[first]:g} s, expected {expected[first]:g} s"
            )
        return float(stamps[0])

    def _actions(self, rows: dict[str, np.ndarray], path: Path) -> np.ndarray | None:
        if not self.action_keys:
            return None
        actions = np.concatenate([rows[key].reshape(len(rows[key]), -1) for key in self.action_keys], axis=1)
        if actions.shape[1] != self.num_columns:
            raise ValueError(
                f"{path} has actions of {actions.shape[1]} columns, meta/info.json says {self.num_columns}"
            )
        with np.errstate(over="ignore"):
            numbers: np.ndarray = actions.astype(np.float32)
        for row, column in np.argwhere(~np.isfinite(numbers))[:1].tolist():
            raise ValueError(f"its actions in {path} hold {actions[row, column]} at frame {row}, column {column}")
        return numbers

    def _frames(
        self, entry: EpisodeEntry, camera: str, table: Path, places: np.ndarray, offset: float
    ) -> tuple[Frames, tuple[int, int]]:
        """Find the frames of a camera, and their height and width."""
        feature = self.index.features[camera]
        if feature.dtype == "image":
            rows = range(int(places[0]), int(places[-1]) + 1)
            frames = partial(_table_frames, table, camera, rows, self.folder)
            return frames, frames([0]).shape[1:3]
        relative, from_timestamp = entry.video_files[camera]
        path = self.folder.path(relative)
        facts = probe_video(path)
        times = from_timestamp + offset + np.arange(entry.length) / self.index.fps
        frames_nearest(path, facts.times, times, _TOLERANCE / self.index.fps)
        if self.index.whole_videos and facts.times[-1] > times[-1] + (1 - _TOLERANCE) / self.index.fps:
            raise ValueError(
                f"{path} has {facts.num_frames} frames up to {facts.times[-1]:g} s, which is longer than its "
                f"{entry.length} rows up to {times[-1]:g} s"
            )
        if len(feature.shape) == 3 and sorted(facts.frame_size) != sorted(_sides(feature.shape)):
            raise ValueError(f"{path} has frames of {facts.frame_size}, meta/info.json says {list(feature.shape)}")
        return partial(_video_frames, path, from_timestamp + offset, self.index.fps), facts.frame_size

    def _tasks(self, entry: EpisodeEntry, rows: dict[str, np.ndarray]) -> Iterator[tuple[int, int, str]]:
        """Find where a task begins and ends, and its text."""
        if "task_index" not in rows:
            yield 0, entry.length, (entry.tasks or [""])[0]
            return
        numbers = rows["task_index"].astype(np.int64)
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), entry.length]
        for start, stop in zip(bounds, bounds[1:], strict=False):
            number = int(numbers[start])
            if number not in self.index.tasks:
                raise ValueError(f"it has task {number}, which meta/tasks does not list")
            yield start, stop, self.index.tasks[number]


def _later(frames: Frames, start: int, indices: list[int]) -> np.ndarray:
    """Read frames, counted from a later one on."""
    return frames([start + index for index in indices])


def _numbers(column: Any, path: Path, name: str) -> np.ndarray:
    """Turn a column of numbers, or of lists of them, nested or not, into an array `[rows]` or `[rows, values]`."""
    import pyarrow as arrow
    import pyarrow.compute as compute

    types = arrow.types
    with reading(f"{path}, column {name}"):
        values, is_list = column.combine_chunks(), False
        num_rows = len(values)
        while types.is_list(values.type) or types.is_large_list(values.type) or types.is_fixed_size_list(values.type):
            lengths = compute.unique(compute.list_value_length(values)).to_pylist()
            if len(lengths) > 1:
                raise ValueError(f"rows have different numbers of values, {lengths[:5]} (None: empty rows)")
            values, is_list = values.flatten(), True
        kind = values.type
        if values.null_count:
            raise ValueError(f"{values.null_count} values are empty")
        if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
            raise ValueError(f"expected numbers, got {kind}")
        numbers: np.ndarray = values.cast(arrow.float64()).to_numpy(zero_copy_only=False)
        return numbers.reshape(num_rows, -1) if is_list else numbers


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Drop the channels, which stand first or last."""
    return shape[:2] if shape[-1] in (1, 3, 4) else shape[1:]


def _chosen_cameras(index: LeRobotIndex, cameras: Sequence[str] | None) -> list[str]:
    if not index.cameras:
        raise ValueError(f"the data set has no camera among its features {', '.join(index.features)}")
    unknown = [camera for camera in cameras or () if camera not in index.cameras]
    if unknown or (cameras is not None and not cameras):
        raise ValueError(f"expected cameras out of {', '.join(index.cameras)}, got {list(cameras or ())}")
    return list(cameras or index.cameras[:1])


def _action_keys(index: LeRobotIndex, keys: Sequence[str] | None) -> list[str]:
    """Refuse that a key is missing which was asked for by name."""
    if keys is None:
        return [key for key in ("action",) if key in index.features]
    missing = [key for key in keys if key not in index.features]
    if missing:
        raise ValueError(f"the data set has no features {missing}, only {', '.join(index.features)}")
    return list(keys)


def _column_names(index: LeRobotIndex, key: str, several: bool) -> list[str]:
    feature = index.features[key]
    count = int(np.prod(feature.shape)) if feature.shape else 1
    names = feature.names if len(feature.names) == count else [f"{key}_{column}" for column in range(count)]
    return [f"{key}.{name}" for name in names] if several else names


def _span(numbers: Collection[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}" if numbers else "none"
