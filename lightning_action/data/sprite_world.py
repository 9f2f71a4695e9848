"""A world of one steerable sprite: rendered with torch, its state known exactly, every difficulty an argument.

Positions are in pixels, x to the right and y down, of the sprite's centre. An action row k leads from pixel frame k to
k + 1 (the `transition` alignment).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.seeding import generator_for

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, -0.7, -0.7),
    "green": (-0.7, 0.8, -0.7),
    "blue": (-0.6, -0.3, 1.0),
    "yellow": (0.9, 0.8, -0.7),
    "white": (0.9, 0.9, 0.9),
}
DIRECTIONS: dict[str, tuple[float, float]] = {
    "stay": (0.0, 0.0),
    "+x": (1.0, 0.0),
    "-x": (-1.0, 0.0),
    "+y": (0.0, 1.0),
    "-y": (0.0, -1.0),
}
_SECOND_COLOR = (0.9, -0.5, 0.9)


@dataclass(frozen=True)
class WorldStart:
    """A batch of worlds at pixel frame 0: the history that counterfactuals share.

    Args:
        position: Position of the sprite, `[B, 2]`.
        color: Colour of the sprite in [-1, 1], `[B, 3]`.
        color_name: Name of that colour, as the prompt says it.
        background: Picture behind the sprite, `[B, 3, H, W]` in [-1, 1].
        second_position: Position of the autonomous object, `[B, 2]`.
        second_velocity: Velocity of the autonomous object in pixels a frame, `[B, 2]`.
    """

    position: Tensor
    color: Tensor
    color_name: list[str]
    background: Tensor
    second_position: Tensor
    second_velocity: Tensor

    @property
    def prompts(self) -> list[str]:
        """The text of each world, for example `a red disc`."""
        return [f"a {name} disc" for name in self.color_name]


class MovingSpriteWorld:
    """One disc moved by actions, in a rectangle with walls that stop it.

    Args:
        image_size: Number of pixels of a side, or [height, width].
        sprite_radius: Radius of the sprite in pixels.
        max_speed: Speed at full action in pixels a frame, per axis.
        action_kind: Kind of the actions: `continuous`, two values in [-1, 1]; or `discrete`, one of stay, +x, -x, +y,
            -y.
        hold_probability: Probability that a random action stays the same for one more pixel frame.
        second_object: Show a smaller disc that bounces by itself, behind the sprite.
        background: Kind of the background: `plain`, `gradient`, or `busy` (a random texture).

    Raises:
        ValueError: The sprite does not fit, or an argument is out of range.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 32,
        sprite_radius: float = 5.0,
        max_speed: float = 2.0,
        action_kind: Literal["continuous", "discrete"] = "continuous",
        hold_probability: float = 0.7,
        second_object: bool = False,
        background: Literal["plain", "gradient", "busy"] = "plain",
    ) -> None:
        self.height, self.width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if not 0 < sprite_radius < min(self.height, self.width) / 4 or max_speed <= 0 or not 0 <= hold_probability < 1:
            raise ValueError(
                "expected 0 < sprite_radius < shorter side / 4, max_speed > 0 and 0 <= hold_probability < 1, got "
                f"{sprite_radius}, {max_speed}, {hold_probability} at image_size {image_size}"
            )
        if action_kind not in ("continuous", "discrete") or background not in ("plain", "gradient", "busy"):
            raise ValueError(
                "expected action_kind continuous or discrete and background plain, gradient or busy, got "
                f"{action_kind!r} and {background!r}"
            )
        self.sprite_radius = sprite_radius
        self.max_speed = max_speed
        self.action_kind = action_kind
        self.hold_probability = hold_probability
        self.second_object = second_object
        self.background = background

    def action_schema(self, temporal_compression_ratio: int = 4) -> ActionSchema:
        """Describe this world's actions."""
        discrete = self.action_kind == "discrete"
        part = ActionPart("move", "discrete", len(DIRECTIONS)) if discrete else ActionPart("move", "continuous", 2)
        return ActionSchema([part], "transition", "concat", temporal_compression_ratio)

    def start(self, seeds: Sequence[int]) -> WorldStart:
        """Draw worlds at pixel frame 0, each from its seed alone."""
        return _stack([self._start_one(seed) for seed in seeds])

    def sample_actions(self, seeds: Sequence[int], num_steps: int) -> Tensor:
        """Draw action rows, held for some pixel frames each: `[B, num_steps, 2]`, or `[B, num_steps, 1]` discrete."""
        return torch.stack([self._sample_actions_one(generator_for(seed, 1), num_steps) for seed in seeds])

    def simulate(self, start: WorldStart, actions: Tensor) -> Tensor:
        """Compute positions of the sprite under action rows `[B, T - 1, ...]`: `[B, T, 2]`, frame 0 the start."""
        low = torch.tensor(self.sprite_radius)
        high = self._sides - low
        positions = [start.position]
        for step in self._velocities(actions).unbind(1):
            positions.append((positions[-1] + step).clamp(low, high))
        return torch.stack(positions, dim=1)

    def render(self, start: WorldStart, positions: Tensor) -> Tensor:
        """Render video `[B, T, 3, H, W]` in [-1, 1] of the sprite at `positions` `[B, T, 2]`."""
        frames = start.background[:, None].expand(-1, positions.shape[1], -1, -1, -1)
        if self.second_object:
            color = torch.tensor(_SECOND_COLOR).expand(len(frames), 3)
            frames = self._paint(frames, self._second_positions(start, positions.shape[1]), color, self._second_radius)
        return self._paint(frames, positions, start.color, self.sprite_radius)

    def locate(self, start: WorldStart, video: Tensor) -> tuple[Tensor, Tensor]:
        """Read the sprite's position off any video of these worlds.

        A pixel belongs to the sprite as far as it lies from the background towards the sprite's colour; the position is
        the centroid of those pixels.

        Returns:
            Positions `[B, T, 2]`, and whether at least a quarter of the sprite's area is there, `[B, T]` bool.
        """
        background = start.background[:, None]
        towards = start.color[:, None, :, None, None] - background
        share = ((video - background) * towards).sum(2) / towards.square().sum(2)
        off_line = (video - background - share[:, :, None] * towards).square().mean(2).sqrt()
        inside = torch.where((share > 0.5) & (off_line < 0.4), share.clamp(0, 1), torch.zeros_like(share))
        # Rising from zero at the threshold: a pixel that just crosses it does not move the centroid.
        weight = (2 * inside - 1).clamp_min(0)
        mass = weight.sum((2, 3))
        columns, rows = self._pixel_centres()
        x = (weight.sum(2) * columns).sum(2) / mass.clamp_min(1e-6)
        y = (weight.sum(3) * rows).sum(2) / mass.clamp_min(1e-6)
        found = inside.sum((2, 3)) > 0.25 * torch.pi * self.sprite_radius**2
        return torch.stack([x, y], dim=-1), found

    @property
    def _second_radius(self) -> float:
        return 0.6 * self.sprite_radius

    @property
    def _sides(self) -> Tensor:
        """Width and height, in the order of a position."""
        return torch.tensor([self.width, self.height], dtype=torch.float32)

    def _pixel_centres(self) -> tuple[Tensor, Tensor]:
        """Return the places of the columns and of the rows."""
        return torch.arange(self.width) + 0.5, torch.arange(self.height) + 0.5

    def _start_one(self, seed: int) -> WorldStart:
        random = generator_for(seed, 0)
        margin = self.sprite_radius
        room = self._sides - 2 * margin
        name = list(COLORS)[int(torch.randint(len(COLORS), (1,), generator=random))]
        position, second = (margin + room * torch.rand(2, 2, generator=random)).unbind(0)
        angle = 2 * torch.pi * torch.rand(1, generator=random)
        velocity = 0.5 * self.max_speed * torch.cat([angle.cos(), angle.sin()])
        return WorldStart(
            position[None],
            torch.tensor(COLORS[name])[None],
            [name],
            self._draw_background(random)[None],
            second[None],
            velocity[None],
        )

    def _draw_background(self, random: torch.Generator) -> Tensor:
        size = (self.height, self.width)
        if self.background == "plain":
            return torch.full((3, *size), -0.6)
        if self.background == "gradient":
            corners = -0.6 + 0.3 * torch.randn(1, 3, 2, 2, generator=random)
        else:
            corners = -0.5 + 0.25 * torch.randn(1, 3, self.height // 4, self.width // 4, generator=random)
        return F.interpolate(corners, size=size, mode="bilinear", align_corners=True)[0].clamp(-1, 0.2)

    def _sample_actions_one(self, random: torch.Generator, num_steps: int) -> Tensor:
        discrete = self.action_kind == "discrete"
        if discrete:
            fresh = torch.randint(len(DIRECTIONS), (num_steps, 1), generator=random)
        else:
            fresh = 2 * torch.rand(num_steps, 2, generator=random) - 1
        changes = torch.rand(num_steps, generator=random) >= self.hold_probability
        last_change = torch.where(changes, torch.arange(num_steps), torch.zeros(num_steps, dtype=torch.long))
        return fresh[last_change.cummax(0).values] if num_steps else fresh

    def _velocities(self, actions: Tensor) -> Tensor:
        """Compute velocities in pixels a frame, `[B, T - 1, 2]`."""
        if self.action_kind == "discrete":
            return self.max_speed * torch.tensor(list(DIRECTIONS.values()))[actions.squeeze(-1).long()]
        return self.max_speed * actions.clamp(-1, 1)

    def _second_positions(self, start: WorldStart, num_frames: int) -> Tensor:
        """Compute straight flight with mirror walls: fold the unbounded line back into the rectangle."""
        low = self._second_radius
        room = self._sides - 2 * low
        times = torch.arange(num_frames)[None, :, None]
        unfolded = start.second_position[:, None] - low + start.second_velocity[:, None] * times
        return low + room - (unfolded.remainder(2 * room) - room).abs()

    def _paint(self, frames: Tensor, positions: Tensor, color: Tensor, radius: float) -> Tensor:
        """Paint a disc with an edge one pixel soft."""
        columns, rows = self._pixel_centres()
        dx = columns - positions[..., 0, None]
        dy = rows - positions[..., 1, None]
        distance = (dx[..., None, :].square() + dy[..., :, None].square()).sqrt_()
        cover = distance.neg_().add_(radius + 0.5).clamp_(0, 1)[:, :, None]
        # Painting is in place: a video of full size is hundreds of megabytes.
        painted = color[:, None, :, None, None] - frames
        return painted.mul_(cover).add_(frames)


def _stack(worlds: Sequence[WorldStart]) -> WorldStart:
    return WorldStart(
        torch.cat([world.position for world in worlds]),
        torch.cat([world.color for world in worlds]),
        [name for world in worlds for name in world.color_name],
        torch.cat([world.background for world in worlds]),
        torch.cat([world.second_position for world in worlds]),
        torch.cat([world.second_velocity for world in worlds]),
    )
