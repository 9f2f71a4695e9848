"""Files of a LeRobot v3.0 folder, one after another: parquet files of rows and of episodes, mp4 files of cameras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lightning_action.recordings.lerobot_statistics import PixelStatistics, Statistics

DATA_FILE = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_FILE = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
# Number of files in a folder, and sizes after which the next file begins, as `info.json` has them.
LIMITS = {"chunks_size": 1000, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
_EPISODES_AT_ONCE = 100
_MEGABYTE = 2**20
# Every second frame can be decoded by itself, and none waits for a later one: random windows are read quickly, and a
# frame's time is its number. One thread gives the same bytes however many cores there are.
_ENCODER = "libx264"
_ENCODER_OPTIONS = {"crf": "18", "preset": "veryfast", "bf": "0", "g": "2", "threads": "1"}


@dataclass(frozen=True)
class NumericFeature:
    """Numbers that are recorded with each frame.

    Args:
        names: Name of each column.
        dtype: Kind of the numbers.
    """

    names: list[str]
    dtype: Literal["float32", "int64", "bool"] = "float32"


# What every frame has besides.
FRAME_COLUMNS = {
    "timestamp": "float32",
    **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64"),
}


class _Files:
    """Files of one kind, one after another, in folders of a limited number; the last one is being written."""

    def __init__(self, folder: Path, pattern: str) -> None:
        self._folder, self._pattern = folder, pattern
        self.paths: list[Path] = []
        self.place: dict[str, int] = {}

    def next_path(self) -> Path:
        """Begin a file, and return where."""
        chunk, file = divmod(len(self.paths), LIMITS["chunks_size"])
        self.place = {"chunk_index": chunk, "file_index": file}
        path = self._folder / self._pattern.format(**self.place)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.paths.append(path)
        return path


class DataFiles:
    """Parquet files of the rows, with one row group for each episode."""

    def __init__(self, folder: Path, features: Mapping[str, NumericFeature]) -> None:
        import pyarrow as pa

        self._files = _Files(folder, DATA_FILE)
        kinds = {"float32": pa.float32(), "int64": pa.int64(), "bool": pa.bool_()}
        self._types = {name: _list_of(kinds[each.dtype], len(each.names)) for name, each in features.items()}
        self._types |= {name: kinds[dtype] for name, dtype in FRAME_COLUMNS.items()}
        self.names = list(self._types)
        self._writer: Any = None
        self._size = 0

    def add(self, columns: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Add the columns `[rows, width]` of an episode, and return the indices of the file."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        arrays = [_to_arrow(columns[name], kind) for name, kind in self._types.items()]
        table = pa.Table.from_arrays(arrays, schema=pa.schema(list(self._types.items())))
        if self._writer is None or self._size >= LIMITS["data_files_size_in_mb"] * _MEGABYTE:
            self.close()
            self._writer = pq.ParquetWriter(self._files.next_path(), table.schema)
        self._writer.write_table(table, row_group_size=len(table))
        self._size = self._files.paths[-1].stat().st_size
        return self._files.place

    def column(self, name: str) -> np.ndarray:
        """Read a column of all episodes back, `[rows, width]`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables = [pq.read_table(path, columns=[name]) for path in self._files.paths]
        column = pa.concat_tables(tables)[name].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        values: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(column), -1)
        return values

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = None


class EpisodeTable:
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


class VideoFiles:
    """H.264 files of one camera."""

    def __init__(self, folder: Path, name: str, size: tuple[int, int], fps: int) -> None:
        from av.video.reformatter import VideoReformatter

        self._files = _Files(folder, VIDEO_FILE.replace("{video_key}", name))
        self._name, self._size, self._fps = name, size, fps
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
            **self._files.place,
            "from_timestamp": self._first / self._fps,
            "to_timestamp": self._num_frames / self._fps,
        }
        statistics = self._episode.statistics()
        self.statistics.merge(self._episode)
        self._first, self._episode = self._num_frames, PixelStatistics()
        if self._num_bytes >= LIMITS["video_files_size_in_mb"] * _MEGABYTE:
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


def _list_of(kind: Any, size: int) -> Any:
    """Return the type of `size` numbers; a single one is stored as it is."""
    import pyarrow as pa

    return kind if size == 1 else pa.list_(kind, size)


def _to_arrow(values: np.ndarray, kind: Any) -> Any:
    """Turn `[rows, width]` into a column."""
    import pyarrow as pa

    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=kind) if pa.types.is_fixed_size_list(kind) else flat
