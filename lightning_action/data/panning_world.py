"""A world of which a camera shows a part: actions move the camera, and everything that is seen moves against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.data.scenery import SHAPES, draw_background, paint
from lightning_action.data.sprite_world import COLORS, draw_held_actions
from lightning_action.data.world import World
from lightning_action.ranges import require_numbers
from lightning_action.seeding import generator_for

# Steps that bring a camera read to a whole pixel to the place between, and correlation from which it counts as read.
_NUM_REFINEMENTS, _MIN_CORRELATION = 6, 0.5


@dataclass(frozen=True)
class PanningStart:
    """A batch of worlds at pixel frame 0.

    Args:
        position: Middle of what the camera shows, in pixels of the map, `[B, 2]`.
        ground: The whole map, `[B, 3, S, S]` in [-1, 1].
        prompts: Descriptions of what is to be seen.
    """

    position: Tensor
    ground: Tensor
    prompts: list[str]


class PanningCameraWorld(World):
    """A camera that actions move over a textured ground with coloured shapes on it; walls stop it at the map's edge.

    All of the picture moves, by exactly what the actions say: the flow between two frames is the difference of their
    positions, with the sign turned, and an action and its opposite lead back to the same picture.

    Args:
        image_size: Number of pixels of a side of the picture.
        map_size: Number of pixels of a side of the map.
        num_shapes: Number of shapes on the ground.
        shape_radius: Radius of the shapes in pixels.
        max_speed: Speed at full action in pixels a frame, per axis.
        hold_probability: Probability that a random action stays the same for one more pixel frame.
        still_probability: Probability that an axis of a random action is 0.
        slowness: Power to which random actions are raised, sign apart: larger ones give more slow ones.
        map_seed: Random seed of one map that all worlds share, so that what comes into sight can be known; None draws
            one for each.

    Raises:
        ValueError: An argument is out of range, or the map is not larger than the picture.
    """

    def __init__(
        self,
        image_size: int = 32,
        map_size: int = 80,
        num_shapes: int = 20,
        shape_radius: float = 5.0,
        max_speed: float = 2.0,
        hold_probability: float = 0.7,
        still_probability: float = 0.2,
        slowness: float = 1.5,
        map_seed: int | None = None,
    ) -> None:
        require_numbers({"image_size": image_size, "num_shapes": num_shapes}, 1, whole=True)
        require_numbers({"map_size": map_size}, image_size + 1, whole=True)
        require_numbers({"shape_radius": shape_radius, "max_speed": max_speed}, 0, without_low=True)
        require_numbers({"hold_probability": hold_probability}, 0, 1, without_high=True)
        require_numbers({"still_probability": still_probability}, 0, 1)
        require_numbers({"slowness": slowness}, 1)
        if map_seed is not None:
            require_numbers({"map_seed": map_seed}, 0, 2**63 - 1, whole=True)
        self.image_size, self.map_size = image_size, map_size
        self.num_shapes, self.shape_radius = num_shapes, shape_radius
        self.max_speed = max_speed
        self.hold_probability, self.still_probability, self.slowness = hold_probability, still_probability, slowness
        self.map_seed = map_seed

    def action_schema(self, temporal_compression_ratio: int = 4) -> ActionSchema:
        return ActionSchema([ActionPart("pan", "continuous", 2)], "transition", "concat", temporal_compression_ratio)

    def start(self, seeds: Sequence[int]) -> PanningStart:
        randoms = [generator_for(seed, 0) for seed in seeds]
        low, high = self._reach
        position = torch.stack([low + (high - low) * torch.rand(2, generator=random) for random in randoms])
        if self.map_seed is None:
            ground = torch.cat([self._draw_map(random) for random in randoms])
        else:
            ground = self._draw_map(generator_for(self.map_seed, 0)).expand(len(seeds), -1, -1, -1)
        return PanningStart(position, ground, ["shapes on the ground"] * len(seeds))

    def sample_actions(self, seeds: Sequence[int], num_steps: int) -> Tensor:
        """Draw action rows, held for some pixel frames each: `[B, num_steps, 2]`."""
        settings = num_steps, self.hold_probability, self.still_probability, self.slowness
        return torch.stack([draw_held_actions(generator_for(seed, 1), *settings) for seed in seeds])

    def go_on(self, path: Tensor, actions: Tensor) -> Tensor:
        positions = [path[:, -1]]
        for action in actions.clamp(-1, 1).unbind(1):
            positions.append((positions[-1] + self.max_speed * action).clamp(*self._reach))
        return torch.stack(positions, dim=1)[:, 1:]

    def render(self, start: PanningStart, positions: Tensor, first_frame: int = 0) -> Tensor:
        return torch.stack([self._view(ground, places) for ground, places in zip(start.ground, positions, strict=True)])

    def locate(self, start: PanningStart, video: Tensor) -> tuple[Tensor, Tensor]:
        """Read off any video of these worlds where the camera is: where the map is most like the frame.

        The nearest whole pixel is found by trying all of them, and the place between by Gauss and Newton's method
        (Lucas and Kanade 1981).

        Returns:
            Positions `[B, T, 2]`, and whether map and frame correlate there by 0.5 at least, `[B, T]` bool.
        """
        pairs = [self._locate(ground, frames) for ground, frames in zip(start.ground, video, strict=True)]
        return torch.stack([places for places, _ in pairs]), torch.stack([found for _, found in pairs])

    @property
    def _reach(self) -> tuple[float, float]:
        return self.image_size / 2, self.map_size - self.image_size / 2

    def _draw_map(self, random: torch.Generator) -> Tensor:
        size = self.map_size
        ground = draw_background("textured", size, size, random)[None, None]
        for _ in range(self.num_shapes):
            place = size * torch.rand(1, 1, 2, generator=random)
            color = list(COLORS.values())[int(torch.randint(len(COLORS), (1,), generator=random))]
            shape = SHAPES[int(torch.randint(len(SHAPES), (1,), generator=random))]
            ground = paint(ground, place, torch.tensor([color]), self.shape_radius, shape, shaded=True)
        return ground[:, 0]

    def _view(self, ground: Tensor, places: Tensor) -> Tensor:
        """Cut a picture out of a map `[C, S, S]` around each of `places` `[T, 2]`, between pixels linearly."""
        steps = torch.arange(self.image_size) + 0.5 - self.image_size / 2
        columns, rows = ((places[:, axis, None] + steps) * 2 / self.map_size - 1 for axis in range(2))
        shape = len(places), self.image_size, self.image_size
        grid = torch.stack([columns[:, None].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
        return F.grid_sample(ground.expand(len(places), -1, -1, -1), grid, padding_mode="border", align_corners=False)

    def _locate(self, ground: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        product = F.conv2d(ground[None], frames)[0]
        energy = F.conv2d(ground.square().sum(0)[None, None], torch.ones(1, 1, *frames.shape[2:]))[0]
        best = (energy - 2 * product).flatten(1).argmin(dim=1)
        width = product.shape[-1]
        places = torch.stack([best % width, best // width], dim=-1) + self.image_size / 2
        slopes = torch.stack([ground.roll(-1, dim) - ground.roll(1, dim) for dim in (2, 1)]) / 2
        for _ in range(_NUM_REFINEMENTS):
            missing = (frames - self._view(ground, places)).flatten(1)
            steepest = torch.stack([self._view(slope, places).flatten(1) for slope in slopes], dim=1)
            # The small term is for pictures without slopes, whose place nothing tells.
            normal = steepest @ steepest.mT + 1e-3 * torch.eye(2)
            step = torch.linalg.solve(normal, steepest @ missing[..., None])[..., 0]
            places = (places + step.nan_to_num().clamp(-1, 1)).clamp(*self._reach)
        seen, shown = (each.flatten(1) for each in (self._view(ground, places), frames))
        likeness = F.cosine_similarity(seen - seen.mean(dim=1, keepdim=True), shown - shown.mean(dim=1, keepdim=True))
        return places, likeness >= _MIN_CORRELATION
