"""A small store of latents, written by the command's own functions from clips of noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_action import LinearVideoCodec
from lightning_action.action.schema import ActionPart, ActionSchema, Alignment
from lightning_action.cli.encode import DType, encode
from lightning_action.data.latent_store import CODEC, Encoding
from lightning_action.data.latent_writer import StoreWriter, write_once
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from lightning_action.recordings.clips import Clip

RATIO, HEIGHT, WIDTH = 4, 8, 12


@dataclass(frozen=True)
class NoiseClip:
    """Noise that follows from a seed; one action row in a frame, which counts up from 100 times the seed."""

    name: str
    num_frames: int
    seed: int
    prompt: str = "a red disc"
    has_actions: bool = True
    alignment: Alignment = "transition"
    fps: float = 10.0
    height: int = HEIGHT

    def video(self, start: int, num_frames: int) -> Tensor:
        random = torch.Generator().manual_seed(self.seed)
        whole = torch.rand(self.num_frames, 3, self.height, WIDTH, generator=random) * 2 - 1
        return whole[start : start + num_frames]

    def action(self, start: int, num_frames: int) -> Tensor:
        count = schema(self.alignment).num_rows(1 + (num_frames - 1) // RATIO)
        first = start // RATIO if self.alignment == "per_latent" else start
        return 100 * self.seed + torch.arange(first, first + count)[:, None] + torch.tensor([0.0, 0.5])


def schema(alignment: Alignment = "transition") -> ActionSchema:
    return ActionSchema([ActionPart("move", size=2, low=0, high=1000)], alignment, temporal_compression_ratio=RATIO)


def clips() -> dict[str, Sequence[Clip]]:
    """Lengths of 6, 3 and 1 latent frames to train on, one without actions to validate with, and one held out."""
    held_out = NoiseClip("f", 22, 6, "a blue disc")
    return {
        "train": [NoiseClip("a", 21, 1), NoiseClip("b", 12, 2, "two green discs"), NoiseClip("c", 1, 3)],
        "validation": [NoiseClip("d", 21, 4, has_actions=False), NoiseClip("e", 13, 5)],
        "test": [held_out],
        "predict": [held_out],
    }


def frozen_parts() -> FrozenParts:
    codec = LinearVideoCodec(5, 4, RATIO)
    codec.fit(torch.cat([NoiseClip("", 21, seed).video(0, 21)[None] for seed in range(8)]))
    return FrozenParts(HashingTextEncoder(6, 4), codec)


def writer(
    folder: Path,
    frozen: FrozenParts,
    rank: int = 0,
    world_size: int = 1,
    dtype: DType = "float32",
    alignment: Alignment = "transition",
    max_shard_bytes: int = 4000,
) -> StoreWriter:
    encoding = Encoding(frozen.vae.identity(), "HashingTextEncoder", schema(alignment), (HEIGHT, WIDTH), dtype)
    return StoreWriter(folder, encoding, max_shard_bytes, rank, world_size)


def write_store(folder: Path, dtype: DType = "float32") -> FrozenParts:
    """Write a store of several shards; return what encoded it."""
    frozen = frozen_parts()
    write_once(folder / CODEC, frozen.vae.fitted_tensors())  # type: ignore[attr-defined]
    assert encode(writer(folder, frozen, dtype=dtype), frozen, clips(), torch.device("cpu")) == 0
    return frozen
