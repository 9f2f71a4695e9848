"""Makes the README's pictures from what `make demo` and `make demo-pusht` left: python docs/make_pictures.py."""

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


def write_gif(root: Path, name: str) -> None:
    """Put the first predictions of `runs/NAME` side by side, as `docs/NAME.gif`."""
    paths = sorted((root / "runs" / name / "predictions").glob("*.mp4"))[:NUM_VIDEOS]
    if len(paths) < NUM_VIDEOS:
        raise FileNotFoundError(
            f"expected {NUM_VIDEOS} videos in runs/{name}/predictions, found {len(paths)}: make demo"
        )
    videos = [shrink(read_video(path), 320) for path in paths]
    write_bytes(root / "docs" / f"{name}.gif", encode_gif(torch.cat(videos, dim=-1), fps=8))


def main(root: Path = ROOT) -> None:
    """Make the demo's pictures, and those of `make demo-pusht` where it has run.

    Args:
        root: holds `runs/demo`, and `docs`, which the pictures are written to.
    """
    write_gif(root, "demo")
    shutil.copyfile(root / "runs" / "demo" / "action_scan.png", root / "docs" / "action_scan.png")
    if (root / "runs" / "pusht" / "predictions").is_dir():
        write_gif(root, "pusht")


if __name__ == "__main__":
    main()
