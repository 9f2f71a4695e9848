"""Files one by one; tests/unit/recordings/test_lerobot_writer.py has whole folders."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as parquet
import pytest

from lightning_action.recordings.lerobot_files import (
    FRAME_COLUMNS,
    LIMITS,
    DataFiles,
    EpisodeTable,
    NumericFeature,
    VideoFiles,
)

FEATURES = {"action": NumericFeature(["x", "y"]), "key": NumericFeature(["key"], "int64")}


def columns(num_rows: int, first: int = 0) -> dict[str, np.ndarray]:
    numbers = np.arange(first, first + num_rows)[:, None]
    frame = {name: numbers.astype(dtype) for name, dtype in FRAME_COLUMNS.items()}
    return {"action": np.concatenate([numbers, -numbers], 1).astype(np.float32), "key": numbers, **frame}


def test_rows_come_back_and_an_episode_is_a_row_group(tmp_path: Path) -> None:
    files = DataFiles(tmp_path, FEATURES)
    assert files.names == ["action", "key", "timestamp", "frame_index", "episode_index", "index", "task_index"]
    assert files.add(columns(3)) == files.add(columns(2, 10)) == {"chunk_index": 0, "file_index": 0}
    files.close()
    assert files.column("action").tolist() == [[0, 0], [1, -1], [2, -2], [10, -10], [11, -11]]
    assert files.column("key").tolist() == [[0], [1], [2], [10], [11]]
    with parquet.ParquetFile(tmp_path / "data/chunk-000/file-000.parquet") as file:
        assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [3, 2]
        assert str(file.schema_arrow.field("action").type) == "fixed_size_list<element: float>[2]"
        assert str(file.schema_arrow.field("key").type) == "int64", "a single number is stored as it is"


def test_full_files_and_folders_are_followed_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "data_files_size_in_mb", 0)
    monkeypatch.setitem(LIMITS, "chunks_size", 2)
    files = DataFiles(tmp_path, FEATURES)
    places = [files.add(columns(2, 10 * number)).copy() for number in range(3)]
    files.close()
    assert [(place["chunk_index"], place["file_index"]) for place in places] == [(0, 0), (0, 1), (1, 0)]
    assert files.column("key").ravel().tolist() == [0, 1, 10, 11, 20, 21]
    assert (tmp_path / "data/chunk-001/file-000.parquet").is_file()


@pytest.mark.parametrize("count", [0, 1, 100, 101])
def test_episodes_are_written_some_at_a_time(tmp_path: Path, count: int) -> None:
    path = tmp_path / "meta" / "file.parquet"
    table = EpisodeTable(path)
    for number in range(count):
        table.add({"episode_index": number, "tasks": ["move"]})
        assert path.exists() == (number >= 99)
    table.close()
    assert path.exists() == (count > 0)
    if count:
        assert parquet.read_table(path).to_pylist()[-1] == {"episode_index": count - 1, "tasks": ["move"]}


def test_a_camera_says_where_its_episodes_are(tmp_path: Path) -> None:
    files = VideoFiles(tmp_path, "top", (16, 32), fps=4)
    spans = []
    for length, value in ((3, 0), (2, 255)):
        for _ in range(length):
            files.add(np.full((16, 32, 3), value, np.uint8), "here")
        span, statistics = files.end_episode()
        spans.append(span)
        assert statistics["count"] == [length] and statistics["mean"] == [[[value / 255]]] * 3
    files.close()
    here = {"chunk_index": 0, "file_index": 0}
    assert spans == [
        {**here, "from_timestamp": 0.0, "to_timestamp": 0.75},
        {**here, "from_timestamp": 0.75, "to_timestamp": 1.25},
    ]
    assert files.statistics.statistics()["mean"] == [[[0.4]]] * 3
    info = files.info()
    assert info["shape"] == [16, 32, 3] and info["info"]["video.fps"] == 4
    with av.open(str(tmp_path / "videos/top/chunk-000/file-000.mp4")) as container:
        assert container.streams.video[0].codec_context.name == info["info"]["video.codec"]
        frames = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert frames == pytest.approx([0, 0, 0, 255, 255], abs=3), "the codec is lossy"


@pytest.mark.parametrize("image", [np.zeros((32, 16, 3), np.uint8), np.zeros((16, 32, 3), np.float32)])
def test_pictures_of_another_kind_are_refused(tmp_path: Path, image: np.ndarray) -> None:
    files = VideoFiles(tmp_path, "top", (16, 32), fps=4)
    with pytest.raises(ValueError, match=r"^frame 7: top must be \[16, 32, 3\] of uint8, got \[\d+, \d+, 3\] of "):
        files.add(image, "frame 7")
    assert list(tmp_path.iterdir()) == []
