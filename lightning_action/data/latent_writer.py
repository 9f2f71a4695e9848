"""Writing of a store: a clip at a time, by several processes that do not talk to each other, killed at any moment.

A process writes each clip that it has finished as a small file in `unmerged/RANK`, and joins them to a shard once they
fill one. So what was finished is known from the files alone, and nothing is encoded twice.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_action.atomic import remove, replacing, write_json
from lightning_action.data.latent_store import FORMAT, INDEX, PROMPTS, Encoding, StoredClip, StoreIndex
from lightning_action.recordings.clips import Clip
from lightning_action.recordings.statistics import measure
from lightning_action.weights.safetensors_files import read_safetensors, write_safetensors

_UNMERGED = "unmerged"


class StoreWriter:
    """Writes a store, as process `rank` of `world_size`; a shard of `max_shard_bytes` is full."""

    def __init__(
        self, folder: Path, encoding: Encoding, max_shard_bytes: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.folder, self.encoding = folder, encoding
        self.max_shard_bytes = max_shard_bytes
        self.rank, self.world_size = rank, world_size
        self._waiting_bytes = 0

    def recover(self) -> dict[str, StoredClip]:
        """Find the clips that are there, by their names, and remove what a process that was killed left twice.

        Raises:
            ValueError: The store that is there was encoded by other parts, or is damaged.
        """
        placed = self._placed()
        for path in self._unmerged(self.rank):
            if all(clip.name in placed for clip in self._read(path)):
                remove(path)
        self._waiting_bytes = sum(path.stat().st_size for path in self._unmerged(self.rank))
        waiting = {clip.name: clip for path in self._unmerged() for clip in self._read(path)}
        return waiting | placed

    def add(self, number: int, clip: StoredClip, tensors: Mapping[str, Tensor]) -> None:
        """Write a clip, whose key in its file begins with its number; a shard that is full is closed."""
        key = f"{number:06d}-{_digest(clip.name)}"
        path = self.waiting_room / f"{key}.safetensors"
        self._write(path, [replace(clip, key=key)], {f"{key}.{name}": each for name, each in tensors.items()})
        self._waiting_bytes += path.stat().st_size
        if self._waiting_bytes >= self.max_shard_bytes:
            self.merge()

    def merge(self) -> None:
        """Join finished clips to shards; also those of a process that has no number any more."""
        group: list[Path] = []
        size = 0
        for path in self._unmerged(self.rank):
            group.append(path)
            size += path.stat().st_size
            if size >= self.max_shard_bytes:
                self._join(group)
                group, size = [], 0
        if group:
            self._join(group)
        self._waiting_bytes = 0

    def write_prompts(self, prompts: Iterable[str], encode: Any) -> None:
        """Write each prompt once, encoded as `[L, text_dim]`, in the order of the index, unless they are there."""
        texts = list(dict.fromkeys(prompts))
        path = self.folder / PROMPTS
        if path.exists() and _metadata(path).get("prompts") == json.dumps(texts):
            return
        tensors = {str(number): encode(text) for number, text in enumerate(texts)}
        write_safetensors(path, tensors, {"prompts": json.dumps(texts)})

    def write_index(self, splits: Mapping[str, Sequence[Clip]]) -> int:
        """Write the index, if all clips are in shards; return how many are not."""
        placed = self._placed()
        names = list(dict.fromkeys(clip.name for clips in splits.values() for clip in clips))
        missing = [name for name in names if name not in placed]
        if missing or not (self.folder / PROMPTS).exists():
            return max(1, len(missing))
        numbers = {name: number for number, name in enumerate(names)}
        index = StoreIndex(
            self.encoding,
            [placed[name] for name in names],
            {split: [numbers[clip.name] for clip in clips] for split, clips in splits.items()},
        )
        figures = self._statistics([index.clips[number] for number in index.splits.get("train", [])])
        write_json(self.folder / INDEX, {**index.to_dict(), "statistics": figures})
        return 0

    @property
    def waiting_room(self) -> Path:
        """Folder of what this process has finished, and what is in no shard yet."""
        return self.folder / _UNMERGED / str(self.rank)

    def tidy(self) -> None:
        """Remove folders of what was not merged, if they are empty."""
        for folder in (*(self.folder / _UNMERGED).glob("*"), self.folder / _UNMERGED):
            with suppress(OSError):  # of another process, which has not ended
                folder.rmdir()

    def _statistics(self, clips: Sequence[StoredClip]) -> list[dict[str, Any]]:
        """Measure the columns of the actions, one clip in memory at a time."""
        schema = self.encoding.schema
        acting = [clip for clip in clips if clip.has_actions]
        num_rows = sum(schema.num_rows(clip.num_latents) for clip in acting)
        if not num_rows:
            return []

        def rows() -> Iterator[Any]:
            for clip in acting:
                with safe_open(self.folder / clip.shard, framework="pt") as file:
                    yield file.get_tensor(f"{clip.key}.action").numpy()

        return [asdict(column) for column in measure(rows(), schema.column_names, num_rows)]

    def _join(self, paths: Sequence[Path]) -> None:
        clips: list[StoredClip] = []
        tensors: dict[str, Tensor] = {}
        for path in paths:
            clips += self._read(path)
            tensors |= read_safetensors(path)
        first = clips[0].key.partition("-")[0]
        name = f"latents-{first}-{_digest(*(clip.name for clip in clips))}.safetensors"
        self._write(self.folder / name, clips, tensors)
        for path in paths:
            remove(path)

    def _placed(self) -> dict[str, StoredClip]:
        """Find the clips that are in shards, by their names."""
        shards = sorted(self.folder.glob("latents-*.safetensors"))
        return {clip.name: clip for path in shards for clip in self._read(path)}

    def _unmerged(self, rank: int | None = None) -> list[Path]:
        """List files that wait to be joined: all, or those of a rank and of what ranks there were before."""
        folders = sorted((self.folder / _UNMERGED).glob("*"))
        return [
            path
            for folder in folders
            if rank is None or (folder.name.isdecimal() and int(folder.name) % self.world_size == rank)
            for path in sorted(folder.glob("[!.]*.safetensors"))
        ]

    def _write(self, path: Path, clips: Sequence[StoredClip], tensors: Mapping[str, Tensor]) -> None:
        said = {"format": FORMAT, "encoding": self.encoding.to_dict(), "clips": [asdict(clip) for clip in clips]}
        write_safetensors(path, tensors, {"store": json.dumps(said)})

    def _read(self, path: Path) -> list[StoredClip]:
        """Read which clips a file holds."""
        try:
            said = json.loads(_metadata(path)["store"])
            encoding = Encoding.from_dict(said["encoding"])
            clips = [StoredClip(**{**clip, "shard": path.name}) for clip in said["clips"]]
        except FileNotFoundError:  # another process has just joined it to a shard
            return []
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no file of a store of latents ({error}): remove it, and encode again"
            ) from error
        if encoding != self.encoding:
            ours = vars(self.encoding)
            told = [
                f"{name.replace('_', ' ')} {its}, now it is {ours[name]}"
                for name, its in vars(encoding).items()
                if its != ours[name]
            ]
            raise ValueError(f"{self.folder} was begun with {'; '.join(told)}: give a new folder as --output")
        return clips


def write_once(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file that several processes may write at a time; the first one stays."""

    def unless_there(temporary: Path, path: Path) -> None:
        with suppress(FileExistsError):
            os.link(temporary, path)

    with replacing(path, move=unless_there) as temporary:
        write_safetensors(temporary, tensors, {})


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"it is damaged: {error}") from error


def _digest(*names: str) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:8]
