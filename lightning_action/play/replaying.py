"""A recorded session, played again, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from torch import Tensor

from lightning_action.play.live_world import LiveWorld, RefusedWishError, Stage
from lightning_action.play.session_recording import RecordedEpisode, RecordedSession, hash_frames
from lightning_action.weights.tensor_files import flattened


@dataclass(frozen=True)
class Replayed:
    """Result of a replay.

    Args:
        num_blocks: Number of blocks that were equal.
        num_frames: Number of their frames.
        differs: First place that differs; None where all is equal.
        changes: Differences from the recording by their names: the value then, and the value now.
        refused: Reason why that place cannot be played now; None where it can.
    """

    num_blocks: int
    num_frames: int
    differs: str | None
    changes: Mapping[str, tuple[Any, Any]]
    refused: str | None = None


class _LastHash:
    """An observer that hashes what it sees, and where the world began."""

    is_over = False

    def __init__(self) -> None:
        self.value, self.num_frames = "", 0
        self.start: str | None = None
        self.refused: str | None = None

    def begin(self, seed: int, prompt: str, frames: Tensor, given: Tensor | None) -> None:
        self.value, self.start = hash_frames(frames), None if given is None else hash_frames(given)

    def step(self, rows: Tensor, frames: Tensor) -> None:
        self.value, self.num_frames = hash_frames(frames), self.num_frames + len(frames)

    def prompt(self, text: str) -> None:
        """Prompts are seen in what follows."""

    def close(self) -> None:
        """Keep nothing."""


def replay(session: RecordedSession, stage: Stage, progress: Callable[[], object] = lambda: None) -> Replayed:
    """Play a session again, up to the first block that differs.

    Args:
        session: The recording.
        stage: Stage that it is played on.
        progress: Function that is called after each block.
    """
    seen, num_blocks, num_frames = _LastHash(), 0, 0
    changes = changed(session.provenance, stage.provenance)
    world = LiveWorld(stage, seen)
    try:
        for number, episode in enumerate(session.episodes):
            for (place, found), expected in zip(_play(world, seen, episode), episode.hashes, strict=True):
                if place == _START and episode.start not in (None, seen.start):
                    changes[f"data: start of world {number}"] = episode.start, seen.start
                if found != expected:
                    return Replayed(num_blocks, num_frames, f"{place} of world {number}", changes, seen.refused)
                num_blocks, num_frames = num_blocks + (place != _START), seen.num_frames
                progress()
    finally:
        world.close()
    return Replayed(num_blocks, num_frames, None, changes)


_START = "the first frames"


def _play(world: LiveWorld, seen: _LastHash, episode: RecordedEpisode) -> Iterator[tuple[str, str | None]]:
    """Play an episode, and name each place with the hash of what was seen there; None where something does not fit."""
    place = _START
    try:
        world.reset(episode.seed, episode.prompt)
        yield place, seen.value
        for number, rows in enumerate(episode.rows):
            place = f"block {number + 1}"
            if number in episode.prompts:
                world.prompt(episode.prompts[number])
            if len(rows) != world.rows_wanted:
                yield place, None
            world.step_rows(rows)
            world.write_pending()
            yield place, seen.value
    except RefusedWishError as error:
        seen.refused = str(error.__cause__)
        yield place, None


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name what is another now. What only one of both knows is left out: other versions tell less, or more."""
    return {name: (value, now[name]) for name, value in then.items() if name in now and now[name] != value}


def changed_settings(then: str, now: str) -> dict[str, tuple[Any, Any]]:
    """Name the settings of the model and its data that are others now, by their dotted names.

    Args:
        then: Configuration as it was recorded, in YAML.
        now: Configuration as it is now. Settings that are null are written in neither.
    """
    before, after = _settings(then), _settings(now)
    return {name: (before.get(name), after.get(name)) for name in before | after if before.get(name) != after.get(name)}


# The others are about the trainer and the folders of a run, or in the provenance as what became of them.
_SECTIONS = ("seed_everything", "model", "data", "split", "window")


def _settings(config: str) -> dict[str, Any]:
    return {name: value for name, value in flattened(yaml.safe_load(config)) if name.partition(".")[0] in _SECTIONS}
