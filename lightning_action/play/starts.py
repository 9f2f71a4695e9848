"""Starts of generated worlds: given frames, or the samples of a run's data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from lightning_action.batch import num_pixel_frames, to_unit_range
from lightning_action.data.clip_encoding import ClipData
from lightning_action.data.split_data import Split
from lightning_action.generation.sampling import Sampling
from lightning_action.module.generative_module import GenerativeModule
from lightning_action.run import build_datamodule, load_run

Starts = Callable[[int], tuple[Tensor, str]]
"""First frames `[T, 3, H, W]` in [0, 1] and prompt of the world of any number, 0 or more.

Worlds begin without action rows: a world begins as under no action, also where a schema (`state`, `per_latent`) has
rows of its first frame, or there are several latent frames.
"""


def starts_of_frames(frames: Tensor) -> Starts:
    """Make starts of first frames `[N, T, 3, H, W]` in [0, 1], with the empty prompt: number i is row i modulo N.

    Raises:
        ValueError: The tensor is not of that shape, or has no row.
    """
    if frames.ndim != 5 or not len(frames):
        raise ValueError(f"expected first frames [N, T, 3, H, W] in [0, 1], got {list(frames.shape)}")
    return lambda number: (frames[number % len(frames)], "")


def starts_of_data(data: object, split: Split, num_latents: int, temporal_compression_ratio: int) -> Starts:
    """Make starts of data: number i is clip i of a split, modulo their number.

    Args:
        data: Data that has been set up.
        split: Split that the clips are from.
        num_latents: Number of latent frames to begin with.
        temporal_compression_ratio: Number of pixel frames of one.

    Raises:
        ValueError: The data has no clips.
    """
    if not isinstance(data, ClipData):
        raise ValueError(f"{type(data).__name__} has no clips that a world could begin at: give starts yourself")
    clips = data.clips(split)
    if not clips:
        raise ValueError(f"{type(data).__name__} has no clip in its split {split!r}: choose another split")
    num_frames = num_pixel_frames(num_latents, temporal_compression_ratio)

    def start(number: int) -> tuple[Tensor, str]:
        clip = clips[number % len(clips)]
        return to_unit_range(clip.video(0, num_frames)).float(), clip.prompt

    return start


def model_and_starts(
    config: str | Path | Sequence[str | Path],
    ckpt_path: str | Path,
    split: Split,
    allow: Sequence[str],
    sampling: Sampling | None,
) -> tuple[GenerativeModule, Starts]:
    """Load a run, and find where worlds of its data begin. Arguments and errors as in `WorldModelEnv.from_run`."""
    module = load_run(config, ckpt_path, allow)
    module.frozen.load()
    data = build_datamodule(config, allow)
    data.prepare_data()
    data.setup("test")
    num_latents = max(1, (sampling or module.sampling).num_initial_latents)
    return module, starts_of_data(data, split, num_latents, module.schema.temporal_compression_ratio)
