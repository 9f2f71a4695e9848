"""Makes README's picture of a live session of a recording that `play` has left: python docs/make_play_gif.py FOLDER."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_action import build_datamodule
from lightning_action.callbacks.support.files import write_bytes
from lightning_action.callbacks.support.pictures import encode_gif, shrink
from lightning_action.play.scenes import truth_of
from lightning_action.play.session_recording import CAMERA, read_session

ROOT = Path(__file__).parents[1]
SIDE, KEY, GAP, SECONDS = 224, 26, 4, 10
INK, PAGE, HELD = (27, 35, 48), (246, 247, 249), (31, 99, 214)
# Place of each key, column and row, and the column and sign of the action that it stands for.
KEYS = {"←": ((0, 1), (0, -1)), "↓": ((1, 1), (1, 1)), "→": ((2, 1), (0, 1)), "↑": ((1, 0), (1, -1))}


def recorded_frames(folder: Path, start: int, count: int) -> Tensor:
    """Frames of the video, `[count, 3, H, W]` in [0, 1]."""
    with av.open(str(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4")) as container:
        chosen = islice(container.decode(video=0), start, start + count)
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in chosen]
    return torch.stack(frames).permute(0, 3, 1, 2) / 255


def large(frames: Tensor) -> Tensor:
    """Frames of whole pixels, as the page shows them."""
    return shrink(
        frames.repeat_interleave(SIDE // frames.shape[-1], -1).repeat_interleave(SIDE // frames.shape[-1], -2), SIDE
    )


def keyboard(row: Sequence[float], width: int) -> Tensor:
    """The arrow keys under a frame, those that are held in colour: `[3, height, width]` in [0, 1]."""
    height = 2 * KEY + 3 * GAP
    image = Image.new("RGB", (width, height), PAGE)
    draw = ImageDraw.Draw(image)
    left = (width - 3 * KEY - 2 * GAP) // 2
    for (column, line), (axis, sign) in KEYS.values():
        corner = left + column * (KEY + GAP), GAP + line * (KEY + GAP)
        is_held = row[axis] * sign > 0
        draw.rounded_rectangle(
            (*corner, corner[0] + KEY, corner[1] + KEY),
            6,
            HELD if is_held else "white",
            INK if is_held else (200, 206, 214),
        )
        draw.polygon(arrow(corner, axis, sign), "white" if is_held else INK)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def arrow(corner: tuple[int, int], axis: int, sign: int) -> list[tuple[float, float]]:
    """A triangle in the middle of a key."""
    middle = corner[0] + KEY / 2, corner[1] + KEY / 2
    along, across = 5 * sign, 5
    tip, tails = (along, 0), ((-along, across), (-along, -across))
    points = [tip, *tails] if axis == 0 else [(y, x) for x, y in (tip, *tails)]
    return [(middle[0] + x, middle[1] + y) for x, y in points]


def main(folder: Path, root: Path = ROOT) -> None:
    """Draw the longest world that was recorded, the simulator under the same keys, and the keys, as `docs/play.gif`.

    Args:
        folder: Recorded session of the demo.
        root: Holds `configs` and `docs`.
    """
    episodes = read_session(folder).episodes
    number, episode = max(enumerate(episodes), key=lambda pair: len(pair[1].rows))
    rows = torch.cat(episode.rows)[: 16 * SECONDS]
    before = sum(len(block) for each in episodes[:number] for block in each.rows)
    frames = recorded_frames(folder, before, len(rows))
    data = build_datamodule(root / "configs" / "demo.yaml")
    truth = truth_of(data, "test", episode.seed)
    assert truth is not None
    true = torch.cat([frames[:1], truth.go_on(rows[:-1])])
    beside = torch.cat([large(frames), torch.ones(len(frames), 3, SIDE, 2 * GAP), large(true)], dim=-1)
    keys = torch.stack([keyboard(row, beside.shape[-1]) for row in rows.tolist()])
    write_bytes(root / "docs" / "play.gif", encode_gif(torch.cat([beside, keys], dim=-2), fps=16))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
