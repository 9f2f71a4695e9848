"""Planning in a generated world: try actions in forks of a session, and take those whose frames cost least.

Random shooting draws sequences of actions and takes the best one. The cross-entropy method (Rubinstein 1999) draws
again around the best ones, some times over; planning with it in a learned model is that of PETS (Chua et al. 2018,
arXiv:1805.12114) and PlaNet (Hafner et al. 2018, arXiv:1811.04551).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_action.generation.world_session import WorldSession
from lightning_action.ranges import require_numbers

Cost = Callable[[Tensor], Tensor]
"""Cost `[N]` of each of N futures, from its frames `[N, t, 3, H, W]` in [0, 1]."""
Imagine = Callable[[Tensor], Tensor]
"""Cost `[N]` of each of N sequences of held actions, `[N, blocks, columns]`."""


def imagination(session: WorldSession, cost: Cost) -> Imagine:
    """Return what tries sequences of actions in futures of a session of one world, which itself stays as it is.

    All futures have the same noise, so that their costs differ by the actions alone.

    Args:
        session: Session of one world.
        cost: Cost of what is seen from now on.

    Raises:
        ValueError: The session has several worlds, or its actions are not of continuous parts alone: those of others
            cannot be drawn between bounds.
    """
    if session.num_worlds != 1:
        raise ValueError(f"planning is for a session of one world, got one of {session.num_worlds}: select one")

    if others := [part.name for part in session.schema.parts if part.kind != "continuous"]:
        raise ValueError(f"planning searches between bounds, and {', '.join(others)} are no continuous parts")

    def imagine(actions: Tensor) -> Tensor:
        frames = []
        with session.fork(len(actions)) as futures:
            for action in actions.unbind(1):
                frames.append(futures.step_block(action[:, None].expand(-1, futures.rows_wanted, -1)))
        return cost(torch.cat(frames, dim=1)).cpu()

    return imagine


@dataclass(frozen=True)
class Planner:
    """Search for actions: the cross-entropy method, and with one round random shooting.

    It is for actions of continuous parts alone.

    Args:
        horizon: Number of blocks to plan ahead; an action is held for a block.
        num_candidates: Number of sequences that are tried in each round.
        num_rounds: Number of rounds.
        num_elites: Number of best sequences that the next round is drawn around.

    Raises:
        ValueError: A number is out of range.
    """

    horizon: int = 2
    num_candidates: int = 32
    num_rounds: int = 3
    num_elites: int = 6

    def __post_init__(self) -> None:
        sizes = {"horizon": self.horizon, "num_candidates": self.num_candidates, "num_rounds": self.num_rounds}
        require_numbers(sizes, 1, whole=True)
        require_numbers({"num_elites": self.num_elites}, 2, self.num_candidates, whole=True)

    def plan(self, imagine: Imagine, low: Tensor, high: Tensor, random: torch.Generator) -> Tensor:
        """Search for the sequence of actions that costs least.

        The first round draws evenly between the bounds, later ones from the normal distribution of the elites.

        Args:
            imagine: Function that tries sequences, see `imagination`.
            low: Lowest value of each column, `[columns]`.
            high: Highest value of each column, `[columns]`.
            random: CPU generator that candidates are drawn by.

        Returns:
            The best sequence that was tried, `[horizon, columns]`; each action is to be held for a block.
        """
        shape = (self.num_candidates, self.horizon, len(low))
        drawn = low + (high - low) * torch.rand(shape, generator=random)
        best, lowest = drawn[0], float("inf")
        for round_number in range(self.num_rounds):
            costs = imagine(drawn)
            order = costs.argsort()
            if float(costs[order[0]]) < lowest:
                best, lowest = drawn[order[0]], float(costs[order[0]])
            if round_number + 1 < self.num_rounds:
                elites = drawn[order[: self.num_elites]]
                noise = torch.randn(shape, generator=random)
                drawn = torch.clamp(elites.mean(dim=0) + elites.std(dim=0) * noise, low, high)
        return best
