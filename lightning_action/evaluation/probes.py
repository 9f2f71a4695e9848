"""Further rollouts of a few samples, under actions that are made to show one thing each."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import (
    Batch,
    acting,
    after_start,
    bytes_of_unit_range,
    choose_samples,
    samples_without_action,
)
from lightning_action.evaluation.known_state import ReadPositions, Simulate
from lightning_action.evaluation.metrics.action_following import hold_last_found
from lightning_action.evaluation.metrics.controllability import Controllability
from lightning_action.evaluation.metrics.flow import path_by_flow
from lightning_action.evaluation.metrics.guidance_response import GuidanceResponse
from lightning_action.evaluation.metrics.held_actions import FRACTIONS, HeldActions
from lightning_action.evaluation.metrics.inverse_dynamics_model import shrunk
from lightning_action.evaluation.metrics.round_trip import RoundTrip

Generate = Callable[[Batch, float | None, int], Tensor]
"""Function from a batch, a scale of action guidance (None for the model's own) and the number of a draw of noise (0 for
that of the samples) to videos `[B, T, 3, H, W]` in [0, 1]."""

SCALES = (0.0, 1.0, 1.5, 2.0)
NUM_SAMPLES = 8
NUM_PICTURES = 4
NUM_STARTS, NUM_NOISES = 4, 3
# How near a simulator must come to its start, in pixels, that the opposite actions count as undoing the first ones.
_COMES_BACK = 0.5
# Longest side of the last frame where its pixels stand for the state that nobody knows.
_SMALL_SIDE = 32


@dataclass(frozen=True)
class HeldAction:
    """An action row that is held.

    Args:
        name: Column and value, as pictures name it.
        row: Values of all columns.
        is_shown: True if its videos are kept as pictures.
    """

    name: str
    row: Tensor
    is_shown: bool


class Probes(nn.Module):
    """Runs a model under held actions, there and back, and with other guidance, always with the noise of the samples.

    Under the actions of a few samples it runs with other noise, too, which tells what actions decide from what chance
    does. The figures are among those of an `Evaluator` that was given the probes.

    Those of the samples are taken whose object starts nearest to the middle of where it is in all of them: far from
    walls. Where nobody knows positions, the first ones are, and flow tells how far things go, see `path_by_flow`.

    Args:
        generate: Model, see `Generate`.
        true_video: Function from a batch to its own video, `[B, T, 3, H, W]` in [0, 1]; asked where positions are not
            known.
        read_positions: Reader of positions; None where nobody knows them.
        simulate: Player of a batch's actions; without it there are no round trips and no held actions, for nothing says
            what these should show.
        schema: Meaning of the actions.
        num_initial_frames: Number of pixel frames that are given, not generated.
        num_initial_rows: Number of action rows that belong to them.
    """

    def __init__(
        self,
        generate: Generate,
        true_video: Callable[[Batch], Tensor],
        read_positions: ReadPositions | None,
        simulate: Simulate | None,
        schema: ActionSchema,
        num_initial_frames: int,
        num_initial_rows: int,
    ) -> None:
        super().__init__()
        self._generate, self._true_video = generate, true_video
        self._read_positions, self._simulate = read_positions, simulate
        self.schema = schema
        self.start, self.num_initial_rows = num_initial_frames - 1, num_initial_rows
        self.guidance = GuidanceResponse(SCALES, schema.temporal_compression_ratio)
        self.controllability = Controllability()
        self.round_trip = RoundTrip()
        self.held = HeldActions()
        self.pictures: dict[str, Tensor] = {}

    def add(self, batch: Batch) -> None:
        """Probe a few samples of a batch, which has `position` `[B, T, 2]` where positions are known."""
        self.to(batch["action"].device)
        if self._read_positions is None or "position" not in batch:
            self._add_of_unknown_state(batch)
            return
        few, batch_size = choose_samples(batch, self._nearest_to_middle(batch["position"])), len(batch["sample_id"])
        self._add_guidance(few, partial(self._path, batch=few), few["position"])
        self._add_controllability(few, lambda video, batch: self._path(video, batch)[:, -1], batch_size)
        if self._simulate is not None:
            self._add_round_trip(few, self._simulate)
            if bool(zero_and_reach(self.schema)[1].any()):
                self._add_held_actions(few, self._simulate, batch_size)

    def _add_of_unknown_state(self, batch: Batch) -> None:
        without = samples_without_action(batch)
        idle = torch.zeros(len(batch["sample_id"])) if without is None else without
        # Every rank generates, also one whose samples have no actions, which tell nothing.
        few = choose_samples(batch, idle.int().argsort(stable=True)[:NUM_STARTS].tolist())
        truth = self._true_video(few)
        self._add_guidance(few, partial(path_by_flow, truth=truth), path_by_flow(truth, truth), acting(few))
        self._add_controllability(few, last_frame, len(idle))

    def _nearest_to_middle(self, positions: Tensor) -> list[int]:
        low, high = positions.flatten(end_dim=1).aminmax(dim=0)
        return (positions[:, self.start] - (low + high) / 2).norm(dim=-1).argsort().tolist()[:NUM_SAMPLES]

    def _add_guidance(
        self, few: Batch, path: Callable[[Tensor], Tensor], target: Tensor, acts: slice | Tensor = slice(None)
    ) -> None:
        paths = [path(self._generate(few, scale, 0)).to(target) for scale in SCALES]
        moved = torch.stack(paths, dim=1)[:, :, self.start :]
        self.guidance.update_named(few["sample_id"][acts], moved[acts], target[:, self.start :][acts])

    def _add_controllability(self, few: Batch, feature: Callable[[Tensor, Batch], Tensor], batch_size: int) -> None:
        """Run a few starts under the actions of each, with several draws of noise: how does the video end?"""
        count = min(NUM_STARTS, len(few["sample_id"]), math.isqrt(batch_size))
        if count < 2:
            return
        pairs = list(product(range(count), repeat=2))
        batch = choose_samples(few, [start for start, _ in pairs])
        rows = few["action"][[owner for _, owner in pairs]]
        batch["action"] = after_start(batch["action"], rows, self.num_initial_rows)
        ends = [feature(self._generate(batch, None, draw), batch) for draw in range(NUM_NOISES)]
        by_actions = torch.stack(ends, dim=1).unflatten(0, (count, count)).to(batch["action"].device)
        self.controllability.update_named(few["sample_id"][:count], by_actions)

    def _add_round_trip(self, few: Batch, simulate: Simulate) -> None:
        action = there_and_back(self.schema, few["action"], self.num_initial_rows)
        if action is None:
            return
        trip = {**few, "action": action}
        end = self.start + (action.shape[1] - self.num_initial_rows) // 2 * 2
        positions = simulate(trip)[1]
        video = self._generate(trip, None, 0)
        comes_back = ((positions[:, end] - positions[:, self.start]).norm(dim=-1) < _COMES_BACK).to(video.device)
        names = few["sample_id"].to(video.device)[comes_back]
        self.round_trip.update_named(names, video[comes_back, self.start : end + 1])

    def _add_held_actions(self, few: Batch, simulate: Simulate, batch_size: int) -> None:
        """Run all held actions over all samples, as many videos at once as a batch has."""
        actions, count = held_actions(self.schema, FRACTIONS), len(few["sample_id"])
        pairs = list(product(actions, range(count)))
        moved, should_move, shown = [], [], defaultdict(list)
        for first in range(0, len(pairs), batch_size):
            part = pairs[first : first + batch_size]
            batch = choose_samples(few, [sample for _, sample in part])
            rows = torch.stack([action.row for action, _ in part]).to(batch["action"])
            batch["action"] = after_start(
                batch["action"], rows[:, None].expand_as(batch["action"]), self.num_initial_rows
            )
            video = self._generate(batch, None, 0)
            moved.append(self._displacement(self._path(video, batch), few))
            should_move.append(self._displacement(simulate(batch)[1], few))
            for (action, sample), each in zip(part, video, strict=True):
                if action.is_shown and sample < NUM_PICTURES:
                    shown[f"held {action.name}"].append(bytes_of_unit_range(each).cpu())
        self.pictures |= {name: torch.stack(videos) for name, videos in shown.items()}
        by_action = [torch.cat(each).unflatten(0, (len(actions), count)) for each in (moved, should_move)]
        (still, *_), (should_be, *_) = by_action
        sizes = [each[1:].unflatten(0, (len(FRACTIONS), -1)).movedim(2, 0) for each in by_action]
        self.held.update_named(few["sample_id"], sizes[0], sizes[1], still - should_be)

    def _displacement(self, path: Tensor, few: Batch) -> Tensor:
        return (path[:, -1] - path[:, self.start]).to(few["position"])

    def _path(self, video: Tensor, batch: Batch) -> Tensor:
        assert self._read_positions is not None
        return hold_last_found(*self._read_positions(video, batch))


def held_actions(schema: ActionSchema, fractions: Sequence[float]) -> list[HeldAction]:
    """List zero, and then, by size, each continuous column in both directions.

    Zero is the middle between low and high of continuous columns, and 0 of others, as which these stay.

    Args:
        schema: Meaning of the actions.
        fractions: Sizes, as fractions of the way from zero to the largest value; the last one is shown.
    """
    zero, reach = zero_and_reach(schema)
    columns = schema.column_names
    found = [HeldAction("zero", zero, True)]
    for fraction in fractions:
        for column in reach.nonzero().flatten().tolist():
            for value in (fraction * reach[column], -fraction * reach[column]):
                row = zero.clone()
                row[column] += value
                found.append(HeldAction(f"{columns[column]} {row[column]:+.3g}", row, fraction == fractions[-1]))
    return found


def there_and_back(schema: ActionSchema, action: Tensor, num_initial_rows: int) -> Tensor | None:
    """Play half as large actions for half of the time, then their opposites `low + high - a` in reverse order.

    Half as large, so that walls are met less. A row that is left over is zero.

    Args:
        schema: Meaning of the actions.
        action: Rows to begin with, `[B, rows, columns]`.
        num_initial_rows: Number of rows that belong to given frames, and stay.

    Returns:
        Rows of the same shape; None where a column has no opposite, a row is not that of one pixel frame, or there are
        fewer than two.
    """
    one_a_frame = schema.alignment != "per_latent" and schema.rows_per_frame == 1
    if not one_a_frame or any(part.kind != "continuous" for part in schema.parts):
        return None
    zero = zero_and_reach(schema)[0].to(action)
    half = (action.shape[1] - num_initial_rows) // 2
    if half == 0:
        return None
    there = (action[:, num_initial_rows : num_initial_rows + half] - zero) / 2
    trip = zero.expand_as(action).clone()
    trip[:, num_initial_rows : num_initial_rows + 2 * half] += torch.cat([there, -there.flip(1)], dim=1)
    return after_start(action, trip, num_initial_rows)


def zero_and_reach(schema: ActionSchema) -> tuple[Tensor, Tensor]:
    """Find the zero action, and how far from it the largest value of each continuous column is; `[columns]` each."""
    zero, reach = [], []
    for part in schema.parts:
        continuous = part.kind == "continuous"
        low, high = (torch.as_tensor(bound, dtype=torch.float32).expand(part.size) for bound in (part.low, part.high))
        none = torch.zeros(part.num_columns)
        zero.append((low + high) / 2 if continuous else none)
        reach.append((high - low) / 2 if continuous else none)
    return torch.cat(zero), torch.cat(reach)


def last_frame(video: Tensor, batch: Batch) -> Tensor:
    """Give the pixels of the last frames of videos, made small, `[B, D]`."""
    return shrunk(video[:, -1:].float(), _SMALL_SIDE).flatten(1)
