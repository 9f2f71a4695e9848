"""Small video files, and LeRobot data sets to break."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

LEROBOT = Path(__file__).resolve().parents[1] / "data" / "lerobot"


def numbered_frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames `[count, height, width, 3]` whose brightness tells their number: 5 times it, up to 51 frames."""
    assert count <= 51
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None] * 5, (count, height, width, 3)).copy()


def write_video(path: Path, frames: np.ndarray, fps: int = 10, codec: str = "libx264", **options: str) -> None:
    """Write frames `[n, H, W, 3]`, uint8 RGB."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def numbers_in(frames: np.ndarray) -> list[int]:
    """Read the numbers of `numbered_frames` off decoded frames."""
    return np.round(frames.mean(axis=(1, 2, 3)) / 5).astype(int).tolist()


def lerobot_copy(name: str, folder: Path) -> Path:
    """Copy a small data set that the lerobot library wrote: `v21`, `v3` or `v3_multi`."""
    return Path(shutil.copytree(LEROBOT / name, folder / name))
