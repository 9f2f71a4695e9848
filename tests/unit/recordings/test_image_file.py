from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_action.recordings.image_file import read_image


def test_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    image = read_image(path, None)
    assert image.shape == (3, 5, 7)
    assert torch.equal(((image + 1) * 127.5).round().byte().permute(1, 2, 0), torch.from_numpy(pixels))
    with pytest.raises(ValueError, match="is 5 x 7, expected 7 x 5"):
        read_image(path, (7, 5))
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(ValueError, match="not a picture"):
        read_image(tmp_path / "b.png", None)
    with pytest.raises(FileNotFoundError, match="no image at"):
        read_image(tmp_path / "c.png", None)


_SPOT = np.array([[[250, 0, 0], [0, 240, 0], [0, 0, 230]], [[20, 30, 40], [90, 80, 70], [255, 255, 255]]], np.uint8)
_TURNED = [
    lambda a: a,
    lambda a: a[:, ::-1],
    lambda a: a[::-1, ::-1],
    lambda a: a[::-1],
    lambda a: a.swapaxes(0, 1),
    lambda a: a.swapaxes(0, 1)[:, ::-1],
    lambda a: a[::-1, ::-1].swapaxes(0, 1),
    lambda a: a.swapaxes(0, 1)[::-1],
]


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_before_they_are_measured(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(_SPOT).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    expected = _TURNED[orientation - 1](_SPOT)
    pixels = read_image(path, expected.shape[:2])
    assert torch.equal(((pixels + 1) * 127.5).round().byte().permute(1, 2, 0), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize(
    ("mode", "color", "suffix", "expected"),
    [
        ("I;16", 13107, "png", [51] * 3),
        ("I;16B", 13107, "tiff", [51] * 3),
        ("L", 51, "bmp", [51] * 3),
        ("1", 1, "png", [255] * 3),
        ("P", 0, "gif", [0] * 3),
        ("LA", (51, 0), "png", [255] * 3),
        ("LA", (51, 255), "png", [51] * 3),
        ("RGBA", (255, 0, 0, 51), "png", [255, 204, 204]),
        ("CMYK", (0, 255, 255, 0), "tiff", [255, 0, 0]),
        ("YCbCr", (51, 128, 128), "tiff", [51] * 3),
        ("LAB", (255, 128, 128), "tiff", [254, 255, 254]),
    ],
)
def test_modes(tmp_path: Path, mode: str, color: Any, suffix: str, expected: list[int]) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.new(mode, (7, 5), color).save(path)
    pixels = ((read_image(path, (5, 7)) + 1) * 127.5).round()
    assert pixels[:, 2, 3].tolist() == expected


def test_a_transparent_color_lies_on_white(tmp_path: Path) -> None:
    for mode, color in (("P", 3), ("L", 3), ("RGB", (3, 4, 5))):
        image = Image.new(mode, (7, 5), color)
        if mode == "P":
            image.putpalette([10, 20, 30] * 256)
        image.save(tmp_path / "a.png", transparency=color)
        assert bool((read_image(tmp_path / "a.png", None) == 1).all()), mode


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    small = Image.new("RGB", (7, 5), "red")
    small.save(tmp_path / "eps.png", "EPS")
    small.save(tmp_path / "whole.png")
    small.save(tmp_path / "frames.gif", save_all=True, append_images=[Image.new("RGB", (7, 5), "blue")])
    Image.new("F", (7, 5), 0.5).save(tmp_path / "deep.tiff")
    Image.new("I", (7, 5), 70000).save(tmp_path / "whole_numbers.tiff")
    Image.new("1", (8200, 8200)).save(tmp_path / "large.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:50])
    (tmp_path / "empty.png").write_bytes(b"")
    messages = {
        "eps.png": "not a picture that can be read: expected one of PNG",
        "frames.gif": "holds 2 frames",
        "deep.tiff": "mode F,",
        "whole_numbers.tiff": "mode I,",
        "large.png": "8200 x 8200, expected at most",
        "cut.png": "cut off or broken",
        "empty.png": "not a picture",
    }
    for name, message in messages.items():
        with pytest.raises(ValueError, match=f"{name} .*{message}"):
            read_image(tmp_path / name, None)


@pytest.mark.parametrize(("tag", "usual", "other"), [(258, 16, 12), (262, 1, 0)], ids=["12_bits", "white_is_0"])
def test_deep_grey_of_another_scale_is_refused(tmp_path: Path, tag: int, usual: int, other: int) -> None:
    path = tmp_path / "a.tiff"
    Image.new("I;16", (7, 5), 4000).save(path)
    entry = struct.pack("<HHIH", tag, 3, 1, usual)
    assert path.read_bytes().count(entry) == 1
    read_image(path, (5, 7))
    path.write_bytes(path.read_bytes().replace(entry, struct.pack("<HHIH", tag, 3, 1, other)))
    with pytest.raises(ValueError, match="a.tiff is grey of other than 16 bits, or with white as 0"):
        read_image(path, None)


def test_a_transparent_value_of_deep_grey_lies_on_white(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture = Image.new("I;16", (7, 5), 13107)
    picture.putpixel((3, 2), 300)
    picture.save(path, transparency=300)
    pixels = ((read_image(path, None) + 1) * 127.5).round()
    assert pixels[:, 2, 3].tolist() == [255] * 3 and pixels[:, 0, 0].tolist() == [51] * 3


@pytest.mark.parametrize("suffix", ["gif", "tiff"])
def test_files_broken_anywhere_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    first, second = Image.new("RGB", (7, 5), "red"), Image.new("RGB", (7, 5), "blue")
    first.save(path, save_all=True, append_images=[second])
    whole = path.read_bytes()
    refused = 0
    for length in range(len(whole)):
        path.write_bytes(whole[:length] + (b"\0" * (len(whole) - length) if suffix == "tiff" else b""))
        try:
            read_image(path, None)  # whole where only the second frame is gone
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(whole) / 2
