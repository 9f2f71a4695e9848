from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lightning_action.data.video_folder import VideoFolderDataModule
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Recording


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of five pictures, actions of another name, and a table that puts them together."""
    (tmp_path / "ball").mkdir()
    for number in range(5):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(tmp_path / f"ball/{number}.png")
    np.save(tmp_path / "moves.npy", np.arange(10, dtype=np.float32).reshape(5, 2))
    (tmp_path / "table.csv").write_text("video,actions,prompt\nball,moves.npy,a ball\n")
    return tmp_path


def read(folder: Path, **settings: object) -> Recording:
    data = VideoFolderDataModule(str(folder), num_latents=2, **settings)  # type: ignore[arg-type]
    return data.read_recording(LocalFolder(str(folder)))


def test_files_go_together_by_their_names(folder: Path) -> None:
    (episode,) = read(folder, recorded_fps=7).episodes
    assert (episode.name, episode.prompt, episode.rows, episode.num_frames) == ("ball", "", None, 5)
    assert episode.cameras[0]([3])[0, 0, 0].tolist() == [3, 0, 0]


def test_a_manifest_says_otherwise(folder: Path) -> None:
    recording = read(folder, recorded_fps=7, manifest="table.csv")
    (episode,) = recording.episodes
    assert recording.fps == 7 and episode.prompt == "a ball" and episode.frame_sizes == ((8, 12),)
    assert np.asarray(episode.rows).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]


def test_pictures_say_no_rate(folder: Path) -> None:
    with pytest.raises(ValueError, match="recorded_fps"):
        read(folder)
