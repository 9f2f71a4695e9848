"""Videos of the demo's world that kill the process which reads them, once."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_action.data.made_samples import SampleClip
from lightning_action.data.split_data import Split
from lightning_action.data.sprite_data import SpriteDataModule


@dataclass(frozen=True)
class WatchedClip(SampleClip):
    """Notes each reading in a file; the process dies when the file has `dies_at` lines."""

    source: WatchedSprites

    def video(self, start: int, num_frames: int) -> Tensor:
        if num_frames > 1:
            with self.source.watch.open("a") as file:
                file.write(f"{self.name}\n")
            if len(self.source.watch.read_text().splitlines()) == self.source.dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().video(start, num_frames)


class WatchedSprites(SpriteDataModule):
    """The demo's data, watched.

    Args:
        watch: File that names of clips are noted in.
        dies_at: Number of readings after which the process dies.
        kwargs: Arguments of `SpriteDataModule`.
    """

    def __init__(self, watch: str, dies_at: int = -1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.watch, self.dies_at = Path(watch), dies_at

    def clips(self, split: Split) -> list[SampleClip]:
        return [WatchedClip(clip.samples, clip.index, clip.fps, self) for clip in super().clips(split)]
