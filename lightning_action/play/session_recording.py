"""A session as a LeRobot v3.0 folder, with what it takes to see the same again, bit for bit."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_action.atomic import write_json
from lightning_action.play.image_encoding import bytes_of_frames
from lightning_action.play.live_world import Stage
from lightning_action.recordings.lerobot_files import NumericFeature
from lightning_action.recordings.lerobot_writer import LeRobotWriter, require_writable_sizes, writing_lerobot
from lightning_action.weights.safetensors_files import read_safetensors, write_safetensors

_log = logging.getLogger(__name__)
CAMERA = "observation.image"
SESSION_FILE, ROWS_FILE, CONFIG_FILE = (
    "meta/play/session.json",
    "meta/play/actions.safetensors",
    "meta/play/config.yaml",
)
_FORMAT = 1
# Frames after which a recording ends, though the world goes on: half an hour at 16 a second, about.
MAX_FRAMES = 30_000


@dataclass
class RecordedEpisode:
    """A world from a reset to the next one.

    Args:
        seed: Seed of its start and of its noise.
        prompt: Prompt that it began under.
        prompts: Prompts that followed, by the number of the block from which on they held.
        hashes: SHA-256 of the frames that it began with, and of those of each block, in float32.
        rows: Action rows of each block, `[rows, columns]`.
        start: SHA-256 of the given frames before they are encoded; None where there are none, or it was not recorded.
    """

    seed: int
    prompt: str
    prompts: dict[int, str] = field(default_factory=dict)
    hashes: list[str] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    start: str | None = None


@dataclass(frozen=True)
class RecordedSession:
    """Session as `replay` needs it.

    Args:
        episodes: Worlds, one after another.
        provenance: Origin of the recording, as `Stage.provenance`.
        config: Configuration of the run, as YAML.
    """

    episodes: list[RecordedEpisode]
    provenance: Mapping[str, Any]
    config: str


def hash_frames(frames: Tensor) -> str:
    """Compute SHA-256 over frames, bit for bit."""
    values = frames.detach().float().cpu().contiguous()
    return hashlib.sha256(f"{list(values.shape)}\n".encode() + values.numpy().tobytes()).hexdigest()


def require_recordable(stage: Stage) -> None:
    """Refuse what a LeRobot folder does not hold, before anybody plays.

    Raises:
        ValueError: Frames are too small or odd, a second has no whole number of them, or a frame has several rows.
    """
    if stage.schema.rows_per_frame != 1:
        raise ValueError(
            f"a recording has one action row for a frame, this model takes {stage.schema.rows_per_frame}: leave "
            "--record out"
        )
    require_writable_sizes({CAMERA: stage.start(0).frame_size}, stage.fps)


def claim_folder(parent: Path) -> Path:
    """Make the next of the folders `001`, `002` and so on in a folder, which nobody else then takes."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        there = [int(path.name) for path in parent.iterdir() if path.name.isdecimal()]
        folder = parent / f"{max(there, default=0) + 1:03d}"
        with suppress(FileExistsError):
            folder.mkdir()
            return folder


class SessionRecording:
    """Writes a session while it is played; it appears when it ends, whole, and not at all without a block.

    Where something of it cannot be written, all of it is discarded.

    Frames and rows are paired as `record` pairs them: row k leads from frame k to k + 1 (`transition`), or is that of
    frame k. The last frame of a `transition` has no row, and is left out. The task of a frame is the prompt that it was
    made under; the frames that a world begins with have that of its first block.

    Args:
        new_folder: Function that gives a folder which is empty or not there, called when there is a block.
        stage: Stage that is played.
        config: Configuration of the run, as YAML.
    """

    def __init__(self, new_folder: Callable[[], Path], stage: Stage, config: str) -> None:
        self._new_folder, self._stage, self._config = new_folder, stage, config
        self._folder: Path | None = None
        self._open = ExitStack()
        self._writer: LeRobotWriter | None = None
        self._episodes: list[RecordedEpisode] = []
        self._episode = RecordedEpisode(0, "")
        self._tasks: list[str] = []
        self._last: Tensor | None = None
        self._given: Tensor | None = None
        self._last_task = ""
        self._num_frames = 0
        self.is_over = False

    def begin(self, seed: int, prompt: str, frames: Tensor, given: Tensor | None) -> None:
        """See a world begin with frames `[T0, 3, H, W]` in [0, 1]; it counts from its first block on."""
        with self._whole_or_discarded():
            self._end_episode()
        self._last, self._tasks = frames[-1:] if len(frames) else None, []
        self._given = given
        self._episode = RecordedEpisode(seed, prompt, hashes=[hash_frames(frames)])

    def prompt(self, text: str) -> None:
        """See the prompt change before the next block."""
        if not self.is_over:
            self._episode.prompts[len(self._episode.rows)] = text

    def step(self, rows: Tensor, frames: Tensor) -> None:
        """See the rows `[rows, columns]` of a block, and the frames `[t, 3, H, W]` that they led to."""
        if self.is_over:
            return
        pairs = self._pairs(rows, frames)
        task = [self._episode.prompt, *self._episode.prompts.values()][-1]
        with self._whole_or_discarded():
            writer = self._begun(frames)
            for frame, row in pairs:
                writer.add_frame({CAMERA: frame}, {"action": row})
        if not self._episode.rows:
            # Not before, when somebody waits for the world to begin.
            self._episode.start = None if self._given is None else hash_frames(self._given)
            self._given = None
            self._episodes.append(self._episode)
        self._episode.rows.append(rows.clone())
        self._episode.hashes.append(hash_frames(frames))
        # The first frame of a `transition` is the last one of the block before, if there is one.
        is_carried = bool(self._tasks) and self._stage.schema.alignment == "transition"
        self._tasks += [self._last_task if is_carried else task, *[task] * (len(pairs) - 1)]
        self._num_frames += len(pairs)
        self._last, self._last_task = frames[-1:], task
        self.is_over = self._num_frames >= MAX_FRAMES
        if self.is_over:
            _log.warning("a recording has %d frames and ends; its world goes on: %s", MAX_FRAMES, self._folder)

    def close(self) -> None:
        """End the last world, and let the folder appear."""
        with self._open:
            if self._writer is None:
                return
            folder = self._writer.folder
            self._end_episode()
            session = {"format": _FORMAT, "provenance": self._stage.provenance, "episodes": self._told()}
            write_json(folder / SESSION_FILE, session)
            (folder / CONFIG_FILE).write_text(self._config, encoding="utf-8")
            rows = {f"{number:06d}": torch.cat(each.rows) for number, each in enumerate(self._episodes)}
            write_safetensors(folder / ROWS_FILE, rows, {})
        _log.warning("recorded %s", self._folder)

    @contextmanager
    def _whole_or_discarded(self) -> Iterator[None]:
        """Keep nothing of a recording of which something cannot be written: it would be taken for a whole one."""
        try:
            yield
        except BaseException:
            _log.warning("a recording cannot be written and is discarded: %s", self._folder)
            self.is_over, self._writer = True, None
            with self._open:
                raise

    def _begun(self, frames: Tensor) -> LeRobotWriter:
        if self._writer is None:
            self._folder = self._new_folder()
            self._open.callback(_remove_if_empty, self._folder)
            size = int(frames.shape[-2]), int(frames.shape[-1])
            features = {"action": NumericFeature(self._stage.schema.column_names)}
            self._writer = self._open.enter_context(
                writing_lerobot(self._folder, int(self._stage.fps), {CAMERA: size}, features, "lightning_action play")
            )
        return self._writer

    def _pairs(self, rows: Tensor, frames: Tensor) -> list[tuple[np.ndarray, list[float]]]:
        """Pair each frame with its row; rows of latent frames are those of all their pixel frames."""
        if self._stage.schema.alignment == "transition":
            frames = frames[:-1] if self._last is None else torch.cat([self._last, frames[:-1]])
        elif self._stage.schema.alignment == "per_latent":
            counts = torch.full((len(rows),), self._stage.schema.temporal_compression_ratio)
            if self._last is None:
                counts[0] = 1  # the first latent frame of a world is a single pixel frame
            rows = rows.repeat_interleave(counts, dim=0)
        return list(zip(bytes_of_frames(frames), rows.tolist(), strict=True))

    def _end_episode(self) -> None:
        if self._writer is not None and self._episode.rows:
            self._writer.end_episode(self._tasks)

    def _told(self) -> list[dict[str, Any]]:
        """Entries that JSON holds of the episodes; the rows stand in a file of their own."""
        names = ("seed", "prompt", "prompts", "hashes", "start")
        return [
            {**{name: getattr(each, name) for name in names}, "blocks": list(map(len, each.rows))}
            for each in self._episodes
        ]


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def read_session(folder: Path) -> RecordedSession:
    """Read what `SessionRecording` has written beside the videos.

    Raises:
        FileNotFoundError: The folder is no recorded session.
        ValueError: A file of it is damaged, or of another version.
    """
    for name in (SESSION_FILE, ROWS_FILE, CONFIG_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is no recorded session ({name} is missing): name a folder of --record")
    try:
        told = json.loads((folder / SESSION_FILE).read_text(encoding="utf-8"))
        if told["format"] != _FORMAT:
            raise ValueError(f"its format is {told['format']!r}, expected {_FORMAT}")
        if not told["episodes"]:
            raise ValueError("it has no worlds")
        rows = read_safetensors(folder / ROWS_FILE)
        episodes = [_episode(each, rows[f"{number:06d}"]) for number, each in enumerate(told["episodes"])]
        config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        return RecordedSession(episodes, dict(told["provenance"]), config)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{folder} is no whole recorded session: {' '.join(str(error).split())}") from error


def _episode(told: Mapping[str, Any], rows: Tensor) -> RecordedEpisode:
    blocks = rows.split([int(length) for length in told["blocks"]])
    prompts = {int(number): str(text) for number, text in told["prompts"].items()}
    hashes = [str(each) for each in told["hashes"]]
    if len(hashes) != len(blocks) + 1:
        raise ValueError(f"{len(blocks)} blocks have {len(hashes)} hashes, expected {len(blocks) + 1}")
    start = told.get("start")
    return RecordedEpisode(int(told["seed"]), str(told["prompt"]), prompts, hashes, list(blocks), start)
