"""A recorded session, played again, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_action.play.live_world import LiveWorld, Stage
from lightning_action.play.recording import RecordedEpisode, RecordedSession, hash_frames


@dataclass(frozen=True)
class Replayed:
    """What came of a replay.

    Args:
        num_blocks: Number of blocks that were equal.
        num_frames: Number of their frames.
        differs: First place that differs; None where all is equal.
        changes: What is another than at the recording, by its name: the value then, and the value now.
    """

    num_blocks: int
    num_frames: int
    differs: str | None
    changes: Mapping[str, tuple[Any, Any]]


class _LastHash:
    """An observer that hashes what it sees."""

    def __init__(self) -> None:
        self.value, self.num_frames = "", 0

    def begin(self, seed: int, prompt: str, frames: Tensor) -> None:
        self.value = hash_frames(frames)

    def step(self, rows: Tensor, frames: Tensor) -> None:
        self.value, self.num_frames = hash_frames(frames), self.num_frames + len(frames)

    def prompt(self, text: str) -> None:
        """Prompts are seen in what follows."""

    def close(self) -> None:
        """Nothing is kept."""


def replay(session: RecordedSession, stage: Stage, progress: Callable[[], object] = lambda: None) -> Replayed:
    """Play a session again, up to the first block that differs.

    Args:
        session: The recording.
        stage: What it is played on.
        progress: Function that is called after each block.
    """
    seen, num_blocks, num_frames = _LastHash(), 0, 0
    changes = changed(session.provenance, stage.provenance)
    world = LiveWorld(stage, seen)
    try:
        for number, episode in enumerate(session.episodes):
            for place, expected in zip(_play(world, episode), episode.hashes, strict=True):
                if seen.value != expected:
                    return Replayed(num_blocks, num_frames, f"{place} of world {number}", changes)
                num_blocks, num_frames = num_blocks + (place != _START), seen.num_frames
                progress()
    finally:
        world.close()
    return Replayed(num_blocks, num_frames, None, changes)


_START = "the first frames"


def _play(world: LiveWorld, episode: RecordedEpisode) -> Iterator[str]:
    """Play an episode, and name each place when it was seen."""
    world.reset(episode.seed, episode.prompt)
    yield _START
    for number, rows in enumerate(episode.rows):
        if number in episode.prompts:
            world.prompt(episode.prompts[number])
        world.step_rows(rows)
        world.write_pending()
        yield f"block {number + 1}"


def changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Name what is another now, or is there only then or only now."""
    names = [*then, *(name for name in now if name not in then)]
    return {name: (then.get(name), now.get(name)) for name in names if then.get(name) != now.get(name)}
