"""A world of one steerable sprite: rendered with torch, its state known exactly, every difficulty an argument.

Positions are in pixels, x to the right and y down, of the sprite's centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.data.scenery import SHAPES, Background, Shape, draw_background, paint
from lightning_action.data.world import World
from lightning_action.ranges import require_numbers
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
SECOND_COLOR = (0.9, -0.5, 0.9)


@dataclass(frozen=True)
class WorldStart:
    """A batch of worlds at pixel frame 0: the history that counterfactuals share.

    Args:
        position: Position of the sprite, `[B, 2]`.
        color: Colour of the sprite in [-1, 1], `[B, 3]`.
        color_name: Name of that colour.
        shape: Kind of the sprite.
        prompts: Descriptions of what is to be seen.
        background: Picture behind the sprite, `[B, 3, H, W]` in [-1, 1].
        second_position: Position of the autonomous object, `[B, 2]`.
        second_velocity: Velocity of the autonomous object in pixels a frame, `[B, 2]`.
        seeds: Random seed of each world.
    """

    position: Tensor
    color: Tensor
    color_name: list[str]
    shape: list[Shape]
    prompts: list[str]
    background: Tensor
    second_position: Tensor
    second_velocity: Tensor
    seeds: list[int]


class MovingSpriteWorld(World):
    """One sprite moved by actions, in a rectangle with walls that stop it.

    Args:
        image_size: Number of pixels of a side, or [height, width].
        sprite_radius: Radius of the sprite in pixels.
        max_speed: Speed at full action in pixels a frame, per axis.
        action_kind: Kind of the actions: `continuous`, two values in [-1, 1]; or `discrete`, one of stay, +x, -x, +y,
            -y.
        hold_probability: Probability that a random action stays the same for one more pixel frame.
        still_probability: Probability that an axis of a random continuous action is 0.
        slowness: Power to which random continuous actions are raised, sign apart: 1 gives all speeds alike, larger ones
            more slow ones.
        inertia: Share of its velocity that the sprite keeps from frame to frame, the rest of which is the action's.
        second_object: Show a smaller disc that bounces by itself, behind the sprite.
        second_turn_probability: Probability that the smaller disc takes another course, at each pixel frame.
        background: Kind of the background: `plain`, `gradient`, `busy` (a random texture), or `textured` (tiles, boards
            or cloth).
        shapes: Kinds of sprites: `disc`, `square`, `diamond`.
        shaded: Darken sprites towards their rim.
        wordings: Prompts to choose from, in which `{color}` and `{shape}` stand for the sprite's own, and each `{word}`
            for a word that nobody knows, drawn anew. A model that has seen such words does not mind those of a user.

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
        still_probability: float = 0.0,
        slowness: float = 1.0,
        inertia: float = 0.0,
        second_object: bool = False,
        second_turn_probability: float = 0.0,
        background: Background = "plain",
        shapes: Sequence[Shape] = ("disc",),
        shaded: bool = False,
        wordings: Sequence[str] = ("a {color} {shape}",),
    ) -> None:
        self.height, self.width = (image_size, image_size) if isinstance(image_size, int) else image_size
        told, quarter = f"sprite_radius at image_size {image_size}", min(self.height, self.width) / 4
        require_numbers({told: sprite_radius}, 0, quarter, without_low=True, without_high=True)
        require_numbers({"max_speed": max_speed}, 0, without_low=True)
        if action_kind not in ("continuous", "discrete") or background not in get_args(Background):
            raise ValueError(
                f"expected action_kind continuous or discrete and background {', '.join(get_args(Background))}, got "
                f"{action_kind!r} and {background!r}"
            )
        if not shapes or any(shape not in SHAPES for shape in shapes):
            raise ValueError(f"expected one or more shapes of {', '.join(SHAPES)}, got {shapes!r}")
        require_wordings(wordings)
        require_numbers(
            {"still_probability": still_probability, "second_turn_probability": second_turn_probability}, 0, 1
        )
        require_numbers({"hold_probability": hold_probability, "inertia": inertia}, 0, 1, without_high=True)
        require_numbers({"slowness": slowness}, 1)
        self.sprite_radius = sprite_radius
        self.max_speed = max_speed
        self.action_kind = action_kind
        self.hold_probability = hold_probability
        self.still_probability, self.slowness = still_probability, slowness
        self.inertia = inertia
        self.second_object = second_object
        self.second_turn_probability = second_turn_probability
        self.background = background
        self.shapes, self.shaded = tuple(shapes), shaded
        self.wordings = tuple(wordings)

    def action_schema(self, temporal_compression_ratio: int = 4) -> ActionSchema:
        discrete = self.action_kind == "discrete"
        part = ActionPart("move", "discrete", len(DIRECTIONS)) if discrete else ActionPart("move", "continuous", 2)
        return ActionSchema([part], "transition", "concat", temporal_compression_ratio)

    def start(self, seeds: Sequence[int]) -> WorldStart:
        drawn = zip(*map(self._draw_start, seeds), strict=True)
        position, name, shape, prompt, background, second_position, second_velocity = drawn
        return WorldStart(
            position=torch.stack(position),
            color=torch.tensor([COLORS[each] for each in name]),
            color_name=list(name),
            shape=list(shape),
            prompts=list(prompt),
            background=torch.stack(background),
            second_position=torch.stack(second_position),
            second_velocity=torch.stack(second_velocity),
            seeds=list(seeds),
        )

    def sample_actions(self, seeds: Sequence[int], num_steps: int) -> Tensor:
        """Draw action rows, held for some pixel frames each: `[B, num_steps, 2]`, or `[B, num_steps, 1]` discrete."""
        return torch.stack([self._sample_actions_one(generator_for(seed, 1), num_steps) for seed in seeds])

    def go_on(self, path: Tensor, actions: Tensor) -> Tensor:
        low = torch.tensor(self.sprite_radius)
        high = self._sides - low
        positions, last_move = [path[:, -1]], path[:, -1] - path[:, -2:][:, 0]
        for velocity in self._velocities(actions).unbind(1):
            move = velocity if self.inertia == 0 else self.inertia * last_move + (1 - self.inertia) * velocity
            positions.append((positions[-1] + move).clamp(low, high))
            last_move = positions[-1] - positions[-2]
        return torch.stack(positions, dim=1)[:, 1:]

    def render(self, start: WorldStart, positions: Tensor, first_frame: int = 0) -> Tensor:
        frames = start.background[:, None].expand(-1, positions.shape[1], -1, -1, -1)
        if self.second_object:
            color = torch.tensor(SECOND_COLOR).expand(len(frames), 3)
            places = self._second_positions(start, first_frame + positions.shape[1])[:, first_frame:]
            frames = paint(frames, places, color, self.second_radius)
        if len(set(start.shape)) == 1:
            return self._paint_sprites(frames, positions, start.color, start.shape[0])
        video = torch.empty(frames.shape)
        for shape in set(start.shape):
            own = torch.tensor([each == shape for each in start.shape])
            video[own] = self._paint_sprites(frames[own], positions[own], start.color[own], shape)
        return video

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
        columns, rows = torch.arange(self.width) + 0.5, torch.arange(self.height) + 0.5
        x = (weight.sum(2) * columns).sum(2) / mass.clamp_min(1e-6)
        y = (weight.sum(3) * rows).sum(2) / mass.clamp_min(1e-6)
        found = inside.sum((2, 3)) > 0.25 * torch.pi * self.sprite_radius**2
        return torch.stack([x, y], dim=-1), found

    @property
    def second_radius(self) -> float:
        """Radius of the autonomous object in pixels."""
        return 0.6 * self.sprite_radius

    @property
    def _sides(self) -> Tensor:
        """Width and height, in the order of a position."""
        return torch.tensor([self.width, self.height], dtype=torch.float32)

    def _draw_start(self, seed: int) -> tuple[Tensor, str, Shape, str, Tensor, Tensor, Tensor]:
        """Draw position, colour, shape, prompt, background, and position and velocity of the autonomous object."""
        random = generator_for(seed, 0)
        margin = self.sprite_radius
        room = self._sides - 2 * margin
        name = list(COLORS)[int(torch.randint(len(COLORS), (1,), generator=random))]
        position, second = (margin + room * torch.rand(2, 2, generator=random)).unbind(0)
        angle = 2 * torch.pi * torch.rand(1, generator=random)
        velocity = 0.5 * self.max_speed * torch.cat([angle.cos(), angle.sin()])
        background = draw_background(self.background, self.height, self.width, random)
        choice = generator_for(seed, 2)
        shape = self.shapes[int(torch.randint(len(self.shapes), (1,), generator=choice))]
        wording = self.wordings[int(torch.randint(len(self.wordings), (1,), generator=choice))]
        prompt = _with_words(wording, choice).format(color=name, shape=shape)
        return position, name, shape, prompt, background, second, velocity

    def _sample_actions_one(self, random: torch.Generator, num_steps: int) -> Tensor:
        if self.action_kind == "discrete":
            fresh = torch.randint(len(DIRECTIONS), (num_steps, 1), generator=random)
            return fresh[held_rows(num_steps, self.hold_probability, random)]
        return draw_held_actions(random, num_steps, self.hold_probability, self.still_probability, self.slowness)

    def _velocities(self, actions: Tensor) -> Tensor:
        """Compute velocities in pixels a frame, `[B, T - 1, 2]`."""
        if self.action_kind == "discrete":
            return self.max_speed * torch.tensor(list(DIRECTIONS.values()))[actions.squeeze(-1).long()]
        return self.max_speed * actions.clamp(-1, 1)

    def _second_positions(self, start: WorldStart, num_frames: int) -> Tensor:
        """Compute straight flight with mirror walls: fold the unbounded line back into the rectangle."""
        low = self.second_radius
        room = self._sides - 2 * low
        unfolded = start.second_position[:, None] - low + self._second_flight(start, num_frames)
        return low + room - (unfolded.remainder(2 * room) - room).abs()

    def _second_flight(self, start: WorldStart, num_frames: int) -> Tensor:
        """Compute how far the autonomous object has flown, `[B, T, 2]`, as if there were no walls."""
        velocity = start.second_velocity[:, None]
        if not self.second_turn_probability:
            return velocity * torch.arange(num_frames)[None, :, None]
        turns = torch.stack([self._turns(generator_for(seed, 3), num_frames) for seed in start.seeds])
        angle = torch.atan2(velocity[..., 1], velocity[..., 0]) + turns
        moves = velocity.norm(dim=-1, keepdim=True) * torch.stack([angle.cos(), angle.sin()], dim=-1)
        return torch.cat([torch.zeros_like(velocity), moves[:, : num_frames - 1].cumsum(dim=1)], dim=1)

    def _turns(self, random: torch.Generator, num_frames: int) -> Tensor:
        """Draw by what angle each frame's course differs from the first one, `[T]`; a longer video begins alike."""
        draws = torch.rand(num_frames, 2, generator=random)
        turned = draws[:, 0] < self.second_turn_probability
        return torch.where(turned, 2 * torch.pi * draws[:, 1], 0).cumsum(dim=0)

    def _paint_sprites(self, frames: Tensor, positions: Tensor, color: Tensor, shape: Shape) -> Tensor:
        return paint(frames, positions, color, self.sprite_radius, shape, self.shaded)


def draw_held_actions(
    random: torch.Generator, num_steps: int, hold_probability: float, still_probability: float, slowness: float
) -> Tensor:
    """Draw continuous action rows `[num_steps, 2]` in [-1, 1], see `MovingSpriteWorld` for the arguments."""
    fresh = 2 * torch.rand(num_steps, 2, generator=random) - 1
    fresh = fresh.sign() * fresh.abs() ** slowness
    rows = held_rows(num_steps, hold_probability, random)
    if still_probability:
        is_still = torch.rand(num_steps, 2, generator=random) < still_probability
        fresh = torch.where(is_still, 0, fresh)
    return fresh[rows]


def held_rows(num_steps: int, probability: float, random: torch.Generator) -> Tensor:
    """Draw which row each step takes, `[num_steps]`: that of the step before with some probability, else its own."""
    changes = torch.rand(num_steps, generator=random) >= probability
    last_change = torch.where(changes, torch.arange(num_steps), torch.zeros(num_steps, dtype=torch.long))
    return last_change.cummax(0).values if num_steps else last_change


def require_wordings(wordings: Sequence[str]) -> None:
    """Refuse prompts that nothing can be put into.

    Raises:
        ValueError: The list is empty, or a wording has other names in braces than `color`, `shape` and `word`.
    """
    if isinstance(wordings, str) or not wordings:
        raise ValueError(f"expected a list of wordings, got {wordings!r}")
    for wording in wordings:
        try:
            wording.replace("{word}", "").format(color="", shape="")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"a wording may name {{color}}, {{shape}} and {{word}} in braces and nothing else, got {wording!r}"
            ) from error


def _with_words(wording: str, random: torch.Generator) -> str:
    """Put a made-up word of six letters in place of each `{word}`."""
    first, *rest = wording.split("{word}")
    letters = torch.randint(len(ascii_lowercase), (len(rest), 6), generator=random).tolist()
    words = ("".join(ascii_lowercase[letter] for letter in word) for word in letters)
    return first + "".join(word + part for word, part in zip(words, rest, strict=True))
