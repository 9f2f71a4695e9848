from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.video_inputs import Inputs, VideoOptions, find_inputs, read_video
from lightning_action.recordings.episode_files import GivenVideo

VIDEOS, TRUTH, OTHER = Path("videos"), Path("truth"), Path("other")


def options(**changes: Any) -> VideoOptions:
    return VideoOptions(**{"videos": VIDEOS, "output": Path("report"), "truth": TRUTH, **changes})


def video(num_frames: int = 5, height: int = 4, width: int = 6, path: str = "a.mp4") -> GivenVideo:
    """Frames whose bytes are ten times their number."""

    def frames(numbers: list[int]) -> np.ndarray:
        return np.stack([np.full((height, width, 3), 10 * number, np.uint8) for number in numbers])

    return GivenVideo(Path(path), frames, num_frames, (height, width))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": None}, "what is true"),
        ({"config": ["a.yaml"]}, "what is true"),
        ({"truth": None, "config": ["a.yaml"], "actions": OTHER}, "--actions and --object_color are for --truth"),
        ({"other_truth": OTHER}, "say what --other, videos under other actions, is about"),
        ({"settings": ["--data.seed=3"]}, "^--data.seed=3 is for the data of --config"),
        ({"split": "predict"}, "^--split is for the data of --config"),
        ({"inverse_dynamics": OTHER}, "needs true ones to compare them with: give --actions"),
        ({"truth": Path("truth/../videos")}, "the same folder"),
    ],
)
def test_options_that_say_nothing_together_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        options(**changes)


@pytest.mark.parametrize("name", ["num_initial_frames", "temporal_compression_ratio"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        options(**{name: 0})


def test_the_output_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(FileExistsError, match="report is no folder: --output is the folder of"):
        options(output=tmp_path / "report")


def test_only_what_was_given_has_a_path() -> None:
    given = options(other=OTHER, actions=Path("actions.npz"))
    assert given.paths == {"videos": VIDEOS, "truth": TRUTH, "other": OTHER, "actions": Path("actions.npz")}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (video(4, path="b.mp4"), "b.mp4 has 4 frames, the true videos have 5, given ones included"),
        (
            video(5, 8, 6, "b.mp4"),
            "b.mp4 is 8 x 6, the true videos are 4 x 6: write it in their size, or give --resize",
        ),
    ],
)
def test_videos_of_another_size_are_refused(given: GivenVideo, message: str) -> None:
    inputs = Inputs({"videos": {"a": video()}, "null": {"a": given}}, {})
    with pytest.raises(ValueError, match=message):
        inputs.require_size((5, 4, 6))
    Inputs({"videos": {"a": video(5, 8, 6)}}, {}, resize=True).require_size((5, 4, 6))


def test_videos_are_read_by_name() -> None:
    inputs = Inputs({"videos": {"a": video(), "b": video()}, "null": {"b": video(), "a": video()}}, {})
    assert inputs.names == ["a", "b"] and inputs.read("other", ["a"], (4, 6)) is None
    read = inputs.read("null", ["b", "a"], (4, 6))
    assert read is not None and read.shape == (2, 5, 3, 4, 6)
    torch.testing.assert_close(read[1, :, 0, 0, 0], torch.tensor([0, 10, 20, 30, 40]) / 255)
    assert read_video(video(5, 8, 12), (4, 6)).shape == (5, 3, 4, 6)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of two episodes of 2 and 3 pictures, and actions of both."""
    for kind in ("own", "true"):
        for episode, count in ((10, 2), (9, 3)):
            (tmp_path / kind / f"e{episode}").mkdir(parents=True)
            for frame in range(count):
                Image.new("RGB", (6, 4)).save(tmp_path / kind / f"e{episode}" / f"{frame}.png")
    rows = {f"e{episode}": np.full((1, 2), episode) for episode in (9, 10)}
    np.savez(tmp_path / "rows.npz", **rows)
    (tmp_path / "tables").mkdir()
    for name, table in rows.items():
        np.save(tmp_path / f"tables/{name}.npy", table)
    return tmp_path


def test_files_of_one_name_go_together(folder: Path) -> None:
    inputs = find_inputs(options(videos=folder / "own", truth=folder / "true", actions=folder / "rows.npz"))
    assert inputs.names == ["e9", "e10"] and inputs.videos.keys() == {"videos", "truth"} and inputs.numbers == {}
    assert [inputs.videos["truth"][name].num_frames for name in inputs.names] == [3, 2]
    assert {name: rows.tolist() for name, rows in inputs.actions["actions"].items()} == {
        "e9": [[9, 9]],
        "e10": [[10, 10]],
    }


def test_a_manifest_says_what_goes_together(folder: Path) -> None:
    (folder / "table.csv").write_text("videos,truth,actions,sample_id\ne9,e10,e10.npy,7\n")
    given = options(
        videos=folder / "own",
        truth=folder / "true",
        actions=folder / "tables",
        manifest=folder / "table.csv",
        resize=True,
    )
    inputs = find_inputs(given)
    assert (inputs.names, inputs.numbers, inputs.resize) == (["e9"], {"e9": 7}, True)
    assert inputs.videos["truth"]["e9"].num_frames == 2 and inputs.actions["actions"]["e9"].tolist() == [[10, 10]]
