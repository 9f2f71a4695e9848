"""Makes README's pictures and table of what `make demo` and `make demo-pusht` left: python docs/make_pictures.py."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

from lightning_action.callbacks.support.files import write_bytes
from lightning_action.callbacks.support.pictures import encode_gif, shrink

ROOT = Path(__file__).parents[1]
NUM_VIDEOS = 3
TABLE = re.compile(r"(<!-- figures of the demo -->).*?(<!-- end of the figures -->)", re.DOTALL)
# Titles, keys of the report, and how a figure is written.
ROWS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("sign accuracy of displacements (chance 0.5)", ("sign_accuracy",), "{:.3f}"),
    ("gain x / y (ideal 1)", ("gain_x", "gain_y"), "{:.2f}"),
    ("R² x / y", ("r2_x", "r2_y"), "{:.2f}"),
    ("gain under actions held at 0.04 / 0.08 / 0.15", ("held_gain_0.04", "held_gain_0.08", "held_gain_0.15"), "{:.2f}"),
    ("drift under no motion, px in 32 frames (ideal 0)", ("held_drift_px",), "{:.2f}"),
    ("lag in pixel frames (ideal 0)", ("lag_frames",), "{:.0f}"),
    ("position error, px of 32", ("ade_px",), "{:.2f}"),
    ("counterfactual divergence over that of copying (ideal 0)", ("counterfactual_ratio",), "{:.2f}"),
    ("PSNR in the whole frame / where it moves, dB", ("psnr_db", "psnr_moving_db"), "{:.1f}"),
    ("lower loss under its own actions than under others", ("swapped_win_rate",), "{:.0%}"),
)


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


def table(report: Mapping[str, Any]) -> str:
    """Write the README's table of a report."""
    columns = [report, report["baselines"]["ignore_actions"], report["baselines"]["copy_first_frame"]]
    lines = ["| | model | ignoring actions | copying the first frame |", "|---|---|---|---|"]
    for title, keys, template in ROWS:
        cells = []
        for figures in columns:
            values = [figures.get(key) for key in keys]
            known = all(value is not None for value in values)
            cells.append(" / ".join(template.format(value) for value in values) if known else "")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_table(root: Path) -> None:
    """Put the figures of `runs/demo/report.json` into the README."""
    report = json.loads((root / "runs" / "demo" / "report.json").read_text())
    readme = root / "README.md"
    text, count = TABLE.subn(lambda match: f"{match[1]}\n\n{table(report)}\n\n{match[2]}", readme.read_text())
    if count != 1:
        raise ValueError(f"expected one place for the table in {readme}, found {count}: put its two comments back")
    write_bytes(readme, text.encode())


def main(root: Path = ROOT) -> None:
    """Make the demo's pictures and its table, and the pictures of `make demo-pusht` where it has run.

    Args:
        root: Folder with `runs/demo`, `README.md`, and `docs`, which the pictures are written to.
    """
    write_gif(root, "demo")
    write_table(root)
    shutil.copyfile(root / "runs" / "demo" / "action_scan.png", root / "docs" / "action_scan.png")
    if (root / "runs" / "pusht" / "predictions").is_dir():
        write_gif(root, "pusht")


if __name__ == "__main__":
    main()
