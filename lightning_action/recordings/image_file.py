"""The one door for pictures that a user gives."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lightning_action.batch import from_unit_range

if TYPE_CHECKING:
    from PIL import Image

# Pillow would otherwise hand a file to whatever its first bytes ask for, other programs included.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 2**26

_COLORS = {"1", "L", "P", "PA", "LA", "La", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
_DEEP = {"I;16", "I;16L", "I;16B", "I;16N"}
# Pillow turns these into RGB, but not into RGBA.
_WITHOUT_ALPHA = {"CMYK", "YCbCr", "LAB", "HSV"}


def read_image(path: str | Path, frame_size: tuple[int, int] | None) -> Tensor:
    """Read a picture as pixels `[3, H, W]` in [-1, 1], as a viewer shows it.

    It is turned and mirrored as its EXIF orientation says; 16-bit grey is scaled; what is transparent lies on white.

    Args:
        path: File of one of `FORMATS`, of one frame and at most `MAX_PIXELS` pixels.
        frame_size: Height and width that the picture must have, after turning; None takes any.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is no such picture, cut off, of a mode that has no scale, or not of `frame_size`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no image at {path}")
    pixels = _decode(Path(path))
    if frame_size is not None and tuple(pixels.shape[:2]) != tuple(frame_size):
        raise ValueError(f"{path} is {pixels.shape[0]} x {pixels.shape[1]}, expected {frame_size[0]} x {frame_size[1]}")
    return from_unit_range(torch.from_numpy(pixels).permute(2, 0, 1))


def _decode(path: Path) -> np.ndarray:
    """Convert to float32 `[H, W, 3]` in [0, 1]."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    expected = f"expected one of {', '.join(FORMATS)}"
    # Opened here, so that an error of the machine is not taken for one of the picture.
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is not a picture that can be read: {expected}") from error
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path} has more than {MAX_PIXELS} pixels: make it smaller") from error
        except Exception as error:  # decoders of broken files raise whatever they meet
            raise ValueError(f"{path} is broken ({error}): {expected}") from error
        _require_readable(path, image)
        with _blaming(path):
            frames = getattr(image, "n_frames", 1)  # a plain Image has none
        # A phone's JPEG may carry previews and depth behind the photo, which Pillow calls MPO.
        if frames > 1 and image.format != "MPO":
            raise ValueError(f"{path} holds {frames} frames, expected one: save the frame to start from by itself")
        with _blaming(path):
            return _to_unit_rgb(ImageOps.exif_transpose(image))


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Decode a picture; decoders of broken files raise whatever they meet."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is cut off or broken ({error}): save it again") from error


def _require_readable(path: Path, image: Image.Image) -> None:
    """Refuse a picture by its header alone, before anything is decoded."""
    from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, TiffImageFile

    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{path} is {height} x {width}, expected at most {MAX_PIXELS} pixels: make it smaller")
    if image.mode not in _COLORS | _DEEP:
        raise ValueError(
            f"{path} is a picture of mode {image.mode}, whose values have no known scale: save it with 8 bits a channel"
        )
    # Pillow gives grey of 12 bits, and grey whose zero is white, as if it were usual 16-bit grey.
    if isinstance(image, TiffImageFile) and image.mode in _DEEP:
        bits, zero_is_black = image.tag_v2.get(BITSPERSAMPLE), image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 1
        if bits != (16,) or not zero_is_black:
            raise ValueError(f"{path} is grey of other than 16 bits, or with white as 0: save it with 8 bits a channel")


def _to_unit_rgb(image: Image.Image) -> np.ndarray:
    from PIL import Image

    if image.mode in _DEEP:
        values = np.asarray(image)
        # PNG may name one grey value that is transparent.
        grey = np.where(values == image.info.get("transparency"), 1, values / np.float32(65535)).astype(np.float32)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in _WITHOUT_ALPHA:
        image = image.convert("RGB")
    straight = {"La": "LA", "RGBa": "RGBA"}
    if image.mode in straight:
        image = image.convert(straight[image.mode])
    visible = image.convert("RGBA")
    white = Image.new("RGBA", visible.size, "white")
    rgb = Image.alpha_composite(white, visible).convert("RGB")
    return np.asarray(rgb).astype(np.float32) / 255
