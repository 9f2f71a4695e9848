"""The frames of a block as one picture."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from lightning_action.play.image_encoding import choose_format, encode, strip

FRAMES = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)


def decode(content: bytes, kind: str) -> np.ndarray:
    image = Image.open(BytesIO(content))
    assert image.format == kind.upper()
    return np.asarray(image.convert("RGB"))


def test_frames_stand_below_each_other_and_the_truth_beside() -> None:
    joined = strip(FRAMES, 255 - FRAMES)
    assert joined.shape == (15, 14, 3)
    assert np.array_equal(joined[5:10, :7], FRAMES[1]) and np.array_equal(joined[5:10, 7:], 255 - FRAMES[1])
    assert np.array_equal(strip(FRAMES), FRAMES.reshape(15, 7, 3))


def test_small_frames_keep_every_bit_and_large_ones_are_small() -> None:
    assert choose_format(128, 128) == "webp" and choose_format(480, 832) == "jpeg"
    assert np.array_equal(decode(encode(strip(FRAMES), "webp"), "webp"), strip(FRAMES))
    ramp = np.broadcast_to(np.arange(0, 240, 2, np.uint8)[:, None, None], (120, 90, 3))
    content = encode(ramp, "jpeg")
    assert len(content) < 4000
    assert np.abs(decode(content, "jpeg").astype(int) - ramp).max() <= 3


@pytest.mark.parametrize("image_format", ["webp", "jpeg"])
def test_views_are_encoded(image_format: str) -> None:
    view = FRAMES[::2, ::-1].reshape(10, 7, 3)
    assert decode(encode(view, image_format), image_format).shape == (10, 7, 3)  # type: ignore[arg-type]
