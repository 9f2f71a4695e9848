"""Where true videos come from; tests/unit/cli/test_evaluate_videos.py measures others against them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from lightning_action.batch import Batch, to_bytes, to_unit_range
from lightning_action.cli.true_videos import (
    DataSource,
    FileSource,
    names_by_number,
    previous_actions,
    require_long_enough,
    require_rows,
    require_rows_of_frames,
)
from lightning_action.cli.video_inputs import Inputs, VideoOptions
from lightning_action.data.split_data import SampleDataset
from lightning_action.recordings.episode_files import GivenVideo
from tests.support import sprite_module

OPTIONS = VideoOptions(Path("own"), Path("report"), truth=Path("true"))
NAMES = ("e3", "e5")


def given(frames: np.ndarray, name: str = "a.mp4") -> GivenVideo:
    """A video of frames `[T, H, W, 3]` of bytes."""
    return GivenVideo(Path(name), frames.__getitem__, len(frames), frames.shape[1:3])  # type: ignore[arg-type]


def plain(*values: int) -> dict[str, GivenVideo]:
    """Videos of 5 frames of one grey, 4 x 6 pixels."""
    pairs = zip(NAMES, values, strict=True)
    return {name: given(np.full((5, 4, 6, 3), value, np.uint8), f"{name}.mp4") for name, value in pairs}


def rows(*values: float, count: int = 4) -> dict[str, Tensor]:
    return {name: torch.full((count, 2), value) for name, value in zip(NAMES, values, strict=True)}


def test_files_are_episodes_one_by_one() -> None:
    videos = {"truth": plain(0, 255), "videos": plain(51, 102), "other": plain(153, 0), "other_truth": plain(0, 51)}
    inputs = Inputs(videos, {"actions": rows(1.0, 2.0)}, {"e3": 8})
    source = FileSource(OPTIONS, inputs)
    assert (source.kind, source.ratio, len(source)) == ("files", 4, 2)
    first, second = source
    assert (first.sample_id.tolist(), second.sample_id.tolist()) == ([8], [1]), "those that no table numbers count up"
    means = [each.mean().item() for each in (second.truth.video, second.own, first.other, second.truth_other.video)]
    assert means == pytest.approx([1, 0.4, 0.6, 0.2]) and first.own.shape == (1, 5, 3, 4, 6)
    assert first.null is None and second.action.tolist() == [[[2, 2]] * 4] and first.action_other is None
    assert first.truth.positions is None, "nobody said what colour the object has"


def test_the_first_true_video_is_the_fingerprint_of_files() -> None:
    one, same, other = (
        FileSource(OPTIONS, Inputs({"truth": plain(*values), "videos": plain(0, 0)}, {})).fingerprint
        for values in ((7, 9), (7, 8), (6, 9))
    )
    assert one == same != other


def test_true_objects_are_found_by_their_colour_and_must_be_there() -> None:
    red = np.zeros((5, 9, 12, 3), np.uint8)
    for frame in range(4):
        red[frame, 3:6, frame : frame + 3] = (255, 0, 0)
    options = VideoOptions(Path("own"), Path("report"), truth=Path("true"), object_color=(255, 0, 0))
    (episode,) = FileSource(options, Inputs({"truth": {"e": given(red)}, "videos": {"e": given(red)}}, {}))
    # The object is gone in the last frame: it was last seen where it was before.
    expected = torch.tensor([[[1.5, 4.5], [2.5, 4.5], [3.5, 4.5], [4.5, 4.5], [4.5, 4.5]]])
    torch.testing.assert_close(episode.truth.positions, expected)
    with pytest.raises(ValueError, match="b.mp4 is a true video, and nothing in it has the --object_color"):
        FileSource(options, Inputs({"truth": {"e": given(0 * red, "b.mp4")}, "videos": {"e": given(red)}}, {}))


@pytest.mark.parametrize(("num_frames", "given_frames", "ratio"), [(5, 1, 4), (6, 2, 4), (2, 1, 1)])
def test_what_is_generated_is_at_least_a_latent_frame(num_frames: int, given_frames: int, ratio: int) -> None:
    require_long_enough(num_frames, given_frames, ratio)
    with pytest.raises(ValueError, match=f"of {num_frames - 1} frames {given_frames} are given, so that fewer than"):
        require_long_enough(num_frames - 1, given_frames, ratio)


@pytest.mark.parametrize(("count", "fits"), [(8, True), (9, True), (16, True), (3, True), (7, False), (4, False)])
def test_rows_are_for_frames_steps_or_latent_frames(count: int, fits: bool) -> None:
    """Of 9 frames, which are 3 latent frames."""
    inputs = Inputs({}, {"actions": rows(1.0, 2.0, count=count)})
    if fits:
        require_rows_of_frames(inputs, 9, 4)
        return
    with pytest.raises(ValueError, match=rf"^--actions, e3: {count} rows for 9 frames; .* them \(8\), .*frame \(3\)"):
        require_rows_of_frames(inputs, 9, 4)


def test_rows_of_other_videos_are_refused() -> None:
    require_rows(Inputs({}, {"actions": rows(1.0, 2.0), "other_actions": rows(2.0, 1.0)}), (4, 2))
    with pytest.raises(ValueError, match=r"^--actions, e3: \[4, 2\] numbers \(rows, columns\), expected \[5, 2\]"):
        require_rows(Inputs({}, {"actions": rows(1.0, 2.0)}), (5, 2))
    uneven = {**rows(1.0, 2.0), "e5": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match=r"^--other_actions, e5: \[3, 2\] .* expected \[4, 2\]"):
        require_rows(Inputs({}, {"other_actions": uneven}))
    with pytest.raises(ValueError, match="^the other actions of e5 are its true ones: give others"):
        require_rows(Inputs({}, {"actions": rows(1.0, 2.0), "other_actions": rows(2.0, 2.0)}))


def test_videos_are_of_the_samples_that_their_names_number() -> None:
    named = partial(Inputs, {"videos": plain(0, 0)}, {})
    assert names_by_number(Path("own"), "test", named(), [3, 5]) == {3: "e3", 5: "e5"}
    assert names_by_number(Path("own"), "test", named({"e3": 1, "e5": 0}), [0, 1]) == {1: "e3", 0: "e5"}
    with pytest.raises(
        ValueError, match=r"^own has no 4, and has 5, .* a video of each test sample, .*data.test_size=N"
    ):
        names_by_number(Path("own"), "test", named(), [3, 4])


class Commands(SampleDataset):
    def __init__(self, *actions: Tensor | None) -> None:
        self.actions = actions

    def __len__(self) -> int:
        return len(self.actions)

    def command(self, index: int) -> Batch:
        return {"sample_id": 10 + index, "action": self.actions[index], "prompt": ""}


def test_other_actions_are_those_of_the_sample_before() -> None:
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]])
    assert dict(previous_actions(Commands(first, None, second))) == {10: second, 11: first, 12: None}
    ((number, backwards),) = previous_actions(Commands(first))
    assert number == 10 and backwards.tolist() == [[2], [1]]
    assert dict(previous_actions(Commands(None))) == {10: None}


def test_samples_of_data_are_the_truth(tmp_path: Path) -> None:
    """Of a simulator, which also knows what the actions of the sample before would have shown."""
    data = sprite_module.data(test_size=3, num_latents=3, eval_batch_size=2)
    batch = data.dataset("test").batch(range(3))
    world = {"class_path": "lightning_action.MovingSpriteWorld", "init_args": {"image_size": 16, "sprite_radius": 3.0}}
    sizes: dict[str, Any] = {"world": world, "num_latents": 3, "test_size": 3, "eval_batch_size": 2, "batch_size": 2}
    section = {"class_path": "lightning_action.SpriteDataModule", "init_args": sizes}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"data": section}))
    frames = to_bytes(batch["video"]).permute(0, 1, 3, 4, 2).numpy()
    videos = {f"video_{number}": given(each) for number, each in enumerate(frames)}
    options = VideoOptions(Path("own"), Path("report"), config=[str(tmp_path / "config.yaml")])
    source = DataSource(options, Inputs({"videos": videos, "other": videos}, {}))
    assert (source.kind, source.ratio, len(source)) == ("SpriteDataModule", 4, 2)
    assert source.schema == data.action_schema
    episodes = list(source)
    assert [episode.sample_id.tolist() for episode in episodes] == [[0, 1], [2]]
    assert torch.equal(episodes[0].truth.video, to_unit_range(batch["video"][:2]))
    # Bytes round to half of one.
    torch.testing.assert_close(episodes[1].own, to_unit_range(batch["video"][2:]), atol=0.5 / 255 + 1e-6, rtol=0)
    others = batch["action"].roll(1, dims=0)
    assert torch.equal(episodes[0].action, batch["action"][:2])
    assert torch.equal(torch.cat([episode.action_other for episode in episodes]), others)
    played, positions = data.simulate({**batch, "action": others}, "test")
    assert torch.equal(episodes[1].truth_other.video, to_unit_range(played[2:]))
    assert torch.equal(episodes[1].truth_other.positions, positions[2:])
    assert episodes[0].read_positions is not None
