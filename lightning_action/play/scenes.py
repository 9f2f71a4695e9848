"""Beginnings of the worlds of a run: the samples of its data, with the simulator beside them where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_action.batch import from_unit_range, to_unit_range
from lightning_action.data.clip_encoding import ClipData
from lightning_action.data.environment import EnvironmentDataModule
from lightning_action.data.split_data import Locator, Split
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.world import World
from lightning_action.play.live_world import ReferenceSimulator, Start
from lightning_action.play.starts import starts_of_data


class SimulatedTruth:
    """A simulated world that goes where actions lead, for ever.

    Args:
        world: Simulator.
        start: The world at pixel frame 0, one wide, as `world.start` gives it.
    """

    def __init__(self, world: World, start: Any) -> None:
        self._world, self._start = world, start
        self._path: Tensor = start.position[:, None]
        self._num_frames = 1

    def go_on(self, rows: Tensor) -> Tensor:
        """Play action rows `[t, columns]`: frames `[t, 3, H, W]` in [0, 1]."""
        path = self._world.go_on(self._path, rows[None].cpu())
        video = self._world.render(self._start, path, self._num_frames)
        self._path = torch.cat([self._path, path], dim=1)[:, -2:]
        self._num_frames += len(rows)
        return to_unit_range(video)[0]

    def distance(self, frames: Tensor) -> float | None:
        """Measure how far, in pixels, frames `[t, 3, H, W]` in [0, 1] end from the truth; None if it is not seen."""
        place = self.locate(frames)
        return None if place is None else math.dist(place, self._path[0, -1].tolist())

    def locate(self, frames: Tensor) -> tuple[float, float] | None:
        """Find x and y, in pixels, where the last of frames `[t, 3, H, W]` in [0, 1] shows the object, or None."""
        places, found = self._world.locate(self._start, from_unit_range(frames[None, -1:].cpu().float()))
        if not bool(found):
            return None
        x, y = places[0, 0].tolist()
        return x, y


class EnvironmentTruth:
    """The episode of a sample under other actions; where it has ended, its last frame stays, and nothing is measured.

    Args:
        episode: Steered episode, as `EnvironmentDataset.steer` gives it.
        locator: Function that finds the object in videos; None measures no distance.
    """

    def __init__(self, episode: Generator[np.ndarray, np.ndarray, None], locator: Locator | None) -> None:
        self._episode, self._locator = episode, locator
        self._frame, self._has_ended = next(episode), False

    def go_on(self, rows: Tensor) -> Tensor:
        """Play action rows `[t, columns]`: frames `[t, 3, H, W]` in [0, 1]."""
        frames = []
        for row in rows.cpu().numpy():
            try:
                self._frame = self._episode.send(row)
            except StopIteration:
                self._has_ended = True
            frames.append(self._frame)
        return _in_unit_range(frames)

    def distance(self, frames: Tensor) -> float | None:
        """Measure how far, in pixels, frames `[t, 3, H, W]` in [0, 1] end from the truth; None if one is not seen."""
        if self._locator is None or self._has_ended:
            return None
        pair = torch.stack([frames[-1:].cpu().float(), _in_unit_range([self._frame])])
        places, found = self._locator(from_unit_range(pair))
        return math.dist(*places[:, 0].tolist()) if bool(found.all()) else None


def _in_unit_range(frames: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255


def scenes_of(
    data: object, split: Split, num_initial_latents: int, temporal_compression_ratio: int
) -> Callable[[int], Start]:
    """Find where worlds begin.

    Args:
        data: Data of a run, which has been set up.
        split: Samples that worlds begin at: seed i at sample i, and from the first one on again behind the last.
        num_initial_latents: Number of latent frames that are given.
        temporal_compression_ratio: Number of pixel frames of one.

    Raises:
        ValueError: The data offers no clips.
    """
    start_of = starts_of_data(data, split, max(num_initial_latents, 1), temporal_compression_ratio)
    reading = Lock()  # worlds begin in threads of their own, and data such as an environment serves one at a time

    def start(seed: int) -> Start:
        with reading:
            frames, prompt = start_of(seed)
            truth = truth_of(data, split, seed) if num_initial_latents == 1 else None
        height, width = frames.shape[-2:]
        return Start(prompt, (height, width), frames[None] if num_initial_latents else None, truth)

    return start


def frames_per_second(data: object, split: Split) -> float:
    """Return how many frames of a second the clips of data have that `scenes_of` takes."""
    assert isinstance(data, ClipData)
    return data.clips(split)[0].fps


def truth_of(data: object, split: Split, seed: int) -> ReferenceSimulator | None:
    """Return the simulator of a world, at its first frame; None where nobody can play it again step by step."""
    if isinstance(data, EnvironmentDataModule) and data.can_simulate(split):
        return EnvironmentTruth(data.episodes(split).steer(seed % data.sizes[split]), data.locator)
    if not isinstance(data, SpriteDataModule):
        return None
    index = seed % len(data.dataset(split))
    return SimulatedTruth(data.world, data.world.start(data.dataset(split).seeds([index])))
