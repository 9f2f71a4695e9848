"""A made sample is a clip of its own name and length, and nothing more is made than is asked for."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

from lightning_action.batch import Batch
from lightning_action.data.made_samples import MadeSamples
from lightning_action.data.split_data import Split
from tests.support.sprite_module import data


class Numbers(MadeSamples):
    """Frames and rows are their numbers."""

    def __init__(self, split: Split) -> None:
        super().__init__(split, seed=5, size=3, num_frames=7)
        self.made: list[str] = []

    def command(self, index: int) -> Batch:
        raise AssertionError("a clip needs no command, for which an environment would play")

    def prompt(self, index: int) -> str:
        return f"number {index}"

    def video(self, index: int) -> Tensor:
        self.made.append(f"video {index}")
        return torch.arange(7).reshape(7, 1, 1, 1).expand(-1, 3, 2, 4)

    def action(self, index: int) -> Tensor:
        self.made.append(f"action {index}")
        return torch.arange(6)[:, None]


def test_a_clip_makes_what_is_read() -> None:
    samples = Numbers("validation")
    clips = samples.clips(fps=12.0)
    assert [clip.name for clip in clips] == [f"validation-{index}-seed-5" for index in range(3)]
    clip = clips[1]
    assert (clip.num_frames, clip.fps, clip.prompt, clip.has_actions) == (7, 12, "number 1", True)
    assert not samples.made
    assert clip.action(2, 4).flatten().tolist() == [2, 3, 4] and samples.made == ["action 1"]
    assert clip.video(2, 4)[:, 0, 0, 0].tolist() == [2, 3, 4, 5] and samples.made == ["action 1", "video 1"]


@pytest.mark.parametrize("read", ["video", "action"])
@pytest.mark.parametrize(("start", "num_frames"), [(5, 3), (-1, 2), (8, 0)])
def test_frames_that_are_not_there_are_refused(start: int, num_frames: int, read: str) -> None:
    clip = Numbers("test").clips(fps=12.0)[2]
    with pytest.raises(ValueError, match=f"test-2-seed-5 has 7 frames, not {num_frames} from {start} on"):
        getattr(clip, read)(start, num_frames)
    assert len(clip.action(7, 0)) == len(clip.action(6, 1)) == 0 and len(clip.action(5, 2)) == 1


def test_another_process_makes_the_same_clips() -> None:
    clip = data().clips("test")[4]
    assert torch.equal(pickle.loads(pickle.dumps(clip)).video(3, 2), clip.video(3, 2))
