"""LeRobot data sets."""

from __future__ import annotations

from typing import Any

from lightning_action.data.recorded import RecordedDataModule
from lightning_action.recordings.lerobot import read_lerobot
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Recording


class LeRobotDataModule(RecordedDataModule):
    """Windows of the episodes of a LeRobot data set, in version 2.0, 2.1 or 3.0 of the format.

    Args:
        root: Folder of the data set, or an address such as `s3://bucket/name`, which is copied to `cache_dir`.
        cameras: Names of the features that show the video, such as `observation.images.top`; several are shown side by
            side. None takes the first one.
        action_keys: Names of the features whose columns make an action row; None takes `action`, and no
            actions where there is none; an empty list takes no actions.
        episodes: Numbers of the episodes to use; None takes all.
        exclude: Numbers of episodes to leave out; None leaves out none.
        kwargs: Arguments of `RecordedDataModule`.
    """

    def __init__(
        self,
        root: str,
        cameras: list[str] | None = None,
        action_keys: list[str] | None = None,
        episodes: list[int] | None = None,
        exclude: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, **kwargs)
        self.cameras, self.action_keys = cameras, action_keys
        self.episodes, self.exclude = episodes, exclude or []

    def read_recording(self, folder: LocalFolder) -> Recording:
        """Read the index of the data set, and its action rows."""
        return read_lerobot(folder, self.cameras, self.action_keys, self.episodes, self.exclude, self.bad_episodes)
