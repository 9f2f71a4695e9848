"""Videos of simulated worlds, made on the fly; every sample follows from (seed, split, index)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_action.batch import Batch, num_pixel_frames
from lightning_action.data.made_samples import MadeSamples, SampleClip
from lightning_action.data.split_data import SPLITS, Split, SplitDataModule
from lightning_action.data.world import World
from lightning_action.seeding import mix_seed


def play(world: World, start: Any, action: Tensor) -> tuple[Tensor, Tensor]:
    """Show what action rows `[B, T - 1, columns]` do: videos `[B, T, 3, H, W]`, and positions `[B, T, 2]`."""
    position = world.simulate(start, action)
    return world.render(start, position), position


class SpriteDataset(MadeSamples):
    """Samples of one split.

    Each is a dict: `video` `[T, 3, H, W]` in [-1, 1], `action` `[T - 1, columns]`, `prompt`, `position` `[T, 2]` in
    pixels, and `sample_id`.
    """

    def __init__(self, world: World, split: Split, seed: int, size: int, num_frames: int) -> None:
        super().__init__(split, seed, size, num_frames)
        self.world = world

    def seeds(self, indices: Sequence[int]) -> list[int]:
        """Return world seeds of some samples."""
        return [mix_seed(*self._stream, index) for index in indices]

    def batch(self, indices: Sequence[int]) -> Batch:
        """Make several samples at once: rendering a batch costs little more than one video."""
        seeds = self.seeds(indices)
        start = self.world.start(seeds)
        action = self.world.sample_actions(seeds, self.num_frames - 1)
        video, position = play(self.world, start, action)
        return {
            "video": video,
            "action": action,
            "prompt": start.prompts,
            "position": position,
            "sample_id": torch.tensor(indices),
        }

    def command(self, index: int) -> Batch:
        return {"sample_id": index, "action": self.action(index), "prompt": self.prompt(index)}

    def prompt(self, index: int) -> str:
        return self.world.start(self.seeds([index])).prompts[0]

    def video(self, index: int) -> Tensor:
        return self[index]["video"]

    def action(self, index: int) -> Tensor:
        # Without the video, which takes a second to render where it is large.
        return self.world.sample_actions(self.seeds([index]), self.num_frames - 1)[0]

    def __getitem__(self, index: int) -> Batch:
        batch = self.batch([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, indices: list[int]) -> Batch:
        return self.batch(indices)


class SpriteDataModule(SplitDataModule):
    """Train, validation, test and predict videos of one kind of sprite world.

    Args:
        world: Simulator of the videos.
        num_latents: Number of latent frames of a video, which has `1 + r (num_latents - 1)` pixel frames.
        temporal_compression_ratio: Number r of pixel frames of a latent frame.
        batch_size: Number of training videos of a step, on each device.
        eval_batch_size: Number of videos of a validation, test or predict step.
        train_size: Number of training videos of an epoch; the order changes from epoch to epoch.
        validation_size: Number of videos of a validation.
        test_size: Number of held-out videos that `test` measures.
        predict_size: Number of held-out videos that `predict` generates.
        seed: Random seed that all splits follow from; other seeds give other worlds.
        num_workers: Number of processes that render.
    """

    def __init__(
        self,
        world: World,
        num_latents: int = 9,
        temporal_compression_ratio: int = 4,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        train_size: int = 4096,
        validation_size: int = 64,
        test_size: int = 128,
        predict_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        sizes = (train_size, validation_size, test_size, predict_size)
        super().__init__(dict(zip(SPLITS, sizes, strict=True)), batch_size, eval_batch_size, seed, num_workers)
        self.world = world
        self.num_frames = num_pixel_frames(num_latents, temporal_compression_ratio)
        self.action_schema = world.action_schema(temporal_compression_ratio)

    def dataset(self, split: Split) -> SpriteDataset:
        return SpriteDataset(self.world, split, self.seed, self.sizes[split], self.num_frames)

    def clips(self, split: Split) -> list[SampleClip]:
        """Return each video of a split as a clip, at the 16 frames of a second that Wan's videos have."""
        return self.dataset(split).clips(fps=16.0)

    def codec_videos(self, num_videos: int = 256) -> Tensor:
        """Return training videos `[num_videos, T, 3, H, W]` for fitting a codec."""
        return self.dataset("train").batch(range(min(num_videos, self.sizes["train"])))["video"]

    def simulate(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Play the actions of a batch from the starts of its samples, whatever the actions are.

        Args:
            batch: `sample_id` `[B]` and `action` `[B, T - 1, columns]`.
            split: Split that the samples are from.

        Returns:
            Videos `[B, T, 3, H, W]` in [-1, 1], and positions of the sprite in pixels, `[B, T, 2]`, on the CPU.
        """
        start = self.world.start(self.dataset(split).seeds(batch["sample_id"].tolist()))
        return play(self.world, start, batch["action"].cpu())

    def read_positions(self, video: Tensor, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Locate the sprite in videos generated from a batch of a split."""
        start = self.world.start(self.dataset(split).seeds(batch["sample_id"].tolist()))
        return self.world.locate(start, video.cpu())
