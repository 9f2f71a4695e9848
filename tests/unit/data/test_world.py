from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.data.panning_world import PanningCameraWorld
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.data.world import World


class SpeedingWorld(World):
    """Each row adds to a step as large as the one before."""

    action_schema = start = sample_actions = render = locate = None  # type: ignore[assignment]

    def go_on(self, path: Tensor, actions: Tensor) -> Tensor:
        return path[:, -1:] + actions.cumsum(1).cumsum(1)


def test_a_simulation_begins_at_the_start() -> None:
    start = SimpleNamespace(position=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    actions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, -1.0]]])
    assert SpeedingWorld().simulate(start, actions).tolist() == [[[1, 2], [2, 2], [3, 3]], [[3, 4], [3, 4], [3, 3]]]


@pytest.mark.parametrize("world", [MovingSpriteWorld(image_size=16, sprite_radius=3.0), PanningCameraWorld()])
def test_a_world_that_goes_on_needs_no_more_than_the_last_two_positions(world: Any) -> None:
    assert isinstance(world, World)
    start, actions = world.start([3, 4]), world.sample_actions([3, 4], 6)
    whole = world.simulate(start, actions)
    assert torch.equal(whole[:, 0], start.position)
    torch.testing.assert_close(world.go_on(whole[:, 2:4], actions[:, 3:]), whole[:, 4:])
