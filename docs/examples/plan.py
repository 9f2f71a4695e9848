"""Steers the demo's sprite to a place, in the true simulator, by plans made in the generated world.

At each block the planner tries actions in futures of a session, the best one is done in the simulator, and what really
happened is put into the session. The control plans in a model whose actions are shuffled among the candidates.

    python docs/examples/plan.py --ckpt_path runs/demo/checkpoints/last.ckpt
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_action import (
    ActionVideoModule,
    MovingSpriteWorld,
    Planner,
    SpriteDataModule,
    build_datamodule,
    imagination,
    load_run,
)

Imagine = Callable[[Tensor], Tensor]
PLANNERS = {
    "cross-entropy method": Planner(horizon=2, num_candidates=24, num_rounds=3, num_elites=5),
    "random shooting": Planner(horizon=1, num_candidates=96, num_rounds=1),
}


def main() -> None:
    """Print what share of the targets is reached, with the control."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/demo.yaml")
    parser.add_argument("--ckpt_path", default="runs/demo/checkpoints/last.ckpt")
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--blocks", type=int, default=5, help="blocks of four frames that a trial has")
    parser.add_argument("--reached", type=float, default=3.0, help="distance in pixels that counts as reached")
    args = parser.parse_args()
    module, data = load_run(args.config, args.ckpt_path), build_datamodule(args.config)
    assert isinstance(data, SpriteDataModule) and isinstance(data.world, MovingSpriteWorld)
    trial = partial(steer, module, data, num_blocks=args.blocks)
    print("| plans by | actions in the model | target reached | median distance, px | at the start |")
    print("|---|---|---|---|---|")
    for name, planner in PLANNERS.items():
        for told, wraps in (("as they are", same), ("shuffled", shuffled)):
            found = torch.tensor([trial(number, planner=planner, wraps=wraps) for number in range(args.trials)])
            before, after = found.unbind(1)
            reached = (after < args.reached).float().mean()
            print(f"| {name} | {told} | {reached:.0%} | {after.median():.1f} | {before.median():.1f} |", flush=True)


def steer(
    module: ActionVideoModule,
    data: SpriteDataModule,
    number: int,
    num_blocks: int,
    planner: Planner,
    wraps: Callable[[Imagine, torch.Generator], Imagine],
) -> tuple[float, float]:
    """Steer one held-out sprite to a random place; how far it was, and how far it is in the end, in pixels."""
    world = data.world
    assert isinstance(world, MovingSpriteWorld)
    start = world.start(data.dataset("test").seeds([number]))
    random = torch.Generator().manual_seed(number)
    room = torch.tensor([world.width, world.height]) - 2 * world.sprite_radius
    target = world.sprite_radius + room * torch.rand(2, generator=random)

    def cost(frames: Tensor) -> Tensor:
        """Mean distance from the target, as it is read off the frames; where the sprite is lost, that of the room."""
        places, found = world.locate(start, frames.cpu() * 2 - 1)
        distances = (places - target).norm(dim=2)
        return torch.where(found, distances, room.norm()).mean(dim=1)

    def seen(rows: Tensor) -> tuple[Tensor, Tensor]:
        positions = world.simulate(start, rows)
        return (world.render(start, positions) + 1) / 2, positions

    rows = torch.zeros(1, 0, 2)
    longest = 1 + num_blocks + planner.horizon
    with module.open_session(max_latents=longest) as session:
        session.reset(seen(rows)[0], start.prompts, seed=number)
        for _ in range(num_blocks):
            # Once here, and not in each of the futures.
            session.write_pending()
            imagine = wraps(imagination(session, cost), random)
            plan = planner.plan(imagine, torch.tensor([-1.0, -1.0]), torch.tensor([1.0, 1.0]), random)
            now = plan[:1].expand(1, session.rows_wanted, -1)
            rows = torch.cat([rows, now], dim=1)
            frames, positions = seen(rows)
            session.commit(now, frames[:, -now.shape[1] :])
    return float((positions[0, 0] - target).norm()), float((positions[0, -1] - target).norm())


def same(imagine: Imagine, random: torch.Generator) -> Imagine:
    """Cost of each candidate's own actions."""
    return imagine


def shuffled(imagine: Imagine, random: torch.Generator) -> Imagine:
    """Cost of the actions of another candidate."""
    return lambda actions: imagine(actions[torch.randperm(len(actions), generator=random)])


if __name__ == "__main__":
    main()
