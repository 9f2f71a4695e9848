"""Folders of videos with actions beside them."""

from __future__ import annotations

from typing import Any

from lightning_action.data.recorded import RecordedDataModule
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Recording
from lightning_action.recordings.video_folder import read_video_folder


class VideoFolderDataModule(RecordedDataModule):
    """Windows of the videos of a folder.

    A video is a file, or a folder of pictures. Beside it lie its action rows under the same name (`.npz`, `.npy`,
    `.json`, `.csv` or `.parquet`; a row for each frame, or for each but the last) and its caption (`.txt`). Videos
    without actions train without them.

    Args:
        root: Folder of the videos, or an address such as `s3://bucket/name`, which is copied to `cache_dir`.
        manifest: Table in the folder (`.csv`, `.json` or `.jsonl`) that says with `video`, `actions` and `prompt` which
            files belong together; None goes by their names.
        recorded_fps: Number of frames of a second of folders of pictures; video files say their own.
        kwargs: Arguments of `RecordedDataModule`.
    """

    def __init__(
        self, root: str, manifest: str | None = None, recorded_fps: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(root, **kwargs)
        self.manifest, self.recorded_fps = manifest, recorded_fps

    def read_recording(self, folder: LocalFolder) -> Recording:
        """Read the names of the videos, their lengths and their action rows."""
        return read_video_folder(folder, self.recorded_fps, self.manifest, self.bad_episodes)
