"""Speed at which recorded windows are read, as a ratio to what the demo takes, and whether memory stays flat.

`benchmarks/README.md` says what each figure means. Run it with `python -m benchmarks.recordings`.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch

from benchmarks.callbacks import DEMO
from benchmarks.cost import machine, say
from benchmarks.loading import memory_bytes
from lightning_action import ActionVideoModule, MovingSpriteWorld, VideoFolderDataModule
from lightning_action.atomic import write_json
from lightning_action.batch import Batch, to_unit_range
from lightning_action.callbacks.support.pictures import write_mp4
from lightning_action.data.sprite_data import SpriteDataset
from lightning_action.run import build_module


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured.

    Args:
        videos: Number of recorded videos.
        frames: Number of frames of each.
        num_latents: Number of latent frames of a window.
        batch_size: Number of windows of a training step.
        rounds: Number of turns.
        windows: Number of windows over which memory must not grow.
    """

    videos: int = 40
    frames: int = 300
    num_latents: int = 9
    batch_size: int = 16
    rounds: int = 5
    windows: int = 10_000


TINY = Sizes(videos=3, frames=40, num_latents=3, batch_size=2, rounds=1, windows=20)


def record(folder: Path, sizes: Sizes) -> None:
    """Write videos of the demo's world with their actions, in H.264 with a key frame in every sixteen."""
    world = MovingSpriteWorld(image_size=64, sprite_radius=10.0, max_speed=4.0)
    for number in range(sizes.videos):
        sample = SpriteDataset(world, "train", 0, sizes.videos, sizes.frames)[number]
        write_mp4(folder / f"{number}.mp4", to_unit_range(sample["video"]), fps=10)
        np.save(folder / f"{number}.npy", sample["action"].numpy())


def read_data(folder: Path, sizes: Sizes) -> VideoFolderDataModule:
    """Windows as large as the demo's."""
    data = VideoFolderDataModule(
        str(folder),
        num_latents=sizes.num_latents,
        batch_size=sizes.batch_size,
        frame_size=(32, 32),
        validation_share=0,
        test_share=0,
    )
    data.setup("fit")
    return data


def training_step(module: ActionVideoModule, batch: Batch) -> Callable[[], None]:
    """A training step of the demo on that batch, the backbone included."""
    module.configure_model()
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4)

    def step() -> None:
        losses = module.losses.of_training(module._encoded(batch), 0, 0, 0.1)
        losses.per_sample.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(run: Callable[[], object]) -> float:
    """Time that this process computes for it."""
    started = process_time()
    run()
    return process_time() - started


def measure(folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Measure reading and training by turns, then memory."""
    record(folder, sizes)
    data = read_data(folder, sizes)
    windows, draw = data.dataset("train"), random.Random(0)
    count = len(windows)

    def read() -> None:
        for _ in range(sizes.batch_size):
            windows[draw.randrange(count)]

    step = training_step(build_module(DEMO), next(iter(data.train_dataloader())))
    step()
    read()
    ratios = []
    for number in range(sizes.rounds):
        say(f"round {number + 1} of {sizes.rounds}")
        ratios.append(seconds(step) / seconds(read))
    before = memory_bytes("VmRSS")
    for number in range(sizes.windows):
        windows[draw.randrange(count)]
        if number == sizes.windows // 10:
            before = memory_bytes("VmRSS")
    return {
        "read_to_step": float(np.median(ratios)),
        "memory_growth_mb": (memory_bytes("VmRSS") - before) / 2**20,
        "windows": sizes.windows,
        "sizes": asdict(sizes),
        "machine": machine(torch.device("cpu")),
    }


def main(args: Sequence[str] | None = None) -> None:
    """Print the figures; `--json` writes them too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="Show in seconds that everything runs.")
    parser.add_argument("--json", type=Path, help="File of the figures.")
    parsed = parser.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), TINY if parsed.tiny else Sizes())
    print(f"windows read in the time of the demo's step, to those that it takes: {result['read_to_step']:.2f}")
    print(f"memory grown over {result['windows']} windows: {result['memory_growth_mb']:.1f} MB")
    if parsed.json is not None:
        write_json(parsed.json, result)


if __name__ == "__main__":
    main()
