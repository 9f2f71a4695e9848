"""Windows of encoded clips: batches of latents and encoded prompts, for which no frozen part has to run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import Batch
from lightning_action.data.latent_store import LatentStore, WindowStarts
from lightning_action.data.split_data import Locator, SampleDataset, Split, SplitDataModule, SpreadSamples
from lightning_action.data.windows import WindowPlaces
from lightning_action.frozen.interfaces import TextEncoder, VideoCodec
from lightning_action.ranges import require_numbers


class LatentDataset(SampleDataset):
    """Windows of `num_latents` latent frames of the clips of one split, `step` of them from one window to the next."""

    def __init__(
        self, store: LatentStore, split: str, num_latents: int, step: int, with_positions: bool = False
    ) -> None:
        self.store, self.num_latents, self.with_positions = store, num_latents, with_positions
        self._clips = store.index.splits.get(split, [])
        clips = [store.index.clips[number] for number in self._clips]
        self._places = WindowPlaces((clip.num_latents for clip in clips), num_latents, step)
        self.num_shorter = self._places.counts.count(0)
        fitting = zip(self._clips, clips, self._places.counts, strict=True)
        self._acting = next((number for number, clip, count in fitting if clip.has_actions and count), None)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, index: int) -> tuple[int, int]:
        """Return the clip that a window is cut from, and the latent frame that it begins at."""
        position, start = self._places[index]
        return self._clips[position], start

    def command(self, index: int) -> Batch:
        clip = self.store.index.clips[self.place(index)[0]]
        action = self.store.action(*self.place(index), self.num_latents) if clip.has_actions else None
        return {"sample_id": index, "action": action, "prompt": clip.prompt}

    def __getitem__(self, index: int) -> Batch:
        batch = self.__getitems__([index])
        return {key: value if value is None else value[0] for key, value in batch.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        places = [self.place(index) for index in indices]
        clips = [self.store.index.clips[number] for number, _ in places]
        batch = {
            "latents": torch.stack([self.store.window(*place, self.num_latents) for place in places]),
            "text": pad_sequence([self.store.text(number) for number, _ in places], batch_first=True),
            "prompt": [clip.prompt for clip in clips],
            "sample_id": torch.tensor(indices),
            "frame_size": torch.tensor([self.store.index.encoding.frame_size] * len(indices)),
            **self._actions(places),
        }
        empty = self.store.empty_text()
        if empty is not None:
            batch["empty_text"] = empty.expand(len(indices), -1, -1)
        if self.with_positions:
            batch["position"] = torch.stack([self.store.position(*place, self.num_latents) for place in places])
        return batch

    def _actions(self, places: Sequence[tuple[int, int]]) -> Batch:
        """Read the actions; where a clip has none, those of another stand in their place, which nobody reads."""
        clips = self.store.index.clips
        if self._acting is None:
            return {"action": None}
        acting = [clips[number].has_actions for number, _ in places]
        of_whom = [place if acts else (self._acting, 0) for place, acts in zip(places, acting, strict=True)]
        action = {"action": torch.stack([self.store.action(*place, self.num_latents) for place in of_whom])}
        return action if all(acting) else {**action, "has_action": torch.tensor(acting)}


class LatentDataModule(SplitDataModule):
    """Windows of clips that `encode` has put into a store, as `latents` and `text`.

    `latent_store` says how windows are cut, and when that is exact.

    Args:
        store: Folder of the store, or its address for fsspec, such as `s3://bucket/latents`.
        num_latents: Number of latent frames of a window; shorter clips are passed over.
        window_starts: Latent frames that windows begin at: `anywhere`, or `clip_start`, one window of each clip.
        latent_step: Number of latent frames from one training window of a clip to the next. Windows of the other splits
            do not overlap.
        validation_size: Largest number of windows of a validation, spread over the clips.
        test_size: Largest number of windows that `test` measures.
        predict_size: Largest number of windows that `predict` generates.
        batch_size: Number of training windows of a step, on each device.
        eval_batch_size: Number of windows of a validation, test or predict step.
        seed: Random seed of the order of the training windows, which changes from epoch to epoch.
        num_workers: Number of processes that read.
        cache_dir: Folder that the files of an address are copied to; None is one in the user's cache.
        locator: Function that finds the object to be measured in videos, which the data that was encoded had too; None
            measures no positions.
    """

    def __init__(
        self,
        store: str,
        num_latents: int = 9,
        window_starts: WindowStarts = "anywhere",
        latent_step: int = 1,
        validation_size: int = 64,
        test_size: int = 128,
        predict_size: int = 8,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        locator: Locator | None = None,
    ) -> None:
        sizes: dict[Split, int] = {"validation": validation_size, "test": test_size, "predict": predict_size}
        super().__init__(sizes, batch_size, eval_batch_size, seed, num_workers, locator)
        lengths = {"num_latents": num_latents, "latent_step": latent_step}
        require_numbers({**lengths, "batch_size": batch_size, "eval_batch_size": eval_batch_size}, 1, whole=True)
        if window_starts not in ("anywhere", "clip_start"):
            raise ValueError(f"expected window_starts anywhere or clip_start, got {window_starts!r}")
        self.address, self.cache_dir = store, cache_dir
        self.num_latents, self.window_starts, self.latent_step = num_latents, window_starts, latent_step

    @cached_property
    def store(self) -> LatentStore:
        """Store that windows are read from; it is opened when it is first needed."""
        return LatentStore(self.address, self.cache_dir)

    @property
    def action_schema(self) -> ActionSchema | None:
        """Meaning of the action rows; None where no clip has any."""
        index = self.store.index
        return index.encoding.schema if any(clip.has_actions for clip in index.clips) else None

    @property
    def action_statistics(self) -> list[dict[str, Any]]:
        """Figures of each column of the training clips' actions."""
        return self.store.index.statistics

    def dataset(self, split: Split) -> SampleDataset:
        """Return the windows of a split that are taken.

        Raises:
            ValueError: The store has no windows of this split, or lacks the positions or window starts that are asked
                for.
        """
        if self.window_starts == "anywhere" and self.store.index.encoding.window_starts == "clip_start":
            raise ValueError(
                f"the store {self.address!r} was encoded for windows that begin with their clip: set window_starts: "
                "clip_start, or encode again with --window_starts anywhere"
            )
        located = self.locator is not None
        if located and not all(clip.has_positions for clip in self.store.index.clips):
            raise ValueError(f"the store {self.address!r} has no positions: give a locator to the data, and encode it")
        step = self.latent_step if split == "train" else self.num_latents
        if self.window_starts == "clip_start":
            step = sys.maxsize  # longer than any clip
        windows = LatentDataset(self.store, split, self.num_latents, step, located)
        if not len(windows):
            raise ValueError(
                f"the store {self.address!r} has no {split} clip of at least num_latents {self.num_latents} latent "
                "frames: lower num_latents, or record more"
            )
        if windows.num_shorter:
            rank_zero_info(f"{windows.num_shorter} {split} clips are shorter than {self.num_latents} latent frames")
        return SpreadSamples(windows, self.sizes.get(split, len(windows)))

    def codec_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the codec, if it was fitted to data; else none."""
        return self.store.codec_tensors()

    def require_made_by(self, vae: VideoCodec, text_encoder: TextEncoder, schema: ActionSchema | None) -> None:
        """Refuse parts that would have encoded something else; of the text encoder the class is looked at.

        Raises:
            ValueError: The store was encoded by other parts.
        """
        encoding = self.store.index.encoding
        pairs = {
            "VAE": (encoding.vae, vae.identity()),
            "text encoder": (encoding.text_encoder, type(text_encoder).__name__),
            "action schema": (self.action_schema, self.action_schema if schema is None else schema),
        }
        told = [f"with the {name} {its}, the model has {ours}" for name, (its, ours) in pairs.items() if its != ours]
        if told:
            raise ValueError(
                f"the store {self.address!r} was encoded {'; '.join(told)}: use the parts that it was encoded with, or "
                "encode again to another folder"
            )

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Load the windows to validate with; nothing where the store has no clips for that."""
        return super().val_dataloader() if self.store.index.splits.get("validation") else []
