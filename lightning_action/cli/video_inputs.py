"""Inputs that a user gives to `evaluate --videos`: folders, and what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from lightning_action.cli.support.mistakes import UsageError
from lightning_action.ranges import require_numbers
from lightning_action.recordings.episode_files import (
    GivenVideo,
    find_actions,
    match_by_manifest,
    match_by_name,
    open_given_video,
)
from lightning_action.recordings.tables import read_actions

Size = tuple[int, int, int]
"""Number of frames, height and width."""

VIDEOS = ("videos", "truth", "other", "other_truth", "null")
ACTIONS = ("actions", "other_actions")


@dataclass(frozen=True)
class VideoOptions:
    """Options of what is compared, and how; see `evaluate --help`.

    Args:
        videos: Folder of videos that were made under the true actions.
        output: Folder of the reports.
        config: Configurations whose `data` has the true videos; none takes them from `truth`.
        truth: Folder of true videos, where there is no configuration.
        other: Folder of videos under other actions, from the same starts and noise.
        other_truth: Folder of true videos under the other actions.
        null: Folder of videos without actions.
        actions: Folder or file of the true actions, where there is no configuration.
        other_actions: Folder or file of the other actions.
        manifest: Table that says which files belong together.
        settings: Further arguments of the data.
        allow: Modules whose classes the configuration may name.
        split: Samples of the data that the videos are of; None for `test`.
        num_initial_frames: Number of pixel frames that were given.
        temporal_compression_ratio: Number of pixel frames over which displacements are taken; None takes the data's.
        object_color: Red, green and blue of the object whose positions are compared, where the data knows none.
        inverse_dynamics: Folder of a model that reads actions off videos, where nobody knows positions.
        resize: True scales videos of another size to that of the true ones.
    """

    videos: Path
    output: Path
    config: Sequence[str] = ()
    truth: Path | None = None
    other: Path | None = None
    other_truth: Path | None = None
    null: Path | None = None
    actions: Path | None = None
    other_actions: Path | None = None
    manifest: Path | None = None
    settings: Sequence[str] = ()
    allow: Sequence[str] = ()
    split: Literal["test", "predict"] | None = None
    num_initial_frames: int = 1
    temporal_compression_ratio: int | None = None
    object_color: Sequence[int] | None = None
    inverse_dynamics: Path | None = None
    resize: bool = False

    def __post_init__(self) -> None:
        require_numbers({"num_initial_frames": self.num_initial_frames}, 1, whole=True)
        if self.temporal_compression_ratio is not None:
            require_numbers({"temporal_compression_ratio": self.temporal_compression_ratio}, 1, whole=True)
        if bool(self.config) == (self.truth is not None):
            raise UsageError("what is true? Give --truth, a folder of videos, or --config, whose data has them")
        if self.config and (self.actions or self.object_color):
            raise UsageError("--actions and --object_color are for --truth: with --config, the data has them")
        if self.other is None and (self.other_actions or self.other_truth):
            raise UsageError("--other_actions and --other_truth say what --other, videos under other actions, is about")
        if (self.settings or self.split) and not self.config:
            what = self.settings[0] if self.settings else "--split"
            raise UsageError(f"{what} is for the data of --config: give one")
        if self.inverse_dynamics is not None and self.truth is not None and self.actions is None:
            raise UsageError(
                "--inverse_dynamics reads actions, and needs true ones to compare them with: give --actions"
            )
        if self.truth is not None and self.truth.resolve() == self.videos.resolve():
            raise UsageError("--videos and --truth are the same folder: true videos obey by definition")
        if self.output.exists() and not self.output.is_dir():
            raise FileExistsError(f"{self.output} is no folder: --output is the folder of report.json and report.html")

    @property
    def paths(self) -> dict[str, Path]:
        """Folders and files that were given, by what they hold."""
        given = {kind: getattr(self, kind) for kind in (*VIDEOS, *ACTIONS)}
        return {kind: path for kind, path in given.items() if path is not None}


@dataclass(frozen=True)
class Inputs:
    """Videos and actions by the names of the episodes.

    Args:
        videos: Videos by what they are: `videos`, `truth`, `other`, `other_truth`, `null`.
        actions: Action rows by what they are: `actions`, `other_actions`.
        numbers: Numbers of the episodes, where a manifest has them.
        resize: True scales videos of another size.
    """

    videos: dict[str, dict[str, GivenVideo]]
    actions: dict[str, dict[str, Tensor]]
    numbers: dict[str, int] = field(default_factory=dict)
    resize: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the episodes."""
        return list(self.videos["videos"])

    def read(self, kind: str, names: Sequence[str], size: tuple[int, int]) -> Tensor | None:
        """Read videos `[B, T, 3, H, W]` in [0, 1]; None where there are none of this kind."""
        if kind not in self.videos:
            return None
        return torch.stack([read_video(self.videos[kind][name], size) for name in names])

    def require_size(self, size: Size) -> None:
        """Refuse videos of another length or size.

        Raises:
            ValueError: A video has another length or size; the message says what to do.
        """
        for video in (video for videos in self.videos.values() for video in videos.values()):
            if video.num_frames != size[0]:
                raise ValueError(
                    f"{video.path} has {video.num_frames} frames, the true videos have {size[0]}, given ones included: "
                    "write all of them, or cut both to one length (--data.num_latents sets that of a configuration's)"
                )
            if video.frame_size != size[1:] and not self.resize:
                (height, width), (own_height, own_width) = size[1:], video.frame_size
                raise ValueError(
                    f"{video.path} is {own_height} x {own_width}, the true videos are {height} x {width}: write it in "
                    "their size, or give --resize, which scales it"
                )


def find_inputs(options: VideoOptions) -> Inputs:
    """Find all files, put them together, and look at each."""
    folders = options.paths
    numbers: dict[str, int] = {}
    if options.manifest is None:
        files = match_by_name({kind: path for kind, path in folders.items() if kind in VIDEOS})
        names = list(files["videos"])
        actions = {kind: find_actions(folders[kind], names) for kind in ACTIONS if kind in folders}
    else:
        files, numbers = match_by_manifest(options.manifest, folders)
        tables = {kind: files.pop(kind) for kind in ACTIONS if kind in files}
        actions = {kind: {name: read_actions(path) for name, path in paths.items()} for kind, paths in tables.items()}
    total = sum(map(len, files.values()))
    with tqdm(desc="looking at videos", unit="video", total=total, leave=False) as bar:

        def look(path: Path) -> GivenVideo:
            bar.update()
            return open_given_video(path)

        videos = {kind: {name: look(path) for name, path in paths.items()} for kind, paths in files.items()}
    return Inputs(videos, actions, numbers, options.resize)


def read_video(video: GivenVideo, size: tuple[int, int]) -> Tensor:
    """Read a video `[T, 3, H, W]` in [0, 1], and scale it where it is of another height and width than `size`."""
    frames = torch.from_numpy(video.read()).permute(0, 3, 1, 2)
    if video.frame_size != size:
        frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True)
    return frames.float() / 255
