"""LeRobot v3.0 folders (https://github.com/huggingface/lerobot), written as frames come; lerobot itself is not needed.

Many episodes share a parquet file and, for each camera, an mp4 file, in which an episode is the time from one timestamp
to another. A file that has grown past its limit is followed by the next one at the beginning of an episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_action.atomic import creating_folder, require_new_folder, write_json
from lightning_action.recordings.lerobot_statistics import PixelStatistics, Statistics, column_statistics

INFO_FILE = "meta/info.json"
_DATA_FILE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO_FILE = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_EPISODES_FILE = "meta/episodes/chunk-000/file-000.parquet"
_EPISODES_AT_ONCE = 100
_MEGABYTE = 2**20
# Every second frame can be decoded by itself, and none waits for a later one: random windows are read quickly, and a
# frame's time is its number. One thread gives the same bytes on any machine.
_ENCODER = "libx264"
_ENCODER_OPTIONS = {"crf": "18", "preset": "veryfast", "bf": "0", "g": "2", "threads": "1"}


@dataclass(frozen=True)
class Feature:
    """Numbers that are recorded with each frame.

    Args:
        names: Name of each column.
        dtype: Kind of the numbers.
    """

    names: list[str]
    dtype: Literal["float32", "int64", "bool"] = "float32"


# What every frame has besides.
_FRAME_COLUMNS = {
    "timestamp": "float32",
    **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64"),
}


@dataclass(frozen=True)
class FileLimits:
    """Sizes at which the next file or folder begins.

    Args:
        data_files_size_in_mb: Size of a parquet file after which the next one begins.
        video_files_size_in_mb: Size of an mp4 file after which the next one begins.
        chunks_size: Number of files in a folder.
    """

    data_files_size_in_mb: float = 100
    video_files_size_in_mb: float = 200
    chunks_size: int = 1000


@contextmanager
def writing_lerobot(
    path: Path,
    fps: int,
    cameras: Mapping[str, tuple[int, int]],
    features: Mapping[str, Feature],
    robot_type: str = "",
    limits: FileLimits = FileLimits(),
    overwrite: bool = False,
) -> Iterator[LeRobotWriter]:
    """Yield the writer of a folder that appears when the block ends, whole, and not at all if it fails.

    Args:
        path: Path of the new folder.
        fps: Number of frames of a second.
        cameras: Height and width of the frames of each camera, such as `observation.image`.
        features: Numbers that come with each frame, such as `action`.
        robot_type: Name of what was recorded.
        limits: Sizes of files.
        overwrite: Whether a LeRobot folder at `path` is replaced.

    Raises:
        ValueError: A frame size is odd, which the pixel format of the videos does not allow; or `fps` is below 1.
        FileExistsError: Something is there, and it is not a LeRobot folder that may be replaced.
        ImportError: The package pyarrow is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError("LeRobot folders need pyarrow: pip install 'lightning_action[data]'") from error
    require_writable_sizes(cameras, fps)
    require_free(path, overwrite)
    with creating_folder(path, overwrite) as folder:
        writer = LeRobotWriter(folder, fps, cameras, features, robot_type, limits)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse a path where something is, unless it is a LeRobot folder that is to be overwritten.

    Raises:
        FileExistsError: There is something else.
    """
    if not overwrite or not path.exists():
        require_new_folder(path)
    elif not (path / INFO_FILE).is_file():
        raise FileExistsError(f"{path} is no LeRobot folder ({INFO_FILE} is missing), so it is not overwritten")


def require_writable_sizes(cameras: Mapping[str, tuple[int, int]], fps: float) -> None:
    """Refuse videos that cannot be encoded.

    Raises:
        ValueError: A side is odd or below 16 pixels, or there is less than one frame a second.
    """
    if fps < 1 or fps != int(fps):
        raise ValueError(f"a LeRobot folder has a whole number of frames of a second, got {fps}")
    for name, (height, width) in cameras.items():
        if height % 2 or width % 2 or min(height, width) < 16:
            raise ValueError(
                f"frames of {name} are {height} x {width}, expected even sides of at least 16 pixels, which yuv420p "
                "and H.264 need: choose another frame size"
            )


class LeRobotWriter:
    """Writes frames, and ends episodes; see `writing_lerobot` for the arguments."""

    def __init__(
        self,
        folder: Path,
        fps: int,
        cameras: Mapping[str, tuple[int, int]],
        features: Mapping[str, Feature],
        robot_type: str,
        limits: FileLimits,
    ) -> None:
        self.folder, self._fps, self._robot_type, self._limits = folder, fps, robot_type, limits
        self._features = dict(features)
        self._videos = {name: _VideoFiles(folder, name, size, fps, limits) for name, size in cameras.items()}
        self._data = _DataFiles(folder, self._features, limits)
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in features}
        self._tasks: dict[str, int] = {}
        self._episodes = _EpisodeTable(folder / _EPISODES_FILE)
        self.num_episodes = 0
        self.num_frames = self._length = 0

    def add_frame(self, images: Mapping[str, np.ndarray], values: Mapping[str, ArrayLike]) -> None:
        """Add a frame to the running episode.

        Args:
            images: Picture of each camera, `[H, W, 3]` of uint8.
            values: Numbers of each feature, as many as it has names.

        Raises:
            ValueError: A picture or numbers are of another shape, or not finite.
        """
        place = f"episode {self.num_episodes}, frame {self._length}"
        for name, feature in self._features.items():
            row = np.asarray(values[name], feature.dtype).reshape(-1)
            if len(row) != len(feature.names) or not np.isfinite(row).all():
                raise ValueError(f"{place}: {name} must be {len(feature.names)} finite numbers, got {row.tolist()}")
            self._rows[name].append(row)
        for name, video in self._videos.items():
            video.add(images[name], place)
        self._length += 1

    def end_episode(self, task: str) -> None:
        """End the running episode.

        Args:
            task: Description of what it shows.

        Raises:
            ValueError: It has no frame.
        """
        length = self._length
        if not length:
            raise ValueError(f"episode {self.num_episodes} has no frame")
        columns = {name: np.stack(rows) for name, rows in self._rows.items()}
        columns |= self._frame_columns(self._tasks.setdefault(task, len(self._tasks)))
        episode: dict[str, Any] = {
            "episode_index": self.num_episodes,
            "tasks": [task],
            "length": length,
            **_prefixed("data", self._data.add(columns)),
            "dataset_from_index": self.num_frames,
            "dataset_to_index": self.num_frames + length,
        }
        statistics = {name: column_statistics(each) for name, each in columns.items()}
        for name, video in self._videos.items():
            span, statistics[name] = video.end_episode()
            episode |= _prefixed(f"videos/{name}", span)
        for name, each in statistics.items():
            episode |= _prefixed(f"stats/{name}", each)
        self._episodes.add({**episode, "meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0})
        self.num_episodes += 1
        self.num_frames += length
        self._rows, self._length = {name: [] for name in self._features}, 0

    def finish(self) -> None:
        """Write what is known at the end: descriptions, tasks, episodes and statistics.

        Raises:
            ValueError: No episode was recorded.
        """
        if not self.num_episodes:
            raise ValueError("no episode was recorded")
        self.close()
        write_json(self.folder / INFO_FILE, self._info())
        statistics = {name: video.statistics.statistics() for name, video in self._videos.items()}
        statistics |= {name: column_statistics(self._data.column(name)) for name in self._data.names}
        write_json(self.folder / "meta/stats.json", statistics)
        self._write_tasks()

    def close(self) -> None:
        """Close the files that are open."""
        self._data.close()
        self._episodes.close()
        for video in self._videos.values():
            video.close()

    def _frame_columns(self, task_index: int) -> dict[str, np.ndarray]:
        frames = np.arange(self._length)
        columns = {
            "timestamp": frames / self._fps,
            "frame_index": frames,
            "episode_index": np.full(self._length, self.num_episodes),
            "index": self.num_frames + frames,
            "task_index": np.full(self._length, task_index),
        }
        return {name: each.astype(_FRAME_COLUMNS[name])[:, None] for name, each in columns.items()}

    def _info(self) -> dict[str, Any]:
        numbers = {
            name: {"dtype": feature.dtype, "shape": [len(feature.names)], "names": feature.names}
            for name, feature in self._features.items()
        }
        of_frames = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in _FRAME_COLUMNS.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot_type,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            "chunks_size": self._limits.chunks_size,
            "data_files_size_in_mb": self._limits.data_files_size_in_mb,
            "video_files_size_in_mb": self._limits.video_files_size_in_mb,
            "fps": self._fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": _DATA_FILE,
            "video_path": _VIDEO_FILE,
            "features": {**{name: video.info() for name, video in self._videos.items()}, **numbers, **of_frames},
        }

    def _write_tasks(self) -> None:
        """Write the texts as the index of a pandas table, as which all versions of lerobot read them."""
        index = {"name": "task", "field_name": "task", "pandas_type": "unicode", "numpy_type": "object"}
        number = {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"}
        name_of_columns = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object"}
        pandas = {
            "index_columns": ["task"],
            "column_indexes": [{**name_of_columns, "metadata": {"encoding": "UTF-8"}}],
            "columns": [{**number, "metadata": None}, {**index, "metadata": None}],
            "pandas_version": "2.2.0",
        }
        columns = {"task_index": list(self._tasks.values()), "task": list(self._tasks)}
        _write_table(self.folder / "meta/tasks.parquet", columns, {"pandas": json.dumps(pandas)})


class _Files:
    """Files of one kind, one after another, in folders of a limited number."""

    def __init__(self, folder: Path, pattern: str, chunks_size: int) -> None:
        self._folder, self._pattern, self._chunks_size = folder, pattern, chunks_size
        self._num_files = 0

    def place(self) -> dict[str, int]:
        """Return the indices of the file that is written."""
        chunk, file = divmod(self._num_files - 1, self._chunks_size)
        return {"chunk_index": chunk, "file_index": file}

    def next_path(self) -> Path:
        """Begin a file, and return where."""
        self._num_files += 1
        path = self._folder / self._pattern.format(**self.place())
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def paths(self) -> list[Path]:
        """List all files so far."""
        places = (divmod(index, self._chunks_size) for index in range(self._num_files))
        return [self._folder / self._pattern.format(chunk_index=chunk, file_index=file) for chunk, file in places]


class _DataFiles:
    """Parquet files of the rows, with one row group for each episode."""

    def __init__(self, folder: Path, features: Mapping[str, Feature], limits: FileLimits) -> None:
        import pyarrow as pa

        self._files = _Files(folder, _DATA_FILE, limits.chunks_size)
        self._max_bytes = limits.data_files_size_in_mb * _MEGABYTE
        kinds = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
        self._types = {name: _list_of(kinds[each.dtype], len(each.names)) for name, each in features.items()}
        self._types |= {name: kinds[dtype] for name, dtype in _FRAME_COLUMNS.items()}
        self.names = list(self._types)
        self._writer: Any = None
        self._size = 0

    def add(self, columns: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Add the columns `[rows, width]` of an episode, and return the indices of the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = [_to_arrow(columns[name], kind) for name, kind in self._types.items()]
        table = pa.Table.from_arrays(arrays, schema=pa.schema(list(self._types.items())))
        if self._writer is None or self._size >= self._max_bytes:
            self.close()
            self._writer = pq.ParquetWriter(self._files.next_path(), table.schema)
        self._writer.write_table(table, row_group_size=len(table))
        self._size = self._files.paths()[-1].stat().st_size
        return self._files.place()

    def column(self, name: str) -> np.ndarray:
        """Read a column of all episodes back, `[rows, width]`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = [pq.read_table(path, columns=[name]) for path in self._files.paths()]
        column = pa.concat_tables(tables)[name].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        values: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return values

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class _EpisodeTable:
    """Parquet file of the episodes, some of which are written at once."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting = path, list[dict[str, Any]]()
        self._writer: Any = None

    def add(self, episode: dict[str, Any]) -> None:
        """Add a row; all have the same keys."""
        self._waiting.append(episode)
        if len(self._waiting) == _EPISODES_AT_ONCE:
            self._write()

    def close(self) -> None:
        if self._waiting:
            self._write()
        if self._writer is not None:
            self._writer.close()
        self._writer = None

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = None if self._writer is None else self._writer.schema
        table = pa.Table.from_pylist(self._waiting, schema=schema)
        if self._writer is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)
        self._waiting = []


class _VideoFiles:
    """H.264 files of one camera."""

    def __init__(self, folder: Path, name: str, size: tuple[int, int], fps: int, limits: FileLimits) -> None:
        from av.video.reformatter import VideoReformatter

        pattern = _VIDEO_FILE.replace("{video_key}", name)
        self._files = _Files(folder, pattern, limits.chunks_size)
        self._name, self._size, self._fps = name, size, fps
        self._max_bytes = limits.video_files_size_in_mb * _MEGABYTE
        self._reformat = VideoReformatter().reformat
        self._container: Any = None
        self._stream: Any = None
        self._num_bytes = self._num_frames = self._first = 0
        self._episode = PixelStatistics()
        self.statistics = PixelStatistics()

    def add(self, image: np.ndarray, place: str) -> None:
        """Encode the next frame.

        Raises:
            ValueError: The picture is of another shape or kind.
        """
        from av import VideoFrame

        if image.shape != (*self._size, 3) or image.dtype != np.uint8:
            raise ValueError(
                f"{place}: {self._name} must be {[*self._size, 3]} of uint8, got {list(image.shape)} of {image.dtype}"
            )
        if self._container is None:
            self._open()
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        # A scaler of its own for each frame, in several threads, would take most of the time.
        frame = self._reformat(frame, format="yuv420p", threads=1)
        frame.pts, frame.time_base = self._num_frames, Fraction(1, self._fps)
        self._mux(self._stream.encode(frame))
        self._num_frames += 1
        self._episode.add(image)

    def end_episode(self) -> tuple[dict[str, Any], Statistics]:
        """Return where the episode is, with its first and last time in seconds, and its statistics."""
        span = {
            **self._files.place(),
            "from_timestamp": self._first / self._fps,
            "to_timestamp": self._num_frames / self._fps,
        }
        statistics = self._episode.statistics()
        self.statistics.merge(self._episode)
        self._first, self._episode = self._num_frames, PixelStatistics()
        if self._num_bytes >= self._max_bytes:
            self.close()
        return span, statistics

    def close(self) -> None:
        """Write what the encoder holds back, and the file's index."""
        if self._container is not None:
            self._mux(self._stream.encode(None))
            self._container.close()
        self._container = None

    def info(self) -> dict[str, Any]:
        """Describe the camera as `info.json` does."""
        height, width = self._size
        return {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": height,
                "video.width": width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }

    def _open(self) -> None:
        import av

        self._container = av.open(str(self._files.next_path()), "w", options={"movflags": "faststart"})
        self._stream = self._container.add_stream(_ENCODER, rate=self._fps, options=dict(_ENCODER_OPTIONS))
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = "yuv420p"
        self._num_bytes = self._num_frames = self._first = 0

    def _mux(self, packets: list[Any]) -> None:
        self._num_bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}


def _list_of(kind: Any, size: int) -> Any:
    """Return the type of `size` numbers; a single one is stored as it is."""
    import pyarrow as pa

    return kind if size == 1 else pa.list_(kind, size)


def _to_arrow(values: np.ndarray, kind: Any) -> Any:
    """Turn `[rows, width]` into a column."""
    import pyarrow as pa

    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if pa.types.is_fixed_size_list(kind) else flat


def _write_table(path: Path, columns: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns), metadata=metadata), path)
