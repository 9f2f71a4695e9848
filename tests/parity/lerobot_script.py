"""Reads a folder of `record` with the real lerobot: `python tests/parity/lerobot_script.py FOLDER`.

It runs in an environment of its own, see docs/recording.md. What the library gives is compared, exactly, with the rows
of the parquet files and with the frames of the mp4 files, which are decoded here from their beginnings.
"""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import lerobot
import numpy as np
import pyarrow.parquet as pq
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

BEFORE, AFTER = 2, 5
BACKEND = sys.argv[2] if len(sys.argv) > 2 else "pyav"


def frames_of(root: Path, info: dict, camera: str) -> torch.Tensor:
    """Decode all frames of a camera in the order of the episodes, `[N, 3, H, W]` in [0, 1]."""
    files = sorted((root / "videos" / camera).rglob("*.mp4"))
    frames = []
    for file in files:
        with av.open(str(file)) as container:
            for index, frame in enumerate(container.decode(video=0)):
                assert frame.pts * frame.time_base == Fraction(index, info["fps"]), (file, index, frame.pts)
                frames.append(frame.to_ndarray(format="rgb24"))
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255


def rows_of(root: Path) -> list[dict]:
    files = sorted((root / "data").rglob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]


def compare(root: Path) -> None:
    info = json.loads((root / "meta" / "info.json").read_text())
    rows, tasks = rows_of(root), pq.read_table(root / "meta" / "tasks.parquet").to_pylist()
    cameras = [name for name, feature in info["features"].items() if feature["dtype"] == "video"]
    frames = {camera: frames_of(root, info, camera) for camera in cameras}
    steps = [step / info["fps"] for step in range(-BEFORE, AFTER + 1)]
    windows = LeRobotDataset(
        "local/recorded", root=root, video_backend=BACKEND, delta_timestamps=dict.fromkeys([*cameras, "action"], steps)
    )
    single = LeRobotDataset("local/recorded", root=root, video_backend=BACKEND)
    assert len(single) == len(rows) == info["total_frames"] and single.num_episodes == info["total_episodes"]
    assert set(single.meta.stats) == set(info["features"])
    for index, row in enumerate(rows):
        item, window = single[index], windows[index]
        assert item["task"] == next(task["task"] for task in tasks if task["task_index"] == row["task_index"])
        for name, value in row.items():
            expected = torch.tensor(value, dtype=item[name].dtype)
            assert torch.equal(item[name].reshape(-1), expected.reshape(-1)), (index, name)
        inside = [index + step for step in range(-BEFORE, AFTER + 1)]
        first = index - row["frame_index"]
        last = max(other for other, each in enumerate(rows) if each["episode_index"] == row["episode_index"])
        clamped = [min(max(first, each), last) for each in inside]
        assert window["action_is_pad"].tolist() == [each != kept for each, kept in zip(inside, clamped, strict=True)]
        for number, kept in enumerate(clamped):
            assert (
                window["action"][number].reshape(-1).tolist() == torch.tensor(rows[kept]["action"]).reshape(-1).tolist()
            )
        for camera in cameras:
            assert torch.equal(item[camera], frames[camera][index]), (index, camera)
            assert torch.equal(window[camera], frames[camera][clamped]), (index, camera)
    print(
        f"lerobot {lerobot.__version__} reads {len(rows)} frames of {root} as they were written: {', '.join(cameras)}"
    )


if __name__ == "__main__":
    compare(Path(sys.argv[1]))
