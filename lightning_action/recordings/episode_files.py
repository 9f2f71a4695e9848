"""Videos that a program wrote, one for each episode: found in a folder, put together by name, read whole."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_action.recordings.recording import Frames
from lightning_action.recordings.tables import TABLES, read_actions, read_named_actions, read_records
from lightning_action.recordings.video_file import probe_video
from lightning_action.recordings.video_folder import PICTURES, VIDEOS, file_frames, numbers_in, picture_frames
from lightning_action.weights.tensor_files import load_pickle

SAVED = ".pt"
MOVIES = (*VIDEOS, ".gif")
_NUM_NAMED = 5

Files = dict[str, Path]
"""Files by the names of the episodes."""


@dataclass(frozen=True)
class GivenVideo:
    """A video of which the size is known, and which is read when it is asked for.

    Args:
        path: File or folder, for messages.
        frames: Frames of the video.
        num_frames: Number of frames.
        frame_size: Height and width.
    """

    path: Path
    frames: Frames
    num_frames: int
    frame_size: tuple[int, int]

    def read(self) -> np.ndarray:
        """Read all frames `[T, H, W, 3]`, uint8 RGB."""
        return self.frames(list(range(self.num_frames)))


def open_given_video(path: Path) -> GivenVideo:
    """Look at a video, of which nothing is decoded but the first picture of a folder of pictures.

    Args:
        path: Video file (`MOVIES`), folder of pictures in the order of the numbers in their names, or `.pt` file of
            `PredictionWriter`.

    Raises:
        FileNotFoundError: The path names no video.
        ValueError: The file or folder is broken, or is no video of these kinds.
    """
    if path.is_dir():
        pictures = [item for item in path.iterdir() if _is_picture(item)]
        if not pictures:
            raise ValueError(f"{path} holds no pictures ({', '.join(PICTURES)})")
        frames = partial(picture_frames, sorted(pictures, key=lambda item: numbers_in(item.name)))
        height, width = frames([0]).shape[1:3]
        return GivenVideo(path, frames, len(pictures), (height, width))
    if not path.is_file():
        raise FileNotFoundError(f"no video at {path}")
    if path.suffix == SAVED:
        count, _, height, width = _saved_video(path).shape
        return GivenVideo(path, partial(_saved_frames, path), count, (height, width))
    facts = probe_video(path)
    return GivenVideo(path, partial(file_frames, path), facts.num_frames, facts.frame_size)


def _saved_frames(path: Path, indices: list[int]) -> np.ndarray:
    return _saved_video(path)[indices].permute(0, 2, 3, 1).numpy()


def _saved_video(path: Path) -> Tensor:
    """Map a file that `PredictionWriter` wrote, and return its `video`, uint8 `[T, 3, H, W]`, which is not read yet.

    Raises:
        ValueError: The file holds no video of `PredictionWriter`.
    """
    content: Any = load_pickle(path)
    video = content.get("video") if isinstance(content, dict) else None
    if not isinstance(video, Tensor) or video.dtype != torch.uint8 or video.ndim != 4 or video.shape[1] != 3:
        raise ValueError(f"{path} is not of PredictionWriter: it has no `video` [T, 3, H, W] of bytes")
    return video


def find_videos(folder: Path) -> Files:
    """Find the videos of a folder: files, and folders of pictures, by their names without suffix.

    In a folder of `PredictionWriter`, those are its `.pt` files: the pictures in its videos are enlarged and drawn on.

    Raises:
        FileNotFoundError: The path names no folder.
        NotADirectoryError: The path is that of a file.
        ValueError: The folder holds no videos, or two of one name.
    """
    items = _visible(folder)
    saved = [item for item in items if item.suffix == SAVED]
    movies = [item for item in items if item.is_file() and item.suffix.lower() in MOVIES]
    pictures = [item for item in items if item.is_dir() and any(map(_is_picture, item.iterdir()))]
    found = saved or [*movies, *pictures]
    if not found:
        raise ValueError(f"{folder} holds no videos ({', '.join(MOVIES)}) and no folders of pictures")
    return _by_name(folder, found)


def find_actions(path: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the action rows `[rows, columns]` of episodes.

    Args:
        path: Folder of tables with the names of the videos; or an `.npz` file with an array for each name; or, for one
            video, its table.
        names: Names of the videos.

    Raises:
        FileNotFoundError: The path names no table, folder or archive.
        ValueError: The names differ from those of the videos, or a table holds something else than finite numbers.
    """
    if path.is_dir():
        tables = _by_name(path, [item for item in _visible(path) if item.suffix.lower() in TABLES])
        require_same_names(path, tables, names)
        return {name: read_actions(tables[name]) for name in names}
    if len(names) == 1:
        return {names[0]: read_actions(path)}
    if not path.is_file() or path.suffix.lower() != ".npz":
        raise FileNotFoundError(
            f"actions of {len(names)} videos are a folder of tables ({', '.join(TABLES)}) of the videos' names, or an "
            f".npz with an array for each name; got {path}"
        )
    arrays = read_named_actions(path)
    require_same_names(path, arrays, names)
    return {name: arrays[name] for name in names}


def match_by_name(folders: Mapping[str, Path]) -> dict[str, Files]:
    """Find the videos of several folders, each of which must have the names of the first.

    Args:
        folders: Folders by what they hold.

    Returns:
        Files by what they are, then by name.

    Raises:
        ValueError: A folder has a video more, or one less; the message names it.
    """
    found = {kind: find_videos(folder) for kind, folder in folders.items()}
    first, *others = found
    for kind in others:
        try:
            require_same_names(folders[kind], found[kind], found[first])
        except ValueError as error:
            raise ValueError(
                f"{error}; expected the names of {folders[first]}, suffixes aside: rename the files, or say in a "
                "--manifest which ones belong together"
            ) from error
    return {kind: {name: files[name] for name in found[first]} for kind, files in found.items()}


def match_by_manifest(manifest: Path, folders: Mapping[str, Path]) -> tuple[dict[str, Files], dict[str, int]]:
    """Take videos together as a table says.

    Args:
        manifest: Table (`.csv`, `.json`, `.jsonl`) with a column for each folder, of paths in it; one that is left out
            has the paths of the first one. `sample_id`, where it is, has the numbers of the episodes.
        folders: Folders by what they hold.

    Returns:
        Files by what they are, then by name; and the numbers by name, empty where the table has none.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: The table has other columns, or a video twice.
    """
    records = read_records(manifest)
    first = next(iter(folders))
    found: dict[str, Files] = {kind: {} for kind in folders}
    numbers: dict[str, int] = {}
    for line, record in enumerate(records, 1):
        unknown = sorted(set(record) - {*folders, "sample_id"})
        if unknown or not record.get(first):
            raise ValueError(
                f"{manifest}, entry {line}: expected {first}, and perhaps {', '.join([*folders][1:])} or sample_id, "
                f"got {dict(record)}"
            )
        name = Path(record[first]).with_suffix("").as_posix()
        if name in found[first]:
            raise ValueError(f"{manifest}, entry {line}: {record[first]} is there already")
        for kind, folder in folders.items():
            relative = Path(record.get(kind) or record[first])
            if relative.is_absolute() or ".." in relative.parts:
                raise ValueError(f"{manifest}, entry {line}: {relative} leads out of {folder}")
            found[kind][name] = folder / relative
            if not found[kind][name].exists():
                raise FileNotFoundError(f"{manifest}, entry {line}: there is no {found[kind][name]}")
        if record.get("sample_id"):
            numbers[name] = _whole(record["sample_id"], f"{manifest}, entry {line}")
    if not records:
        raise ValueError(f"{manifest} names no videos: expected a line for each, below the names of the columns")
    if numbers and len(numbers) < len(found[first]):
        raise ValueError(f"{manifest}: some entries have a sample_id, and others have none")
    return found, numbers


def numbers_of(names: Iterable[str]) -> dict[str, int]:
    """Take the last number in each name, as 7 in `episode_000007`.

    Raises:
        ValueError: A name has no number, or two names have the same.
    """
    numbers: dict[str, int] = {}
    for name in names:
        digits = re.findall(r"[0-9]+", name)
        if not digits:
            raise ValueError(f"the video {name!r} has no number that says which sample it is: rename it, or --manifest")
        number = int(digits[-1])
        if number in numbers.values():
            twice = next(each for each, taken in numbers.items() if taken == number)
            raise ValueError(f"the videos {twice!r} and {name!r} are both sample {number}: rename one, or --manifest")
        numbers[name] = number
    return numbers


def require_same_names(where: Path, found: Iterable[object], wanted: Iterable[object]) -> None:
    """Refuse what is missing or too much.

    Raises:
        ValueError: Names differ; the message has the first ones.
    """
    there, needed = set(found), set(wanted)
    missing, extra = _named(needed - there), _named(there - needed)
    told = [
        *([f"has no {missing}"] if missing else []),
        *([f"has {extra}, to which nothing belongs"] if extra else []),
    ]
    if told:
        raise ValueError(f"{where} {', and '.join(told)}")


def _named(names: set[object]) -> str:
    ordered = sorted(names, key=lambda name: numbers_in(str(name)))
    more = f" and {len(ordered) - _NUM_NAMED} more" * (len(ordered) > _NUM_NAMED)
    return ", ".join(map(str, ordered[:_NUM_NAMED])) + more


def _visible(folder: Path) -> list[Path]:
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file: give the folder that holds a video for each episode")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder at {folder}: give the folder that holds a video for each episode")
    return sorted((item for item in folder.iterdir() if item.name[0] != "."), key=lambda item: numbers_in(item.name))


def _by_name(folder: Path, items: Iterable[Path]) -> Files:
    found: Files = {}
    for item in items:
        name = item.name if item.is_dir() else item.stem
        if name in found:
            raise ValueError(f"{folder} has two of the name {name!r}: {found[name].name} and {item.name}; keep one")
        found[name] = item
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.name[0] != "."


def _whole(text: str, where: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{where}: sample_id is a whole number from 0 on, got {text!r}")
    return int(text)
