"""Videos of a gymnasium environment, played on the fly; every sample follows from (seed, split, index)."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import default_collate

from lightning_action.action.schema import ActionSchema, Combine
from lightning_action.batch import Batch, from_unit_range, num_pixel_frames
from lightning_action.configuration.class_paths import import_named
from lightning_action.data.made_samples import MadeSamples, SampleClip
from lightning_action.data.split_data import SPLITS, Locator, Split, SplitDataModule
from lightning_action.recordings.gym_environments import (
    action_parts,
    frames_per_second,
    make_environment,
    make_policy,
    play,
    render,
    replay,
    resized,
    steer,
)
from lightning_action.seeding import mix_seed

if TYPE_CHECKING:
    from gymnasium import Env

# An environment that ends before a video is full is begun again so often, each time from another seed.
_MAX_ATTEMPTS = 20


@dataclass(frozen=True)
class EnvironmentSource:
    """Ingredients of a video, as `EnvironmentDataModule` says: a world, who acts in it, and what is kept."""

    env: str
    env_kwargs: Mapping[str, Any]
    policy: str
    position: str | None
    frame_size: tuple[int, int] | None
    prompt: str
    num_frames: int

    def make(self) -> Env[Any, Any]:
        """Make the environment."""
        return make_environment(self.env, self.env_kwargs)


class EnvironmentDataset(MadeSamples):
    """Samples of one split.

    Each is a dict: `video` `[T, 3, H, W]` in [-1, 1], `action` `[T - 1, columns]`, `prompt`, `sample_id`, and, where
    the source has a position, `position` `[T, 2]` in pixels.
    """

    def __init__(self, source: EnvironmentSource, split: Split, seed: int, size: int) -> None:
        super().__init__(split, seed, size, source.num_frames)
        self.source = source
        self._position = None if source.position is None else import_named(source.position)
        self._opened: tuple[int, Env[Any, Any]] | None = None
        self._seeds: dict[int, int] = {}
        self._latest: Batch = {}

    def __getitem__(self, index: int) -> Batch:
        seen, action = self._play(index, self._look)
        return {**self._shown(seen), **self._command(index, action)}

    def command(self, index: int) -> Batch:
        """Return `sample_id`, `action` and `prompt` of a sample, which is played but not rendered for it."""
        return self._command(index, self._play(index)[1])

    def prompt(self, index: int) -> str:
        return self.source.prompt

    def video(self, index: int) -> Tensor:
        return self._kept(index)["video"]

    def action(self, index: int) -> Tensor:
        return self._kept(index)["action"]

    def replay(self, index: int, action: Tensor) -> Batch:
        """Show what any actions `[T - 1, columns]` do in the episode of a sample: its `video`, perhaps `position`.

        Where the episode ends earlier, its last frame and position stay.
        """
        seen = replay(self._env(), action.numpy(), self._seed_of(index), self._look)
        return self._shown(seen + seen[-1:] * (len(action) + 1 - len(seen)))

    def steer(self, index: int) -> Generator[np.ndarray, np.ndarray, None]:
        """Play the episode of a sample, in an environment of its own, under rows `[columns]` that are sent one by one.

        Yields:
            Frames `[H, W, 3]` of uint8, at the start and after each row, until the episode ends.
        """
        env = self.source.make()
        try:
            yield from steer(env, self._seed_of(index), lambda *seen: self._look(*seen)[0])
        finally:
            env.close()

    def _seed_of(self, index: int) -> int:
        if index not in self._seeds:
            self._play(index)
        return self._seeds[index]

    def _kept(self, index: int) -> Batch:
        """Play a sample, unless it is the latest: a clip is read in parts, which a second play might not fit."""
        if self._latest.get("sample_id") != index:
            self._latest = self[index]
        return self._latest

    def _shown(self, seen: Sequence[tuple[np.ndarray, Any]]) -> Batch:
        video = torch.from_numpy(np.stack([frame for frame, _ in seen])).permute(0, 3, 1, 2)
        shown = {"video": from_unit_range(video / 255)}
        if self._position is not None:
            shown["position"] = torch.tensor(np.stack([place for _, place in seen]), dtype=torch.float32)
        return shown

    def _command(self, index: int, action: Tensor) -> Batch:
        return {"sample_id": index, "action": action, "prompt": self.source.prompt}

    def _play(self, index: int, look: Callable[..., Any] = lambda *_: None) -> tuple[list[Any], Tensor]:
        """Play an episode that lasts for a whole video: what was seen at each frame, and the actions between.

        Its seed is kept for `replay`. Without `look` nothing is rendered.
        """
        env, num_frames, longest = self._env(), self.num_frames, 0
        new_policy = make_policy(self.source.policy, env.action_space)
        for attempt in range(_MAX_ATTEMPTS):
            seed = mix_seed(*self._stream, index, attempt)
            moments = list(islice(play(env, new_policy(), seed, look), num_frames))
            if len(moments) == num_frames:
                self._seeds[index] = seed
                action = np.stack([row for _, row, *_ in moments[:-1]])
                return [seen for seen, *_ in moments], torch.from_numpy(action)
            longest = max(longest, len(moments))
        raise ValueError(
            f"sample {index}: of {_MAX_ATTEMPTS} episodes of {self.source.env} the longest had {longest} frames before "
            f"it ended, a video has {num_frames}: lower num_latents, or give an environment or a policy that lasts"
        )

    def _look(self, env: Env[Any, Any], observation: Any, info: Mapping[str, Any]) -> tuple[np.ndarray, Any]:
        """Return the frame, and the position in its pixels."""
        rendered = render(env)
        frame = resized(rendered, self.source.frame_size)
        if self._position is None:
            return frame, None
        scale = np.array(frame.shape[1::-1]) / np.array(rendered.shape[1::-1])
        return frame, np.asarray(self._position(env.unwrapped, info), float) * scale

    def _env(self) -> Env[Any, Any]:
        """Return the environment of this process: what draws may not outlive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), self.source.make()
        return self._opened[1]


class EnvironmentDataModule(SplitDataModule):
    """Train, validation, test and predict videos of a gymnasium environment, which is played while one trains.

    Args:
        env: Name of the environment: in gymnasium (`Pendulum-v1`), with a module to import first
            (`gym_pusht:gym_pusht/PushT-v0`), or `module:function`, which returns an environment. Modules that are named
            must be allowed (`--allow gym_pusht`).
        env_kwargs: Arguments of the environment.
        policy: Name of what acts: `random`; `hold`, random actions that are held for 2 to 8 steps; or `module:name`, a
            function of (observation, info, random), or a class of such, of which each episode gets a new one.
        prompt: Description of what the videos show.
        frame_size: Height and width that frames are resized to, without cutting anything off.
        fps: Number of frames of a second; None takes what the environment says, or else 10.
        combine: Way in which the action rows of a latent frame become one vector.
        position: Name `module:function` of a function of (environment, info) that returns the true position (x, y) of
            the object to be measured, in pixels of the rendered frame; None reads it off true videos by `locator`.
        locator: Function that finds the object in videos: from `[B, T, 3, H, W]` in [-1, 1] to positions in pixels
            `[B, T, 2]`, and whether it is there, `[B, T]` bool. None measures no positions.
        num_latents: Number of latent frames of a video, which has `1 + r (num_latents - 1)` pixel frames.
        temporal_compression_ratio: Number r of pixel frames of a latent frame.
        batch_size: Number of training videos of a step, on each device.
        eval_batch_size: Number of videos of a validation, test or predict step.
        train_size: Number of training videos of an epoch; the order changes from epoch to epoch.
        validation_size: Number of videos of a validation.
        test_size: Number of held-out videos that `test` measures.
        predict_size: Number of held-out videos that `predict` generates.
        seed: Random seed that all splits follow from.
        num_workers: Number of processes that play.

    Raises:
        ImportError: The module of the environment or policy or gymnasium is missing, or may not be imported.
        ValueError: The environment or policy does not exist, its actions have no bounds, or the arguments do not fit.
    """

    def __init__(
        self,
        env: str,
        env_kwargs: dict[str, Any] | None = None,
        policy: str = "hold",
        prompt: str = "",
        frame_size: tuple[int, int] | None = None,
        fps: float | None = None,
        combine: Combine = "concat",
        position: str | None = None,
        locator: Locator | None = None,
        num_latents: int = 9,
        temporal_compression_ratio: int = 4,
        batch_size: int = 16,
        eval_batch_size: int = 16,
        train_size: int = 4096,
        validation_size: int = 64,
        test_size: int = 128,
        predict_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        sizes = (train_size, validation_size, test_size, predict_size)
        super().__init__(dict(zip(SPLITS, sizes, strict=True)), batch_size, eval_batch_size, seed, num_workers, locator)
        if position is not None and locator is None:
            raise ValueError("position says where the object is, but nothing finds it in generated videos: add locator")
        num_frames = num_pixel_frames(num_latents, temporal_compression_ratio)
        self.source = EnvironmentSource(env, env_kwargs or {}, policy, position, frame_size, prompt, num_frames)
        made = self.source.make()
        make_policy(policy, made.action_space)
        if position is not None:
            import_named(position)
        self.fps = fps or frames_per_second(made) or 10.0
        parts = action_parts(made.action_space)
        made.close()
        self.action_schema = ActionSchema(parts, "transition", combine, temporal_compression_ratio)
        self._replayed: dict[Split, EnvironmentDataset] = {}
        self._can_simulate: bool | None = None

    @property
    def collate(self) -> Callable[[Any], Batch]:
        return partial(_collate, locator=self.locator)

    def dataset(self, split: Split) -> EnvironmentDataset:
        return EnvironmentDataset(self.source, split, self.seed, self.sizes[split])

    def clips(self, split: Split) -> list[SampleClip]:
        """Return all samples of a split as clips."""
        return self.episodes(split).clips(self.fps)

    def codec_videos(self, num_videos: int = 256) -> Tensor:
        """Return training videos `[num_videos, T, 3, H, W]` for fitting a codec."""
        dataset = self.dataset("train")
        return torch.stack([dataset[index]["video"] for index in range(min(num_videos, len(dataset)))])

    def can_simulate(self, split: Split) -> bool:
        """Tell, with a warning if not, whether the environment plays the first sample twice alike; every rank must ask.

        It is looked at once: what is found holds for all splits.
        """
        if self._can_simulate is None:
            dataset = self.episodes(split)
            sample = dataset[0]
            is_same = torch.equal(dataset.replay(0, sample["action"])["video"], sample["video"])
            self._can_simulate = self.trainer.strategy.reduce_boolean_decision(is_same) if self.trainer else is_same
            if not self._can_simulate:
                rank_zero_warn(
                    f"{self.source.env} does not show the same again from the same seed and actions, so nobody knows "
                    "what other actions show, and figures that need it are left out: let reset(seed=...) set "
                    "everything, and draw all that is random from the environment's np_random"
                )
        return self._can_simulate

    def simulate(self, batch: Batch, split: Split) -> tuple[Tensor, Tensor]:
        """Play any actions in the episodes of a batch's samples: from the same seeds, rendered and located alike.

        Where other actions end an episode early, its last frame and position stay. What is random in the environment is
        what it was, unless the actions change how often it draws.

        Args:
            batch: `sample_id` `[B]` and `action` `[B, T - 1, columns]`.
            split: Split that the samples are from.

        Returns:
            Videos `[B, T, 3, H, W]` in [-1, 1], and positions in pixels, `[B, T, 2]`, on the CPU; positions are NaN
            where neither `position` nor `locator` is given.
        """
        dataset = self.episodes(split)
        pairs = zip(batch["sample_id"].tolist(), batch["action"].cpu(), strict=True)
        shown = self.collate([dataset.replay(index, action) for index, action in pairs])
        video = shown["video"]
        return video, shown.get("position", video.new_full((*video.shape[:2], 2), torch.nan))

    def episodes(self, split: Split) -> EnvironmentDataset:
        """Return the samples of a split that are kept: their environment stays open, and their seeds are known."""
        return self._replayed.setdefault(split, self.dataset(split))


def _collate(samples: list[Batch], locator: Locator | None) -> Batch:
    """Make a batch; where nothing knows the true position, what is read off the true video stands for it."""
    batch: Batch = default_collate(samples)
    if locator is not None and "position" not in batch:
        batch["position"] = locator(batch["video"])[0]
    return batch
