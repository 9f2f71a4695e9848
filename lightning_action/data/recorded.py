"""Recorded episodes as training, validation, test and predict data."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.action.schema import ActionSchema, Combine
from lightning_action.batch import Batch, num_pixel_frames
from lightning_action.data.split_data import Locator, SampleDataset, Split, SplitDataModule, SpreadSamples
from lightning_action.data.windows import WindowDataset, collate_windows
from lightning_action.ranges import require_numbers
from lightning_action.recordings.clips import Clip
from lightning_action.recordings.faults import Faults, OnFault
from lightning_action.recordings.frame_fit import FrameFit
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recorded_clip import RecordedClip, Timing
from lightning_action.recordings.recording import Episode, Recording
from lightning_action.recordings.splits import split_episodes
from lightning_action.recordings.statistics import ColumnStatistics, count_classes, measure, schema_from


class RecordedDataModule(SplitDataModule):
    """Windows of recorded episodes; subclasses say how the recording is read.

    Args:
        root: Folder of the recording, or an address such as `s3://bucket/name`, which is copied to `cache_dir`.
        num_latents: Number of latent frames of a window, which has `1 + r (num_latents - 1)` pixel frames.
        temporal_compression_ratio: Number r of pixel frames of a latent frame.
        fps: Number of frames of a second that the model sees; None takes that of the recording. Where the recording has
            s times as many, each frame has s action rows, which the schema combines.
        frame_size: Height and width of the frames of a camera: they are scaled until they cover it, and the middle is
            cut out. None takes the recorded size of the first camera, cut to multiples of `size_multiple`.
        size_multiple: Number of pixels that a side must be a multiple of: pixels of a latent times latents of a patch.
        alignment: Rule of which action rows belong to which latent frame. Row k is recorded with frame k: `transition`
            takes it for what leads to frame k + 1, `state` for what is the case at frame k.
        combine: Way in which the rows of a latent frame become one vector.
        validation_share: Share of the episodes that validation takes, at least one; 0 takes none.
        test_share: Share of the episodes that `test` and `predict` take, at least one; 0 takes none.
        window_step: Number of frames from one training window to the next. Windows of the other splits do not overlap.
        validation_size: Largest number of windows of a validation, spread over the episodes.
        test_size: Largest number of windows that `test` measures.
        predict_size: Largest number of windows that `predict` generates.
        batch_size: Number of training videos of a step, on each device.
        eval_batch_size: Number of videos of a validation, test or predict step.
        seed: Random seed of the split into training and held-out episodes, and of the order of the windows.
        num_workers: Number of processes that decode.
        bad_episodes: Way to deal with episodes that are broken, or shorter than a window: `refuse` stops and names the
            first one, `skip` goes on without them and names them.
        locator: Function that finds the object to be measured in videos, such as `ColorLocator`; None measures no
            positions.
        cache_dir: Folder that files of an address are copied to, each once; None takes `lightning_action` in the
            user's cache.
    """

    def __init__(
        self,
        root: str,
        num_latents: int = 9,
        temporal_compression_ratio: int = 4,
        fps: float | None = None,
        frame_size: tuple[int, int] | None = None,
        size_multiple: int = 16,
        alignment: Literal["transition", "state"] = "transition",
        combine: Combine = "concat",
        validation_share: float = 0.1,
        test_share: float = 0.1,
        window_step: int = 1,
        validation_size: int = 64,
        test_size: int = 128,
        predict_size: int = 8,
        batch_size: int = 8,
        eval_batch_size: int = 8,
        seed: int = 0,
        num_workers: int = 0,
        bad_episodes: OnFault = "refuse",
        locator: Locator | None = None,
        cache_dir: str | None = None,
    ) -> None:
        sizes: dict[Split, int] = {"validation": validation_size, "test": test_size, "predict": predict_size}
        super().__init__(sizes, batch_size, eval_batch_size, seed, num_workers, locator)
        require_numbers({"window_step": window_step}, 1, whole=True)
        self.root, self.cache_dir = root, cache_dir
        self.num_frames = num_pixel_frames(num_latents, temporal_compression_ratio)
        self.temporal_compression_ratio = temporal_compression_ratio
        self.fps, self.frame_size, self.size_multiple = fps, frame_size, size_multiple
        self.alignment, self.combine = alignment, combine
        self.shares = {"validation": validation_share, "test": test_share}
        self.window_step, self.bad_episodes = window_step, bad_episodes
        self.action_schema: ActionSchema | None = None
        self.statistics: list[ColumnStatistics] = []
        self._clips: dict[str, list[RecordedClip]] = {}
        self._some_action: Tensor | None = None
        self.frame_rule = ""

    @abstractmethod
    def read_recording(self, folder: LocalFolder) -> Recording:
        """Read the index of the recording; frames are decoded later."""

    def prepare_data(self) -> None:
        """Copy the files of an address, in one process of each machine."""
        folder = LocalFolder(self.root, self.cache_dir)
        if folder.is_remote:
            self.read_recording(folder)

    def setup(self, stage: str) -> None:
        """Read the index, put episodes into splits, and measure the actions of the training episodes; once.

        Raises:
            FileNotFoundError: The recording is not there.
            ValueError: The recording is broken, or holds too few episodes for all splits.
        """
        super().setup(stage)
        if self._clips:
            return
        recording = self.read_recording(LocalFolder(self.root, self.cache_dir))
        if recording.passed_over:
            rank_zero_warn(recording.passed_over)
        timing = Timing(recording.fps, self.fps or recording.fps)
        if self.combine == "sum" and recording.columns and not timing.divides:
            raise ValueError(
                f"combine: sum would count some action rows twice, for {recording.fps:g} recorded frames a second are "
                f"no multiple of fps {timing.fps:g}: choose another combine, or an fps that divides"
            )
        clips = self._long_enough(recording.episodes, timing)
        splits = split_episodes({clip.episode.index for clip in clips}, self.shares, self.seed)
        self._clips = {
            split: [clip for clip in clips if clip.episode.index in members] for split, members in splits.items()
        }
        self._measure(recording, timing)

    @property
    def action_statistics(self) -> list[dict[str, Any]]:
        """Figures of each column of the training episodes' actions."""
        return [asdict(column) for column in self.statistics]

    def clips(self, split: str) -> Sequence[Clip]:
        """Return the whole episodes of a split, at the model's frame rate; `predict` has those of `test`."""
        return self._clips["test" if split == "predict" else split]

    def dataset(self, split: Split) -> SampleDataset:
        """Return the windows of a split.

        Raises:
            ValueError: No episode is held out for the split.
        """
        clips = self.clips(split)
        if split == "train":
            return WindowDataset(clips, self.num_frames, self.window_step)
        if not clips:
            raise ValueError(
                f"no episode is held out for {split}: raise {'validation' if split == 'validation' else 'test'}_share"
            )
        return SpreadSamples(WindowDataset(clips, self.num_frames, self.num_frames), self.sizes[split])

    @property
    def collate(self) -> Callable[[Any], Batch]:
        return partial(collate_windows, some_action=self._some_action, locator=self.locator)

    def codec_videos(self, num_videos: int = 256) -> Tensor:
        """Return training videos `[num_videos, T, 3, H, W]` for fitting a codec, spread over the episodes."""
        windows = SpreadSamples(self.dataset("train"), num_videos)
        return torch.stack([windows[index]["video"] for index in range(len(windows))])

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        return super().val_dataloader() if self._clips["validation"] else []

    def _long_enough(self, episodes: Sequence[Episode], timing: Timing) -> list[RecordedClip]:
        """Make clips of episodes, and deal with those that are shorter than a window or of another size."""
        faults, found = Faults(self.bad_episodes), []
        sizes = episodes[0].frame_sizes
        fit = FrameFit.of(sizes[0], self.frame_size, self.size_multiple)
        self.frame_rule = "; ".join(
            [
                f"{timing.recorded_fps:g} a second, {timing.fps:g} to the model",
                *dict.fromkeys(fit.describe(size) for size in sizes),
                *([f"{len(sizes)} cameras side by side"] if len(sizes) > 1 else []),
            ]
        )
        for episode in episodes:
            with faults.of(", ".join(filter(None, (self.root, episode.name, episode.file)))):
                if timing.num_frames(episode.num_frames) < self.num_frames:
                    raise ValueError(
                        f"it has {timing.num_frames(episode.num_frames)} frames at {timing.fps:g} frames a second, a "
                        f"window has {self.num_frames}"
                    )
                if self.frame_size is None and episode.frame_sizes != sizes:
                    raise ValueError(
                        f"its frames are {_in_words(episode.frame_sizes)}, those of {episodes[0].name} "
                        f"{_in_words(sizes)}: give a frame_size"
                    )
                found.append(RecordedClip(episode, timing, self.alignment, fit))
        if not found:
            raise ValueError(f"no episode can be used: {faults.summary(len(episodes))}")
        if faults.found:
            rank_zero_warn(faults.summary(len(episodes)))
        return found

    def _measure(self, recording: Recording, timing: Timing) -> None:
        """Measure the actions of training episodes, and make the schema that they need."""
        rows = [clip.episode.rows for clip in self._clips["train"] if clip.episode.rows is not None]
        if not rows:
            return
        self.statistics = measure(rows, recording.columns, sum(map(len, rows)))
        every = (clip.episode.rows for clip in chain(*self._clips.values()) if clip.episode.rows is not None)
        self.action_schema = schema_from(
            self.statistics,
            count_classes(every) if recording.classes else None,
            self.alignment,
            self.combine,
            self.temporal_compression_ratio,
            timing.rows_per_frame,
        )
        acting = next(clip for clip in self._clips["train"] if clip.has_actions)
        self._some_action = acting.action(0, self.num_frames)


def _in_words(sizes: Sequence[tuple[int, int]]) -> str:
    return " and ".join(f"{height} x {width}" for height, width in sizes)
