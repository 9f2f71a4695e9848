"""Measures what becomes of the demo's worlds in 1,000 latent frames, behind windows, with and without a sink.

Each world is stepped with the random actions of its simulator, which runs beside it, and with the sampling of the run.
For parts of the way it says in how many frames the sprite is there in its own colour, how much of each block's
displacement is as commanded, how far the sprite is from where the simulator has it, and the PSNR to the simulator's
frames.

    python docs/measure_drift.py --ckpt_path runs/demo/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lightning_action import (
    ActionVideoModule,
    BlockCausality,
    MovingSpriteWorld,
    Sampling,
    SpriteDataModule,
    build_datamodule,
    load_run,
)

SETTINGS = {
    "window 9, no sink": (BlockCausality(1, 9), False),
    "window 9, sink 1, which recedes": (BlockCausality(1, 9, 1), False),
    "window 9, sink 1, relative positions": (BlockCausality(1, 9, 1), True),
    "window 9, sink 3, which recedes": (BlockCausality(1, 9, 3), False),
    "window 9, sink 3, relative positions": (BlockCausality(1, 9, 3), True),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--ckpt_path", default="runs/demo/checkpoints/last.ckpt")
    parser.add_argument("--worlds", type=int, default=16)
    parser.add_argument("--blocks", type=int, default=1000)
    args = parser.parse_args(arguments)
    module, data = load_run(args.config, args.ckpt_path), build_datamodule(args.config)
    assert isinstance(data, SpriteDataModule)
    parts = [range(8), *(range(args.blocks // part // 2, args.blocks // part) for part in (8, 4, 2, 1))]
    print("| latent frames | " + " | ".join(f"{part.start + 1} to {part.stop}" for part in parts) + " |")
    print("|---" * (len(parts) + 1) + "|")
    for name, (causality, relative) in SETTINGS.items():
        sampling = replace(module.sampling, relative_positions=relative)
        figures = drift(module, data, causality, sampling, args.worlds, args.blocks)
        cells = ["{:.0%} / {:.2f} / {:.1f} px / {:.1f} dB".format(*average(figures, part)) for part in parts]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def average(figures: Tensor, part: range) -> list[float]:
    """Average over the blocks of a part; the second figure is a regression over all of them."""
    there, product, square, distance, error = figures[part.start : part.stop].mean(dim=0).tolist()
    psnr = -10 * torch.tensor(error / 4).log10().item()
    return [there, product / max(square, 1e-9), distance / max(there, 1e-9), psnr]


@torch.no_grad()
def drift(
    module: ActionVideoModule,
    data: SpriteDataModule,
    causality: BlockCausality,
    sampling: Sampling,
    num_worlds: int,
    num_blocks: int,
) -> Tensor:
    """Step worlds beside their simulator; what is averaged, of each block, `[blocks, 5]`."""
    world = data.world
    assert isinstance(world, MovingSpriteWorld)
    seeds = data.dataset("test").seeds(range(num_worlds))
    start, actions = world.start(seeds), world.sample_actions(seeds, 4 * num_blocks)
    truth = world.simulate(start, actions)
    found = []
    with module.open_session(num_worlds, causality=causality, sampling=sampling) as session:
        session.reset((world.render(start, truth[:, :1]) + 1) / 2, start.prompts)
        before, was_there = world.locate(start, world.render(start, truth[:, :1]))
        for block in range(num_blocks):
            here = slice(4 * block, 4 * block + 4)
            frames = session.step_block(actions[:, here]) * 2 - 1
            true_frames = world.render(start, truth[:, 4 * block + 1 : 4 * block + 5])
            places, there = world.locate(start, frames)
            seen = there.float()
            distance = ((places - truth[:, 4 * block + 1 : 4 * block + 5]).norm(dim=2) * seen).mean()
            # What the command would do from where the sprite is, walls and all.
            commanded = world.simulate(replace(start, position=before[:, -1]), actions[:, here])[:, -1] - before[:, -1]
            is_known = there[:, -1:] & was_there[:, -1:]
            done, commanded = (places[:, -1] - before[:, -1]) * is_known, commanded * is_known
            product, square = (done * commanded).mean(), commanded.square().mean()
            error = (frames - true_frames).square().mean()
            found.append(torch.stack([seen.mean(), product, square, distance, error]))
            before, was_there = places, there
    return torch.stack(found)


if __name__ == "__main__":
    main()
