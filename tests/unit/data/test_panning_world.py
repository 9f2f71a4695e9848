"""The camera: its place is known exactly, flow is uniform, and what it sees says where it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.data.panning_world import PanningCameraWorld, PanningStart
from lightning_action.data.sprite_data import SpriteDataModule


def world_of(**changes: Any) -> PanningCameraWorld:
    return PanningCameraWorld(**{"image_size": 24, "map_size": 60, "num_shapes": 16, **changes})


def played(world: PanningCameraWorld, seeds: list[int]) -> tuple[PanningStart, Tensor, Tensor, Tensor]:
    start, actions = world.start(seeds), world.sample_actions(seeds, 8)
    positions = world.simulate(start, actions)
    return start, actions, positions, world.render(start, positions)


def test_a_seed_says_everything_whatever_its_batch() -> None:
    world, seeds = world_of(), [3, 1, 4]
    together = played(world, seeds)
    for index, seed in enumerate(seeds):
        alone = played(world, [seed])
        assert torch.equal(alone[0].ground[0], together[0].ground[index])
        for single, batch in zip(alone[1:], together[1:], strict=True):
            torch.testing.assert_close(single[0], batch[index])
    assert not torch.equal(together[3][0], together[3][1])


def test_worlds_may_share_a_map() -> None:
    shared, own, other = (world_of(map_seed=seed).start([3, 1]) for seed in (7, None, 8))
    assert torch.equal(shared.ground[0], shared.ground[1]) and not torch.equal(own.ground[0], own.ground[1])
    assert not torch.equal(shared.ground, other.ground)
    assert torch.equal(shared.position, own.position) and shared.ground.shape == own.ground.shape == (2, 3, 60, 60)


def test_actions_move_the_camera_exactly_and_walls_stop_it() -> None:
    world = world_of(max_speed=2.0)
    start = PanningStart(torch.tensor([[20.0, 30.0], [46.0, 13.0]]), torch.zeros(2, 3, 60, 60), ["", ""])
    actions = torch.tensor([[[0.5, -0.25], [3.0, 0.0]], [[1.0, -0.75], [1.0, -1.0]]])
    expected = [[[20, 30], [21, 29.5], [23, 29.5]], [[46, 13], [48, 12], [48, 12]]]
    assert world.simulate(start, actions).tolist() == expected


def test_a_whole_pixel_moves_the_picture_by_a_pixel() -> None:
    world = world_of()
    start = world.start([5])
    places = torch.tensor([[[30.0, 30.0], [31.0, 30.0], [31.0, 28.0]]])
    frames = world.render(start, places)[0]
    torch.testing.assert_close(frames[1][..., :-1], frames[0][..., 1:])
    torch.testing.assert_close(frames[2][:, 2:], frames[1][:, :-2])
    torch.testing.assert_close(frames[0], start.ground[0, :, 18:42, 18:42])


def test_an_action_and_its_opposite_lead_back() -> None:
    world = world_of()
    start = PanningStart(torch.full((2, 2), 30.0), world.start([0, 1]).ground, ["", ""])
    actions = 0.3 * torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    video = world.render(start, world.simulate(start, torch.cat([actions, -actions.flip(1)], dim=1)))
    torch.testing.assert_close(video, video.flip(1), atol=1e-5, rtol=0)
    assert (video[:, 0] - video[:, 5]).abs().mean() > 0.01


def test_the_place_is_read_off_the_picture() -> None:
    world = world_of()
    start, _, positions, video = played(world, list(range(12)))
    located, found = world.locate(start, video)
    assert bool(found.all())
    assert (located - positions).norm(dim=-1).max() < 0.02
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    located, found = world.locate(start, video + 0.05 * noise)
    assert bool(found.all()) and (located - positions).norm(dim=-1).mean() < 0.1
    assert not bool(world.locate(start, noise)[1].any())
    for nothing in (torch.zeros_like(video), torch.full_like(video, torch.nan)):
        located, found = world.locate(start, nothing)
        assert bool(torch.isfinite(located).all()) and not bool(found.any())


def test_actions_are_within_range_and_described() -> None:
    world = world_of(still_probability=0.4)
    actions = world.sample_actions(range(50), 30)
    assert actions.shape == (50, 30, 2) and actions.abs().max() <= 1
    assert abs((actions == 0).float().mean() - 0.4) < 0.05
    assert world.action_schema(4).action_dim == 8


def test_the_data_module_takes_it() -> None:
    data = SpriteDataModule(world_of(), num_latents=3, batch_size=2, train_size=4)
    batch = data.dataset("test").batch([0, 1, 2])
    assert batch["video"].shape == (3, 9, 3, 24, 24)
    positions, found = data.read_positions(batch["video"], batch, "test")
    assert bool(found.all())
    assert (positions - batch["position"]).norm(dim=-1).max() < 0.02


@pytest.mark.parametrize(
    "arguments",
    [{"map_size": 24}, {"max_speed": 0}, {"hold_probability": 1.0}, {"slowness": 0.5}, {"num_shapes": 0}],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}|map_size"):
        world_of(**arguments)


def test_a_camera_that_goes_on_in_pieces_takes_the_whole_way() -> None:
    world = world_of()
    start, actions, positions, video = played(world, [3, 1, 4])
    begun = positions[:, :4]
    more = world.go_on(begun, actions[:, 3:])
    assert torch.equal(more, positions[:, 4:])
    assert torch.equal(world.render(start, more, 4), video[:, 4:])
