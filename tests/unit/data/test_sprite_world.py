"""The simulator: exact motion, honest pictures, and every world from its seed alone."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from lightning_action.data.scenery import SHAPES, Shape
from lightning_action.data.sprite_world import COLORS, DIRECTIONS, MovingSpriteWorld, WorldStart

SEEDS = [3, 1, 4, 15, 92]
Background = Literal["plain", "gradient", "busy"]
BACKGROUNDS: tuple[Background, ...] = ("plain", "gradient", "busy")


def world_of(**changes: Any) -> MovingSpriteWorld:
    return MovingSpriteWorld(**{"image_size": 24, "sprite_radius": 3.5, "max_speed": 1.5, **changes})


def start_at(world: MovingSpriteWorld, *places: tuple[float, float]) -> WorldStart:
    """Worlds that differ in their seeds, with the sprite put where it is wanted."""
    return replace(world.start(range(len(places))), position=torch.tensor(places))


def equal_starts(one: WorldStart, other: WorldStart) -> dict[str, bool]:
    pairs = {field.name: (getattr(one, field.name), getattr(other, field.name)) for field in fields(WorldStart)}
    return {name: torch.equal(a, b) if isinstance(a, Tensor) else a == b for name, (a, b) in pairs.items()}


def sample_of(start: WorldStart, index: int) -> WorldStart:
    return WorldStart(*(getattr(start, field.name)[index : index + 1] for field in fields(WorldStart)))


def played(world: MovingSpriteWorld, seeds: list[int], num_steps: int = 8) -> tuple[WorldStart, Tensor, Tensor, Tensor]:
    start, actions = world.start(seeds), world.sample_actions(seeds, num_steps)
    positions = world.simulate(start, actions)
    return start, actions, positions, world.render(start, positions)


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("action_kind", ["continuous", "discrete"])
def test_a_seed_says_everything(background: Background, action_kind: str) -> None:
    one, other = (
        played(world_of(background=background, action_kind=action_kind, second_object=True), SEEDS) for _ in range(2)
    )
    assert all(equal_starts(one[0], other[0]).values())
    assert all(torch.equal(a, b) for a, b in zip(one[1:], other[1:], strict=True))
    torch.manual_seed(5)  # nothing comes from the global state, and nothing goes there
    before = torch.get_rng_state()
    assert torch.equal(played(world_of(background=background, action_kind=action_kind), SEEDS)[1], one[1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_sample_does_not_depend_on_its_batch(background: Background) -> None:
    world = world_of(background=background, second_object=True)
    start, actions, positions, video = played(world, SEEDS)
    assert video.shape == (5, 9, 3, 24, 24)
    for index, seed in enumerate(SEEDS):
        alone = played(world, [seed])
        assert all(equal_starts(alone[0], sample_of(start, index)).values())
        for single, batch in zip(alone[1:], (actions, positions, video), strict=True):
            assert torch.equal(single[0], batch[index])


def test_other_seeds_give_other_worlds() -> None:
    world = world_of(background="busy", second_object=True)
    start, actions, positions, video = played(world, [0, 1])
    for values in (start.position, start.background, start.second_position, start.second_velocity):
        assert not torch.equal(values[0], values[1])
    for values in (actions, positions, video):
        assert not torch.equal(values[0], values[1])


def test_starts_are_what_they_say() -> None:
    world = world_of()
    start = world.start(range(100))
    assert set(start.color_name) == set(COLORS)
    assert start.color.tolist() == torch.tensor([COLORS[name] for name in start.color_name]).tolist()
    assert start.prompts == [f"a {name} disc" for name in start.color_name]
    assert start.position.min() >= 3.5 and start.position.max() <= 20.5
    assert start.position.min() < 4.5 and start.position.max() > 19.5
    torch.testing.assert_close(start.second_velocity.norm(dim=1), torch.full((100,), 0.75))


def test_actions_move_the_sprite_exactly() -> None:
    world = world_of(max_speed=2.0)
    start = start_at(world, (12.0, 12.0), (8.0, 14.0))
    actions = torch.tensor([[[0.5, -0.25], [1.0, 0.0], [0.0, 0.0]], [[-0.125, 0.5], [0.0, -1.0], [0.25, 0.25]]])
    expected = [[[12, 12], [13, 11.5], [15, 11.5], [15, 11.5]], [[8, 14], [7.75, 15], [7.75, 13], [8.25, 13.5]]]
    assert world.simulate(start, actions).tolist() == expected


def test_no_action_is_larger_than_full() -> None:
    world = world_of()
    start = start_at(world, (12.0, 12.0))
    wild = torch.tensor([[[3.0, -7.0], [-1.5, 0.5]]])
    assert torch.equal(world.simulate(start, wild), world.simulate(start, wild.clamp(-1, 1)))
    assert world.simulate(start, wild)[0, 1].tolist() == [13.5, 10.5]


def test_walls_stop_one_axis_and_leave_the_other_free() -> None:
    world = world_of()
    start = start_at(world, (19.5, 12.0), (4.0, 5.0))
    actions = torch.tensor([[[1.0, 0.5]] * 3, [[-0.5, -1.0]] * 3])
    expected = [[[19.5, 12], [20.5, 12.75], [20.5, 13.5], [20.5, 14.25]], [[4, 5], [3.5, 3.5], [3.5, 3.5], [3.5, 3.5]]]
    assert world.simulate(start, actions).tolist() == expected


def test_discrete_actions_are_directions() -> None:
    world = world_of(action_kind="discrete", max_speed=2.0)
    start = start_at(world, (12.0, 11.0))
    assert list(DIRECTIONS) == ["stay", "+x", "-x", "+y", "-y"]
    actions = torch.tensor([[[1.0], [3.0], [0.0], [2.0], [4.0]]])
    expected = [[[12, 11], [14, 11], [14, 13], [14, 13], [12, 13], [12, 11]]]
    assert world.simulate(start, actions).tolist() == expected


def test_row_k_acts_between_frame_k_and_the_next() -> None:
    world = world_of()
    start = start_at(world, (12.0, 12.0), (10.0, 13.0))
    still = world.simulate(start, torch.zeros(2, 6, 2))
    for row in range(6):
        actions = torch.zeros(2, 6, 2)
        actions[:, row] = torch.tensor([1.0, -0.5])
        moved = (world.simulate(start, actions) - still).tolist()
        assert moved == [[[0.0, 0.0]] * (row + 1) + [[1.5, -0.75]] * (6 - row)] * 2


@pytest.mark.parametrize("row", [0, 3, 7])
def test_counterfactuals_share_the_past_and_nothing_else(row: int) -> None:
    world = world_of(second_object=True, background="gradient")
    start = start_at(world, (12.0, 12.0), (11.0, 13.0), (13.0, 10.0))
    actions = 0.25 * world.sample_actions([7, 8, 9], 8)
    other = actions.clone()
    other[:, row:] = -other[:, row:]
    videos = [world.render(start, world.simulate(start, rows)) for rows in (actions, other)]
    different = (videos[0] != videos[1]).flatten(2).any(-1).tolist()
    assert different == [[False] * (row + 1) + [True] * (8 - row)] * 3


@pytest.mark.parametrize("second_object", [False, True])
def test_the_disc_is_where_the_position_says(second_object: bool) -> None:
    world = world_of(second_object=second_object)
    start = start_at(world, (16.25, 6.5))
    x, y = 16.25, 6.5
    video = world.render(start, start.position[:, None])
    assert video.shape == (1, 1, 3, 24, 24)
    background, color = start.background[0], start.color[0]
    inside = outside = edge = 0
    for row in range(24):
        for column in range(24):
            distance = ((column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2) ** 0.5
            pixel = video[0, 0, :, row, column]
            if distance <= 3.0:
                inside += 1
                torch.testing.assert_close(pixel, color)
            elif distance < 4.0 and not second_object:
                edge += 1
                torch.testing.assert_close(pixel, background[:, row, column].lerp(color, 4.0 - distance))
            elif distance >= 4.0 and not second_object:
                outside += 1
                assert torch.equal(pixel, background[:, row, column])
    assert inside > 20 and (second_object or (edge > 10 and outside > 400))


def test_frames_show_their_own_positions() -> None:
    world = world_of()
    start, _, positions, video = played(world, SEEDS)
    for frame in range(9):
        assert torch.equal(world.render(start, positions[:, frame : frame + 1])[:, 0], video[:, frame])


def second_alone(world: MovingSpriteWorld, start: WorldStart, num_frames: int) -> tuple[Tensor, Tensor]:
    """Centre `[B, T, 2]` and area `[B, T]` of what is seen when the sprite is far outside the picture."""
    video = world.render(start, torch.full((len(start.position), num_frames, 2), -100.0))
    cover = (video - start.background[:, None]).abs().sum(2)
    cover = cover / cover.amax(dim=(2, 3), keepdim=True)
    area = cover.sum((2, 3))
    centres = torch.arange(world.width) + 0.5
    x, y = ((cover.sum(axis) * centres).sum(2) / area for axis in (2, 3))
    return torch.stack([x, y], dim=-1), area


def test_the_second_object_flies_straight_and_bounces() -> None:
    world = world_of(second_object=True, max_speed=3.0)
    radius, num_frames = 0.6 * 3.5, 120
    start = world.start(SEEDS)
    centre, area = second_alone(world, start, num_frames)
    # Read off pictures with an edge of one pixel: to a tenth of a pixel.
    assert centre.min() > radius - 0.1 and centre.max() < 24 - radius + 0.1
    assert (area / area.mean()).sub(1).abs().max() < 0.05
    torch.testing.assert_close(centre[:, 0], start.second_position, atol=0.1, rtol=0)
    steps = centre.diff(dim=1)
    signs = steps.sign()[steps.abs() > 0.3]
    assert {-1.0, 1.0} == set(signs.tolist())
    # Away from walls every step is the velocity, up to the sign of each axis.
    away = ((centre[:, :-1] - 12).abs() < 12 - radius - 1.6).all(-1)
    assert away.float().mean() > 0.3
    expected = start.second_velocity.abs()[:, None].expand_as(steps)
    torch.testing.assert_close(steps.abs()[away], expected[away], atol=0.15, rtol=0)
    # In so many frames every axis that moves at all has met both walls.
    fast = start.second_velocity.abs() > 0.5
    assert bool(fast.any())
    reach = centre.amax(1) - centre.amin(1)
    assert bool((reach[fast] > 24 - 2 * radius - 1.6).all())


def test_without_a_second_object_there_is_none() -> None:
    world = world_of()
    start = world.start(SEEDS)
    video = world.render(start, torch.full((5, 3, 2), -100.0))
    assert torch.equal(video, start.background[:, None].expand_as(video))


def test_the_second_object_ignores_actions_and_stays_behind_the_sprite() -> None:
    world, plain = world_of(second_object=True), world_of()
    start = replace(world.start([0]), second_velocity=torch.zeros(1, 2), second_position=torch.tensor([[8.0, 9.0]]))
    over, away = torch.tensor([[[8.0, 9.0]]]), torch.tensor([[[19.0, 18.0]]])
    assert torch.equal(world.render(start, over), plain.render(start, over))
    assert not torch.equal(world.render(start, away), plain.render(start, away))
    both = world.render(start, away)
    assert torch.equal(both[..., :13, :12], world.render(start, torch.tensor([[[19.0, 19.0]]]))[..., :13, :12])


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
@pytest.mark.parametrize("hold_probability", [0.0, 0.7, 0.9])
def test_actions_are_held_as_often_as_asked(kind: str, hold_probability: float) -> None:
    actions = world_of(action_kind=kind, hold_probability=hold_probability).sample_actions(SEEDS, 2000)
    held = (actions[:, 1:] == actions[:, :-1]).all(-1).float().mean().item()
    # A fresh direction is the old one in one of five cases. 10 000 draws: four standard deviations are below 0.02.
    expected = hold_probability if kind == "continuous" else hold_probability + (1 - hold_probability) / 5
    assert abs(held - expected) < 0.02


def test_continuous_actions_fill_their_range() -> None:
    actions = world_of(hold_probability=0.0).sample_actions(SEEDS, 500)
    assert actions.shape == (5, 500, 2)
    assert actions.min() >= -1 and actions.max() <= 1
    assert actions.amin((0, 1)).max() < -0.98 and actions.amax((0, 1)).min() > 0.98
    assert actions.mean((0, 1)).abs().max() < 0.05


def test_discrete_actions_are_all_directions() -> None:
    actions = world_of(action_kind="discrete").sample_actions(SEEDS, 200)
    assert actions.shape == (5, 200, 1)
    assert set(actions.flatten().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_a_video_of_one_frame_has_no_actions(kind: str) -> None:
    world = world_of(action_kind=kind)
    start, actions, positions, video = played(world, SEEDS, num_steps=0)
    assert actions.shape == (5, 0, 2 if kind == "continuous" else 1)
    assert torch.equal(positions, start.position[:, None])
    assert video.shape == (5, 1, 3, 24, 24)


@pytest.mark.parametrize(("kind", "columns", "width"), [("continuous", 2, 6), ("discrete", 1, 15)])
def test_the_schema_fits_the_actions(kind: str, columns: int, width: int) -> None:
    world = world_of(action_kind=kind)
    schema = world.action_schema(temporal_compression_ratio=3)
    assert (schema.alignment, schema.num_columns, schema.action_dim) == ("transition", columns, width)
    vectors, present = schema.encode(world.sample_actions(SEEDS, 12), 5)
    assert vectors.shape == (5, 5, width)
    assert present.tolist() == [[False, True, True, True, True]] * 5


def roughness(image: Tensor) -> float:
    """Mean second difference along a row."""
    return image.diff(n=2, dim=-1).abs().mean().item()


def test_backgrounds_are_plain_smooth_or_busy() -> None:
    plain, gradient, busy = (world_of(background=background).start(SEEDS).background for background in BACKGROUNDS)
    assert torch.equal(plain, torch.full((5, 3, 24, 24), -0.6))
    for background in (gradient, busy):
        assert background.shape == plain.shape
        assert background.min() >= -1 and background.max() <= 0.2
        assert background.flatten(2).std(-1).min() > 0.01
    assert 0 < 5 * roughness(gradient) < roughness(busy)


@pytest.mark.parametrize(("image_size", "radius"), [(24, 3.5), (32, 5.0), (40, 7.25)])
def test_sizes_are_arguments(image_size: int, radius: float) -> None:
    world = world_of(image_size=image_size, sprite_radius=radius)
    start = start_at(world, (image_size / 2, image_size / 2))
    video = world.render(start, start.position[:, None])
    assert video.shape == (1, 1, 3, image_size, image_size)
    share = (video[0, 0] - start.background[0]).abs().sum(0)
    area = (share / share.max()).sum().item()
    assert abs(area / (torch.pi * radius**2) - 1) < 0.02


def everywhere(world: MovingSpriteWorld, batch_size: int, num_frames: int) -> Tensor:
    """Random positions, the corners among them."""
    low, high = world.sprite_radius, world.width - world.sprite_radius
    random = torch.Generator().manual_seed(0)
    positions = low + (high - low) * torch.rand(batch_size, num_frames, 2, generator=random)
    positions[:, :2] = torch.tensor([[low, low], [low, high]])
    return positions


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", COLORS)
def test_positions_are_read_off_pictures(background: Background, name: str) -> None:
    """To 0.13 px at worst and 0.03 px on average, whatever is behind: only pixels more than half covered count."""
    world = MovingSpriteWorld(background=background)
    start = replace(world.start(range(4)), color=torch.tensor(COLORS[name]).expand(4, 3))
    positions = everywhere(world, 4, 100)
    located, found = world.locate(start, world.render(start, positions))
    assert bool(found.all())
    error = (located - positions).norm(dim=-1)
    assert error.max() < 0.15
    assert error.mean() < 0.04


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("name", COLORS)
def test_positions_are_read_beside_a_second_object(background: Background, name: str) -> None:
    """Where the discs touch, pixels of the other one's edge are taken in: 0.24 px at worst, 0.65 px in 1 of 30 000."""
    world = MovingSpriteWorld(background=background, second_object=True)
    start = replace(world.start(range(4)), color=torch.tensor(COLORS[name]).expand(4, 3))
    positions = everywhere(world, 4, 100)
    located, found = world.locate(start, world.render(start, positions))
    assert bool(found.all())
    error = (located - positions).norm(dim=-1)
    assert error.max() < 0.3
    assert error.mean() < 0.05


@pytest.mark.parametrize("second_object", [False, True])
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_nothing_is_found_where_no_sprite_is(background: Background, second_object: bool) -> None:
    world = world_of(background=background, second_object=second_object)
    start = world.start(range(30))
    assert set(start.color_name) == set(COLORS)
    positions = torch.full((30, 3, 2), -100.0)
    positions[:, 1] = start.position
    located, found = world.locate(start, world.render(start, positions))
    assert found.tolist() == [[False, True, False]] * 30
    assert bool(torch.isfinite(located).all())


def test_less_than_a_quarter_of_the_sprite_is_not_found() -> None:
    world = world_of()
    start = start_at(world, (12.0, 12.0))
    video = world.render(start, start.position[:, None]).repeat(1, 3, 1, 1, 1)
    background = start.background[:, None]
    video[:, 1, ..., 12:] = background[:, 0, ..., 12:]  # half of it is gone
    video[:, 2, ..., 10:] = background[:, 0, ..., 10:]  # a sixth is left
    assert world.locate(start, video)[1].tolist() == [[True, True, False]]


def test_a_sprite_of_another_colour_is_not_found() -> None:
    world = world_of()
    start = replace(world.start([0, 1]), color=torch.tensor([COLORS["red"], COLORS["blue"]]))
    swapped = replace(start, color=start.color.flip(0))
    video = world.render(start, start.position[:, None])
    assert world.locate(start, video)[1].tolist() == [[True], [True]]
    assert world.locate(swapped, video)[1].tolist() == [[False], [False]]


def test_pictures_that_are_not_finite_hold_no_sprite() -> None:
    world = world_of()
    start = world.start(SEEDS)
    located, found = world.locate(start, torch.full((5, 2, 3, 24, 24), float("nan")))
    assert not found.any()
    assert bool(torch.isfinite(located).all())


@pytest.mark.parametrize(
    "arguments",
    [
        {"sprite_radius": 0.0},
        {"sprite_radius": 6.0},
        {"image_size": 14},
        {"max_speed": 0.0},
        {"hold_probability": 1.0},
        {"hold_probability": -0.1},
        {"action_kind": "keys"},
        {"background": "gradiant"},
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    world_of()
    with pytest.raises(ValueError, match=r"(expected|must be) .* got .*"):
        world_of(**arguments)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_a_rectangle(background: Background) -> None:
    """Wider than high: the walls are where the picture ends, and what is drawn is found where it is."""
    world = world_of(image_size=(20, 36), background=background, second_object=True)
    start = start_at(world, (10.0, 10.0), (30.0, 8.0))
    actions = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])[:, None].expand(-1, 30, -1)
    positions = world.simulate(start, actions)
    assert torch.equal(positions[:, -1], torch.tensor([[36 - 3.5, 20 - 3.5], [3.5, 3.5]]))
    video = world.render(start, positions)
    assert video.shape == (2, 31, 3, 20, 36)
    without_second = world_of(image_size=(20, 36), background=background)
    read, found = without_second.locate(start, without_second.render(start, positions))
    assert found.all()
    torch.testing.assert_close(read, positions, atol=0.1, rtol=0)
    places = torch.stack([world.start([seed]).position[0] for seed in range(40)])
    assert places[:, 0].max() > 20 and places[:, 1].max() <= 20 - 3.5


def rich_world(**changes: Any) -> MovingSpriteWorld:
    return MovingSpriteWorld(**{"background": "textured", "shapes": SHAPES, "shaded": True, **changes})


@pytest.mark.parametrize("shape", SHAPES)
def test_shaded_shapes_are_read_off_textures(shape: Shape) -> None:
    world = rich_world(shapes=[shape])
    start = world.start(range(20))
    assert set(start.shape) == {shape}
    positions = everywhere(world, 20, 30)
    located, found = world.locate(start, world.render(start, positions))
    assert bool(found.all())
    error = (located - positions).norm(dim=-1)
    assert error.max() < 0.5
    assert error.mean() < 0.15


def test_shapes_have_their_own_outlines() -> None:
    """A batch of several shapes shows each as it is alone, and no two alike."""
    world = rich_world(background="plain", shaded=False)
    start = world.start(range(40))
    assert set(start.shape) == set(SHAPES)
    start = replace(start, position=torch.full((40, 2), 16.0), color=torch.ones(40, 3))
    frames = world.render(start, start.position[:, None])[:, 0, 0]
    outlines = {shape: frames[index] for index, shape in enumerate(start.shape)}
    for index, shape in enumerate(start.shape):
        assert torch.equal(frames[index], outlines[shape])
    assert len({tuple(outline.flatten().tolist()) for outline in outlines.values()}) == len(SHAPES)
    for outline in outlines.values():
        # Turned by half a circle it is the same: the centre of its mass is its position.
        torch.testing.assert_close(outline.flip(0, 1), outline)


def test_textures_are_muted_and_differ() -> None:
    backgrounds = rich_world().start(range(30)).background
    assert backgrounds.min() >= -1 and backgrounds.max() <= 0.2
    assert backgrounds.std(dim=(2, 3)).min() > 0.03
    assert not torch.equal(backgrounds[0], backgrounds[1])


def test_wordings_are_drawn_and_say_what_is_there() -> None:
    world = rich_world(wordings=["a {color} {shape}", "something {color}", "look"])
    start = world.start(range(60))
    for prompt, color, shape in zip(start.prompts, start.color_name, start.shape, strict=True):
        assert prompt in (f"a {color} {shape}", f"something {color}", "look")
    assert len({prompt.split()[0] for prompt in start.prompts}) == 3


def test_made_up_words_are_drawn_for_each_place_and_change_nothing_else() -> None:
    start = rich_world(wordings=["{word} {color} {word}"]).start(range(20))
    words = []
    for prompt, color in zip(start.prompts, start.color_name, strict=True):
        before, between, after = prompt.split()
        assert between == color
        words += [before, after]
    assert len(set(words)) == 40 and all(len(word) == 6 and word.islower() for word in words)
    plain = rich_world(wordings=["{color}"]).start(range(20))
    assert torch.equal(start.position, plain.position) and start.shape == plain.shape


def test_actions_are_still_and_slow_as_asked() -> None:
    world = rich_world(still_probability=0.3, slowness=2.0, hold_probability=0.5)
    actions = world.sample_actions(range(200), 40)
    assert abs((actions == 0).float().mean() - 0.3) < 0.02
    both = (actions == 0).all(dim=-1).float().mean()
    assert abs(both - 0.09) < 0.02
    moving = actions[actions != 0].abs()
    # The square of what is uniform has its median at a quarter.
    assert abs(moving.median() - 0.25) < 0.02
    held = (actions[:, 1:] == actions[:, :-1]).all(dim=-1).float().mean()
    # What changes from still to still looks held as well.
    assert abs(held - (0.5 + 0.5 * 0.09**2)) < 0.02


def test_inertia_keeps_a_share_of_the_velocity_and_walls_take_it() -> None:
    world = world_of(inertia=0.5, max_speed=2.0)
    start = start_at(world, (10.0, 12.0), (17.5, 12.0))
    actions = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]], [[1.0, 0.0]] * 2 + [[-1.0, 0.0]]])
    # 1, 1.5, 0.75 pixels a frame; the second meets the wall at 20.5 and turns from rest at 1.
    expected = [[10.0, 11.0, 12.5, 13.25], [17.5, 18.5, 20.0, 19.75]]
    assert world.simulate(start, actions)[..., 0].tolist() == expected
    at_wall = start_at(world, (20.5, 12.0))
    pushed = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]])
    assert world.simulate(at_wall, pushed)[0, :, 0].tolist() == [20.5, 20.5, 20.5, 19.5]


def test_the_second_object_takes_other_courses_at_random_and_keeps_its_speed() -> None:
    world = world_of(second_object=True, second_turn_probability=0.2, sprite_radius=2.0, image_size=32)
    start = world.start(range(20))
    longer = world._second_positions(start, 30)
    assert torch.equal(world._second_positions(start, 12), longer[:, :12])
    torch.testing.assert_close(longer[:, 0], start.second_position)
    inside = ((longer > 4) & (longer < 28)).all(dim=-1)
    moves = longer.diff(dim=1)
    calm = inside[:, 1:] & inside[:, :-1]
    torch.testing.assert_close(moves.norm(dim=-1)[calm], torch.full_like(moves[..., 0], 0.75)[calm])
    both = calm[:, 1:] & calm[:, :-1]
    turned = (moves[:, 1:] - moves[:, :-1]).norm(dim=-1) > 1e-3
    assert abs(turned[both].float().mean() - 0.2) < 0.07
    straight = world_of(second_object=True, sprite_radius=2.0, image_size=32)
    assert not torch.equal(straight._second_positions(straight.start(range(20)), 30), longer)


@pytest.mark.parametrize(
    "arguments",
    [{"shapes": []}, {"shapes": ["ring"]}, {"wordings": []}, {"wordings": "a {color} disc"}]
    + [{"wordings": ["a {colour} disc"]}, {"wordings": ["a {} disc"]}, {"wordings": ["a {color disc"]}]
    + [{"wordings": ["a {word!r} disc"]}]
    + [{"inertia": 1.0}, {"slowness": 0.5}, {"still_probability": 1.5}, {"second_turn_probability": -0.1}],
)
def test_settings_of_richer_worlds_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments)).rstrip("s")):
        rich_world(**arguments)


@pytest.mark.parametrize("action_kind", ["continuous", "discrete"])
def test_a_world_that_goes_on_in_pieces_is_the_whole_one(action_kind: str) -> None:
    world = world_of(action_kind=action_kind, inertia=0.4, second_object=True, second_turn_probability=0.3)
    start, actions, positions, video = played(world, SEEDS, 9)
    path = start.position[:, None]
    for piece in (1, 3, 5):
        more = world.go_on(path, actions[:, path.shape[1] - 1 :][:, :piece])
        shown = world.render(start, more, path.shape[1])
        assert torch.equal(shown, video[:, path.shape[1] :][:, :piece])
        path = torch.cat([path, more], dim=1)
    assert torch.equal(path, positions)
    assert not torch.equal(world.render(start, positions[:, 4:]), video[:, 4:])
