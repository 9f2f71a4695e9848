from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_action.recordings.frame_fit import FrameFit


@pytest.mark.parametrize(
    ("source", "wanted", "size", "said"),
    [
        ((480, 640), None, (480, 640), "480 x 640"),
        ((487, 650), None, (480, 640), "487 x 650, middle cut to 480 x 640"),
        ((480, 640), (480, 832), (480, 832), "480 x 640, scaled to 624 x 832, middle cut to 480 x 832"),
        ((720, 1280), (480, 832), (480, 832), "720 x 1280, scaled to 480 x 853, middle cut to 480 x 832"),
        ((32, 32), (64, 64), (64, 64), "32 x 32, scaled to 64 x 64"),
    ],
)
def test_the_rule(source: tuple[int, int], wanted: tuple[int, int] | None, size: tuple[int, int], said: str) -> None:
    fit = FrameFit.of(source, wanted, 16)
    assert (fit.height, fit.width) == size
    assert fit.describe(source) == said
    assert fit(np.zeros((2, *source, 3), np.uint8)).shape == (2, 3, *size)


def test_the_middle_is_kept_and_black_is_minus_one() -> None:
    frames = np.zeros((1, 16, 22, 3), np.uint8)
    frames[:, :, 3] = 255
    video = FrameFit.of((16, 22), None, 16)(frames)
    assert video[0, :, 0, 0].tolist() == [1.0] * 3
    assert video[..., 1:].unique().tolist() == [-1.0]


def test_scaling_is_linear_and_keeps_the_mean() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    video = FrameFit.of((64, 64), (16, 16), 16)(frames)
    assert torch.allclose(video.mean(), torch.tensor(frames.mean() / 127.5 - 1, dtype=torch.float32), atol=0.01)


@pytest.mark.parametrize(("source", "wanted"), [((8, 40), None), ((64, 64), (60, 64)), ((64, 64), (0, 64))])
def test_sizes_without_whole_patches_are_refused(source: tuple[int, int], wanted: tuple[int, int] | None) -> None:
    with pytest.raises(ValueError, match="expected frames with sides of multiples of 16"):
        FrameFit.of(source, wanted, 16)
