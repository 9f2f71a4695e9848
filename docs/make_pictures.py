"""Makes the README's pictures from what `make demo` left: python docs/make_pictures.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import av
import torch
from torch import Tensor

from lightning_action.callbacks.support.files import write_bytes
from lightning_action.callbacks.support.pictures import encode_gif, shrink

ROOT = Path(__file__).parents[1]
NUM_VIDEOS = 3


def read_video(path: Path) -> Tensor:
    """All frames, `[T, 3, H, W]` in [0, 1]."""
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2) / 255


def main(root: Path = ROOT) -> None:
    """Put the first predictions side by side, and the action scan beside them.

    Args:
        root: holds `runs/demo`, and `docs`, which the pictures are written to.
    """
    paths = sorted((root / "runs" / "demo" / "predictions").glob("*.mp4"))[:NUM_VIDEOS]
    if len(paths) < NUM_VIDEOS:
        raise FileNotFoundError(f"expected {NUM_VIDEOS} videos in runs/demo/predictions, found {len(paths)}: make demo")
    videos = [read_video(path) for path in paths]
    shutil.copyfile(root / "runs" / "demo" / "action_scan.png", root / "docs" / "action_scan.png")
    gif = encode_gif(torch.cat([shrink(video, 320) for video in videos], dim=-1), fps=8)
    write_bytes(root / "docs" / "demo.gif", gif)


if __name__ == "__main__":
    main()
