"""The true videos that others are compared with: files, or samples of a DataModule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lightning_action.assembly import HasActionSchema
from lightning_action.batch import (
    Batch,
    after_start,
    from_unit_range,
    num_latent_frames,
    samples_without_action,
    to_unit_range,
)
from lightning_action.cli.support.data_section import build_data, load_samples
from lightning_action.cli.video_inputs import ACTIONS, Inputs, VideoOptions
from lightning_action.data.split_data import SampleDataset
from lightning_action.evaluation.evaluator import Seen
from lightning_action.evaluation.given_videos import GivenEpisodes
from lightning_action.evaluation.known_state import position_reader, simulator
from lightning_action.evaluation.metrics.action_following import hold_last_found
from lightning_action.evaluation.metrics.color_locator import ColorLocator
from lightning_action.evaluation.report.provenance import data_fingerprint
from lightning_action.recordings.episode_files import numbers_of, require_same_names

# Wan's, and most others'.
_RATIO = 4


class FileSource:
    """Episodes of which the true videos are files, one by one.

    Args:
        options: Options that say what is compared.
        inputs: Files of all episodes.
    """

    kind = "files"

    def __init__(self, options: VideoOptions, inputs: Inputs) -> None:
        self.inputs = inputs
        first = inputs.videos["truth"][inputs.names[0]]
        self._size = first.frame_size
        inputs.require_size((first.num_frames, *first.frame_size))
        self.ratio = options.temporal_compression_ratio or _RATIO
        require_long_enough(first.num_frames, options.num_initial_frames, self.ratio)
        require_rows(inputs)
        require_rows_of_frames(inputs, first.num_frames, self.ratio)
        locator = None if options.object_color is None else ColorLocator(options.object_color)
        self._find = None if locator is None else lambda video: locator(from_unit_range(video))
        self.fingerprint = data_fingerprint(
            {"video": from_unit_range(self._truth([inputs.names[0]]).video), "sample_id": [0]}
        )

    def __len__(self) -> int:
        return len(self.inputs.names)

    def __iter__(self) -> Iterator[GivenEpisodes]:
        for index, name in enumerate(self.inputs.names):
            read = partial(self.inputs.read, names=[name], size=self._size)
            own, true_other = read("videos"), read("other_truth")
            assert own is not None
            yield GivenEpisodes(
                torch.tensor([self.inputs.numbers.get(name, index)]),
                self._truth([name]),
                own,
                read("other"),
                read("null"),
                None if true_other is None else self._see(true_other, self.inputs.videos["other_truth"][name].path),
                self._find,
                self._rows("actions", name),
                self._rows("other_actions", name),
            )

    def _rows(self, kind: str, name: str) -> Tensor | None:
        tables = self.inputs.actions.get(kind)
        return None if tables is None else tables[name][None]

    def _truth(self, names: list[str]) -> Seen:
        video = self.inputs.read("truth", names, self._size)
        assert video is not None
        return self._see(video, self.inputs.videos["truth"][names[0]].path)

    def _see(self, video: Tensor, path: Path) -> Seen:
        if self._find is None:
            return Seen(video)
        positions, found = self._find(video)
        if not bool(found.any()):
            raise ValueError(
                f"{path} is a true video, and nothing in it has the --object_color: give the colour of the object, as "
                "a picture has it, or leave it out where no object has a hue of its own"
            )
        return Seen(video, hold_last_found(positions, found))


class DataSource:
    """Episodes of which the true videos are samples of a DataModule, in its batches.

    Args:
        options: Options that say what is compared.
        inputs: Files of all episodes.
    """

    def __init__(self, options: VideoOptions, inputs: Inputs) -> None:
        self.inputs = inputs
        data = build_data(options.config, options.settings, options.allow)
        split = options.split or "test"
        self.kind, self._loader = type(data).__name__, load_samples(data, split)
        self._reader, self._simulate = position_reader(data, split), simulator(data, split)
        self._others = dict(previous_actions(data.dataset(split)))
        self._names = names_by_number(options.videos, split, inputs, self._others)
        first: Batch = next(iter(self._loader))
        if "video" not in first:
            raise ValueError(f"{self.kind} has no `video` to compare with: give the data that was encoded")
        num_frames, _, height, width = first["video"].shape[1:]
        inputs.require_size((num_frames, height, width))
        require_rows(inputs, None if first["action"] is None else first["action"].shape[1:])
        self.fingerprint = data_fingerprint(first)
        self.schema = schema = data.action_schema if isinstance(data, HasActionSchema) else None
        ratio = _RATIO if schema is None else schema.temporal_compression_ratio
        self.ratio = options.temporal_compression_ratio or ratio
        require_long_enough(num_frames, options.num_initial_frames, self.ratio)
        given = num_latent_frames(options.num_initial_frames, ratio)
        self._num_initial_rows = 0 if schema is None else schema.num_rows(given)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[GivenEpisodes]:
        for batch in self._loader:
            names = [self._names[number] for number in batch["sample_id"].tolist()]
            size = batch["video"].shape[-2:]
            read = partial(self.inputs.read, names=names, size=(size[0], size[1]))
            own, other = read("videos"), read("other")
            assert own is not None
            yield GivenEpisodes(
                batch["sample_id"],
                Seen(to_unit_range(batch["video"]), batch.get("position")),
                own,
                other,
                read("null"),
                None if other is None else self._true_other(batch, names, read("other_truth")),
                self._reader_of(batch),
                _with_nan(batch),
                None if other is None or batch["action"] is None else self._other_rows(batch, names),
            )

    def _reader_of(self, batch: Batch) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        reader = self._reader
        return None if reader is None or "position" not in batch else lambda video: reader(video, batch)

    def _true_other(self, batch: Batch, names: list[str], given: Tensor | None) -> Seen | None:
        """Find what other actions show: from files, else as the simulator plays it."""
        if given is not None:
            reader = self._reader_of(batch)
            return Seen(given) if reader is None else Seen(given, hold_last_found(*reader(given)))
        if self._simulate is None:
            return None
        return Seen(*self._simulate({**batch, "action": self._other_rows(batch, names)}))

    def _other_rows(self, batch: Batch, names: list[str]) -> Tensor:
        """Rows of the other actions, `[B, rows, columns]`: as files have them, else of the sample before."""
        own, tables = batch["action"], self.inputs.actions.get("other_actions")
        rows = [self._others[number] for number in batch["sample_id"].tolist()]
        if tables is not None:
            rows = [tables[name] for name in names]
        other = torch.stack([torch.full_like(own[0], math.nan) if each is None else each for each in rows])
        return after_start(own, other.to(own), self._num_initial_rows)


def _with_nan(batch: Batch) -> Tensor | None:
    """Actions of a batch, NaN in place of those that a sample does not have."""
    action: Tensor | None = batch["action"]
    without = samples_without_action(batch)
    if action is None or without is None:
        return action
    return action.float().masked_fill(without[:, None, None], math.nan)


def names_by_number(folder: Path, split: str, inputs: Inputs, wanted: Iterable[int]) -> dict[int, str]:
    """Find the video of each sample of a split of the data.

    Raises:
        ValueError: A sample has no video, or a video is of no sample.
    """
    numbers = inputs.numbers or numbers_of(inputs.names)
    names = {number: name for name, number in numbers.items()}
    try:
        require_same_names(folder, names, wanted)
    except ValueError as error:
        raise ValueError(
            f"{error}. Expected a video of each {split} sample, whose sample_id is the last number in its name "
            f"(--data.{split}_size=N says that there are N)"
        ) from error
    return names


def previous_actions(dataset: SampleDataset) -> Iterator[tuple[int, Tensor]]:
    """Pair each sample's number with the actions of the sample before; the first has those of the last.

    One that is alone has its own backwards, as `batch.other_actions` says.
    """
    commands = [dataset.command(index) for index in range(len(dataset))]
    for index, command in enumerate(commands):
        other = commands[index - 1]["action"]
        yield int(command["sample_id"]), other.flip(0) if len(commands) == 1 and other is not None else other


def require_long_enough(num_frames: int, num_initial_frames: int, ratio: int) -> None:
    """Refuse videos of which nothing is generated, or less than a latent frame.

    Raises:
        ValueError: The videos have fewer frames than the given ones and one latent frame.
    """
    if num_frames < num_initial_frames + ratio:
        raise ValueError(
            f"of {num_frames} frames {num_initial_frames} are given, so that fewer than {ratio} are generated, over "
            "which displacements are taken: lower --num_initial_frames or --temporal_compression_ratio, or give longer "
            "videos"
        )


def require_rows_of_frames(inputs: Inputs, num_frames: int, ratio: int) -> None:
    """Refuse actions whose rows are none of the frames, whatever their alignment is.

    Raises:
        ValueError: The rows are for no whole number of frames, of steps between them, or of latent frames.
    """
    for kind, tables in inputs.actions.items():
        for name, rows in tables.items():
            count = len(rows)
            if count % num_frames and count % (num_frames - 1) and count != num_latent_frames(num_frames, ratio):
                raise ValueError(
                    f"--{kind}, {name}: {count} rows for {num_frames} frames; expected one for each step between "
                    f"them ({num_frames - 1}), for each frame ({num_frames}), or several, or one for each latent frame "
                    f"({num_latent_frames(num_frames, ratio)}): are they those of this video?"
                )


def require_rows(inputs: Inputs, shape: Sequence[int] | None = None) -> None:
    """Refuse actions that belong to other videos.

    Args:
        inputs: Files of all episodes.
        shape: Number of rows and columns; None takes those of the first table.

    Raises:
        ValueError: A table is of another shape, or other actions are the true ones.
    """
    for kind, tables in inputs.actions.items():
        for name, rows in tables.items():
            shape = tuple(rows.shape if shape is None else shape)
            if tuple(rows.shape) != shape:
                raise ValueError(
                    f"--{kind}, {name}: {list(rows.shape)} numbers (rows, columns), expected {list(shape)}, for all "
                    "videos are of one length"
                )
    own, other = (inputs.actions.get(kind, {}) for kind in ACTIONS)
    for name in own.keys() & other.keys():
        if torch.equal(own[name], other[name]):
            raise ValueError(f"the other actions of {name} are its true ones: give others, or leave --other out")
