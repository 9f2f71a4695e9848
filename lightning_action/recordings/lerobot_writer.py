"""LeRobot v3.0 folders (https://github.com/huggingface/lerobot), written as frames come; lerobot itself is not needed.

Many episodes share a parquet file and, for each camera, an mp4 file, in which an episode is the time from one timestamp
to another. A file that has grown past its limit is followed by the next one at the beginning of an episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lightning_action.atomic import creating_folder, require_new_folder, write_json
from lightning_action.recordings.lerobot_files import (
    DATA_FILE,
    FRAME_COLUMNS,
    LIMITS,
    VIDEO_FILE,
    DataFiles,
    EpisodeTable,
    NumericFeature,
    VideoFiles,
)
from lightning_action.recordings.lerobot_statistics import column_statistics

INFO_FILE = "meta/info.json"
_EPISODES_FILE = "meta/episodes/chunk-000/file-000.parquet"


@contextmanager
def writing_lerobot(
    path: Path,
    fps: int,
    cameras: Mapping[str, tuple[int, int]],
    features: Mapping[str, NumericFeature],
    robot_type: str = "",
    overwrite: bool = False,
) -> Iterator[LeRobotWriter]:
    """Yield the writer of a folder that appears when the block ends, whole, and not at all if it fails.

    Args:
        path: Path of the new folder.
        fps: Number of frames of a second.
        cameras: Height and width of the frames of each camera, such as `observation.image`.
        features: Numbers that come with each frame, such as `action`.
        robot_type: Name of what was recorded.
        overwrite: True replaces a LeRobot folder at `path`.

    Raises:
        ValueError: A frame size is odd, which the pixel format of the videos does not allow; or `fps` is below 1.
        FileExistsError: The path is taken by something that is no LeRobot folder that may be replaced.
        ImportError: The package pyarrow is missing.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError("LeRobot folders need pyarrow: pip install 'lightning_action[data]'") from error
    require_writable_sizes(cameras, fps)
    require_free(path, overwrite)
    with creating_folder(path, overwrite) as folder:
        writer = LeRobotWriter(folder, fps, cameras, features, robot_type)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


def require_free(path: Path, overwrite: bool) -> None:
    """Refuse a path where something is, unless it is a LeRobot folder that is to be overwritten.

    Raises:
        FileExistsError: The path is taken by something that may not be replaced.
    """
    if not overwrite or not path.exists():
        require_new_folder(path)
    elif not (path / INFO_FILE).is_file():
        raise FileExistsError(f"{path} is no LeRobot folder ({INFO_FILE} is missing), so it is not overwritten")


def require_writable_sizes(cameras: Mapping[str, tuple[int, int]], fps: float) -> None:
    """Refuse videos that cannot be encoded.

    Raises:
        ValueError: A side is odd or below 16 pixels, or a second has less than one frame.
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
        features: Mapping[str, NumericFeature],
        robot_type: str,
    ) -> None:
        self.folder, self._fps, self._robot_type = folder, fps, robot_type
        self._features = dict(features)
        self._videos = {name: VideoFiles(folder, name, size, fps) for name, size in cameras.items()}
        self._data = DataFiles(folder, self._features)
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in features}
        self._tasks: dict[str, int] = {}
        self._episodes = EpisodeTable(folder / _EPISODES_FILE)
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

    def end_episode(self, task: str | Sequence[str]) -> None:
        """End the running episode.

        Args:
            task: Description of what it shows; or one for each frame, where it changes on the way.

        Raises:
            ValueError: The episode has no frame, or another number of frames than of tasks.
        """
        length = self._length
        if not length:
            raise ValueError(f"episode {self.num_episodes} has no frame")
        tasks = [task] * length if isinstance(task, str) else list(task)
        if len(tasks) != length:
            raise ValueError(
                f"episode {self.num_episodes} has {length} frames and {len(tasks)} tasks: give one for each"
            )
        columns = {name: np.stack(rows) for name, rows in self._rows.items()}
        columns |= self._frame_columns([self._tasks.setdefault(each, len(self._tasks)) for each in tasks])
        episode: dict[str, Any] = {
            "episode_index": self.num_episodes,
            "tasks": list(dict.fromkeys(tasks)),
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

    def _frame_columns(self, task_indices: Sequence[int]) -> dict[str, np.ndarray]:
        frames = np.arange(self._length)
        columns = {
            "timestamp": frames / self._fps,
            "frame_index": frames,
            "episode_index": np.full(self._length, self.num_episodes),
            "index": self.num_frames + frames,
            "task_index": np.array(task_indices),
        }
        return {name: each.astype(FRAME_COLUMNS[name])[:, None] for name, each in columns.items()}

    def _info(self) -> dict[str, Any]:
        numbers = {
            name: {"dtype": feature.dtype, "shape": [len(feature.names)], "names": feature.names}
            for name, feature in self._features.items()
        }
        of_frames = {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in FRAME_COLUMNS.items()}
        return {
            "codebase_version": "v3.0",
            "robot_type": self._robot_type,
            "total_episodes": self.num_episodes,
            "total_frames": self.num_frames,
            "total_tasks": len(self._tasks),
            **LIMITS,
            "fps": self._fps,
            "splits": {"train": f"0:{self.num_episodes}"},
            "data_path": DATA_FILE,
            "video_path": VIDEO_FILE,
            "features": {**{name: video.info() for name, video in self._videos.items()}, **numbers, **of_frames},
        }

    def _write_tasks(self) -> None:
        """Write the texts as the index of a pandas table, as which all versions of lerobot read them."""
        import pyarrow as pa
        import pyarrow.parquet as pq

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
        pq.write_table(pa.table(columns, metadata={"pandas": json.dumps(pandas)}), self.folder / "meta/tasks.parquet")


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}/{name}": value for name, value in values.items()}
