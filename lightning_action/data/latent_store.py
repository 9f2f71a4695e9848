"""A store of encoded clips: what its files hold, and how windows are read from it.

A store is a folder, or the address of one that fsspec knows:

- `index.json`: what made the latents, and each clip with its shard, key, length, rate, prompt and splits
- `latents-*.safetensors`: of each clip `KEY.latents` and `KEY.first`, `[F, C, h, w]` both; `KEY.action`
  `[rows, columns]`, float32, if it was recorded with actions; and `KEY.position` `[T, 2]`, pixels of an object in each
  frame, if the data has a locator
- `prompts.safetensors`: each prompt once, `[L, text_dim]`, as long as it is
- `codec.safetensors`: tensors of a codec that was fitted to data

A causal VAE gives latent frame 0 one pixel frame, and each later one r of them. So a window that begins at latent
frame k > 0 of a clip begins at pixel frame r k, which stands alone: its latent is `first[k]`, the encoding of that one
frame, and `latents[k + 1 ... k + L - 1]` follow, which stand for the pixel frames `r k + 1 ... r (k + L - 1)`. Its
action rows are those of these pixel frames. Where the VAE has no memory, that is what encoding the window itself would
give; where it has, the later latents have seen frames before the window. A window that begins with its clip is exact.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import num_pixel_frames
from lightning_action.recordings.local_folder import LocalFolder

WindowStarts = Literal["anywhere", "clip_start"]

FORMAT = 1
INDEX, PROMPTS, CODEC = "index.json", "prompts.safetensors", "codec.safetensors"
# Files that a process holds open; the limit of the system is often 1024, for all workers' pipes too.
_MAX_OPEN = 64


@dataclass(frozen=True)
class Encoding:
    """Properties that all latents of a store have in common.

    Args:
        vae: Identity of the VAE, see `VideoCodec.identity`.
        text_encoder: Name of the class of the text encoder.
        schema: Meaning of the action rows; its temporal compression ratio is that of the VAE.
        frame_size: Height and width of the pixel frames.
        dtype: Name of the dtype that latents are stored in.
        window_starts: Latent frames that windows may begin at: `anywhere`, or `clip_start`, for which clips have no
            `first`.
    """

    vae: str
    text_encoder: str
    schema: ActionSchema
    frame_size: tuple[int, int]
    dtype: str
    window_starts: WindowStarts = "anywhere"

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, for a file."""
        return {**asdict(self), "schema": self.schema.to_dict()}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Encoding:
        """The encoding that `to_dict` wrote."""
        height, width = values["frame_size"]
        return Encoding(
            **{**values, "schema": ActionSchema.from_dict(values["schema"]), "frame_size": (int(height), int(width))}
        )


@dataclass(frozen=True)
class StoredClip:
    """A clip of a store.

    Args:
        name: Name of the clip.
        num_latents: Number of latent frames.
        num_frames: Number of pixel frames of the recording, of which some at the end may fill no latent frame.
        fps: Number of pixel frames of a second.
        prompt: Description of what the video shows.
        has_actions: True if it was recorded with actions.
        has_positions: True if an object was located in its frames.
        shard: Name of the file that holds it.
        key: Name of its tensors in that file.
    """

    name: str
    num_latents: int
    num_frames: int
    fps: float
    prompt: str
    has_actions: bool
    has_positions: bool = False
    shard: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if self.num_latents < 1 or Path(self.shard).name != self.shard or "\\" in self.shard:
            raise ValueError(
                f"expected a clip of at least one latent frame, in a file of the store, got {self.num_latents} of "
                f"{self.name!r} in {self.shard!r}"
            )


@dataclass(frozen=True)
class StoreIndex:
    """Index of a store.

    Args:
        encoding: Properties that all latents have in common.
        clips: Clips of all splits, each once.
        splits: Numbers of the clips of each split, in the order of the data.
        statistics: Figures of each column of the actions of the training split.
    """

    encoding: Encoding
    clips: list[StoredClip]
    splits: dict[str, list[int]]
    statistics: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def prompts(self) -> list[str]:
        """Prompts of the clips, each once; a prompt's number is its key in the file of prompts."""
        return list(dict.fromkeys(clip.prompt for clip in self.clips))

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, for a file."""
        numbers = {prompt: number for number, prompt in enumerate(self.prompts)}
        return {
            "format": FORMAT,
            "encoding": self.encoding.to_dict(),
            "statistics": self.statistics,
            "prompts": self.prompts,
            "splits": self.splits,
            "clips": [{**asdict(clip), "prompt": numbers[clip.prompt]} for clip in self.clips],
        }

    @staticmethod
    def from_dict(values: dict[str, Any]) -> StoreIndex:
        """The index that `to_dict` wrote.

        Raises:
            ValueError: The values are no index, or one of another format.
        """
        found = values.get("format") if isinstance(values, dict) else None
        if found != FORMAT:
            raise ValueError(f"expected format {FORMAT} of a store of latents, got {found!r}: encode with this version")
        try:
            prompts = values["prompts"]
            clips = [StoredClip(**{**clip, "prompt": prompts[clip["prompt"]]}) for clip in values["clips"]]
            splits = {split: [int(number) for number in numbers] for split, numbers in values["splits"].items()}
            encoding = Encoding.from_dict(values["encoding"])
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"it is not whole: {type(error).__name__} {error}") from error
        if any(not 0 <= number < len(clips) for numbers in splits.values() for number in numbers):
            raise ValueError("a split names a clip that it does not hold")
        return StoreIndex(encoding, clips, splits, values["statistics"])


class LatentStore:
    """A store that windows are read from.

    Each process opens the files that it reads, and keeps them open.

    Args:
        address: Folder of the store, or its address for fsspec, such as `s3://bucket/latents`.
        cache_dir: Folder that files of an address are copied to when they are first read; None takes
            `lightning_action` in the user's cache.

    Raises:
        FileNotFoundError: The folder has no index.
        ValueError: The index is damaged.
    """

    def __init__(self, address: str, cache_dir: str | None = None) -> None:
        self.address = address
        self._open: OrderedDict[str, Any] = OrderedDict()
        try:
            content = LocalFolder(address, cache_dir).read(INDEX)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no {INDEX} in {address!r}: give the folder that `encode` wrote, and let it end"
            ) from error
        # A store that was written anew is not mixed up with copies of the one before.
        self._files = LocalFolder(address, cache_dir, version=content)
        try:
            self.index = StoreIndex.from_dict(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{address}/{INDEX} is no index of a store: {error}") from error
        self._prompt_numbers = {prompt: str(number) for number, prompt in enumerate(self.index.prompts)}

    def __getstate__(self) -> dict[str, Any]:
        """Give a worker process no open files: it opens its own."""
        return {**self.__dict__, "_open": OrderedDict()}

    def window(self, number: int, start: int, num_latents: int) -> Tensor:
        """Read the latents `[num_latents, C, h, w]` of a window of a clip, cut as the module says.

        Raises:
            ValueError: The file is damaged, or the clip has fewer latents than the window.
        """
        clip, stop = self.index.clips[number], start + num_latents
        with self._reading(clip.shard) as file:
            begins = file.get_slice(f"{clip.key}.{'first' if start else 'latents'}")[start : start + 1]
            latents = torch.cat([begins, file.get_slice(f"{clip.key}.latents")[start + 1 : stop]])
        if len(latents) != num_latents:
            raise ValueError(
                f"{clip.name} in {clip.shard} has no latent frames {start} to {stop - 1}, which the index says: encode "
                "it again"
            )
        return latents

    def action(self, number: int, start: int, num_latents: int) -> Tensor:
        """Read the action rows `[rows, columns]` of a window of a clip that has actions. Raises as `window`."""
        clip, schema = self.index.clips[number], self.index.encoding.schema
        first = schema.num_rows(start + 1) - schema.num_rows(1)
        with self._reading(clip.shard) as file:
            return file.get_slice(f"{clip.key}.action")[first : first + schema.num_rows(num_latents)]

    def position(self, number: int, start: int, num_latents: int) -> Tensor:
        """Read where an object is in the frames of a window, `[T, 2]` in pixels. Raises as `window`."""
        clip, ratio = self.index.clips[number], self.index.encoding.schema.temporal_compression_ratio
        first, count = ratio * start, num_pixel_frames(num_latents, ratio)
        with self._reading(clip.shard) as file:
            return file.get_slice(f"{clip.key}.position")[first : first + count]

    def text(self, number: int) -> Tensor:
        """Read the encoded prompt of a clip, `[L, text_dim]`."""
        with self._reading(PROMPTS) as file:
            return file.get_tensor(self._prompt_numbers[self.index.clips[number].prompt])

    def empty_text(self) -> Tensor | None:
        """Read the encoded empty prompt, `[L, text_dim]`; None in a store of an earlier version."""
        # Behind those of the clips, if none of them is empty.
        number = self._prompt_numbers.get("", str(len(self._prompt_numbers)))
        with self._reading(PROMPTS) as file:
            return file.get_tensor(number) if number in file.keys() else None  # noqa: SIM118

    def codec_tensors(self) -> dict[str, Tensor]:
        """Read the tensors of a codec that was fitted to data; none where it was not."""
        if not self._files.exists(CODEC):
            return {}
        with self._reading(CODEC) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    @contextmanager
    def _reading(self, name: str) -> Iterator[Any]:
        try:
            if name not in self._open:
                self._open[name] = safe_open(self._files.path(name), framework="pt")
                if len(self._open) > _MAX_OPEN:
                    self._open.popitem(last=False)
            self._open.move_to_end(name)
            yield self._open[name]
        except SafetensorError as error:
            raise ValueError(
                f"{name} of the store {self.address} is damaged or not the one of its index ({error}): copy it again, "
                "or remove it and encode again"
            ) from error
