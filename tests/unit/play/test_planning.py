from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action import BlockCausality
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.play.planning import Planner, imagination
from tests.support.sprite_module import ready

LOW, HIGH = torch.tensor([-1.0, 0.0, -2.0]), torch.tensor([1.0, 2.0, 0.0])
TARGET = torch.tensor([[0.5, 1.5, -0.25], [-0.75, 0.25, -1.5]])


def distance(actions: Tensor) -> Tensor:
    assert (actions >= LOW).all() and (actions <= HIGH).all()
    return (actions - TARGET).square().sum((1, 2)).sqrt()


def found(planner: Planner, seed: int = 0) -> float:
    plan = planner.plan(distance, LOW, HIGH, torch.Generator().manual_seed(seed))
    assert plan.shape == (2, 3)
    return float(distance(plan[None]))


def test_the_cross_entropy_method_comes_closer_than_shooting() -> None:
    shooting = [found(Planner(2, 40, 1, 8), seed) for seed in range(10)]
    searched = [found(Planner(2, 40, 6, 8), seed) for seed in range(10)]
    assert all(better < worse for better, worse in zip(searched, shooting, strict=True))
    assert sum(searched) < 0.25 * sum(shooting)
    assert found(Planner(2, 40, 6, 8), 3) == searched[3]


def test_shooting_takes_the_best_that_was_tried() -> None:
    seen: list[Tensor] = []

    def noted(actions: Tensor) -> Tensor:
        seen.append(actions)
        return distance(actions)

    plan = Planner(2, 5, 2, 2).plan(noted, LOW, HIGH, torch.Generator().manual_seed(1))
    assert [len(each) for each in seen] == [5, 5]
    assert float(distance(plan[None])) == float(torch.cat([distance(each) for each in seen]).min())


def test_futures_are_those_of_the_session_and_leave_it_alone() -> None:
    module, batch = ready(causality=BlockCausality(1, 4, 1))
    first = (batch["video"][:1, :1] * 0.5 + 0.5).clamp(0, 1)
    session = module.open_session()
    session.reset(first, batch["prompt"][0])
    actions = torch.rand(3, 2, 2) * 2 - 1
    seen: list[Tensor] = []

    def cost(frames: Tensor) -> Tensor:
        seen.append(frames)
        return frames[:, -1].mean((1, 2, 3))

    costs = imagination(session, cost)(actions)
    assert costs.shape == (3,) and seen[0].shape == (3, 8, 3, 16, 16) and session.latent_frames == 1
    frames = [session.step_block(actions[1:2, block, None].expand(-1, 4, -1)) for block in range(2)]
    # A batch of another size may round differently.
    torch.testing.assert_close(torch.cat(frames, dim=1)[0], seen[0][1], atol=1e-4, rtol=0)
    assert costs.unique().numel() == 3
    with pytest.raises(ValueError, match="session of one world, got one of 2"):
        imagination(module.open_session(2), cost)
    keys = ActionSchema([ActionPart("key", "discrete", 5), ActionPart("stick", size=2)])
    session = ready(causality=BlockCausality(1, 4), schema=keys)[0].open_session()
    with pytest.raises(ValueError, match="between bounds, and key are no continuous parts"):
        imagination(session, cost)


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="num_elites"):
        Planner(num_candidates=4, num_elites=5)
    with pytest.raises(ValueError, match="horizon"):
        Planner(horizon=0)
