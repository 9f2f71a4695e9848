"""Videos as people look at them: enlarged, side by side, with the commanded action; and files that are whole or absent.

A video is `[T, 3, H, W]`, floats in [0, 1] or uint8; what comes out of a function that draws is uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from .files import replacing

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Painter: TypeAlias = "Callable[[ImageDraw.ImageDraw, Tensor | None], None]"
"""Draws an action row, or that there is none, on a transparent picture."""

CAPTION_HEIGHT = 24
GAP = 8

_BACKGROUND = (24, 24, 24)
_WHITE = (255, 255, 255)
_SHADE = (0, 0, 0, 150)
_POSITIVE = (255, 150, 30)
_NEGATIVE = (80, 180, 255)
# Pillow draws without smoothing: badges are drawn this much larger, then scaled down.
_OVERSAMPLING = 4


def to_uint8(video: Tensor) -> Tensor:
    """Floats in [0, 1] to uint8 on the CPU; what is uint8 already stays as it is."""
    if video.dtype != torch.uint8:
        video = (video.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return video.cpu()


def enlarge(video: Tensor, min_side: int = 240) -> Tensor:
    """Repeat pixels until the shorter side has at least `min_side` of them, so that each stays a sharp square."""
    factor = max(1, -(-min_side // min(video.shape[-2:])))
    return video.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def shrink(video: Tensor, max_side: int) -> Tensor:
    """Average squares of pixels until the longer side has at most `max_side` of them; give floats or the original."""
    factor = -(-max(video.shape[-2:]) // max_side)
    if factor == 1:
        return video
    video = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    return F.avg_pool2d(video, factor, ceil_mode=True, count_include_pad=False)


def side_by_side(videos: Sequence[Tensor], captions: Sequence[str]) -> Tensor:
    """Videos of one length and height from left to right, each under its caption: `[T, 3, CAPTION_HEIGHT + H, ...]`."""
    columns = []
    for video, caption in zip(videos, captions, strict=True):
        strip = _caption(caption, width=video.shape[-1]).expand(len(video), -1, -1, -1)
        column = torch.cat([strip, to_uint8(video)], dim=-2)
        columns += [_background(column, GAP), column]
    return torch.cat(columns[1:], dim=-1)


def in_grid(videos: Sequence[Tensor], captions: Sequence[str], num_columns: int) -> Tensor:
    """Place videos as `side_by_side` does, but in rows of at most `num_columns` videos, all of one size."""
    rows: list[Tensor] = []
    for start in range(0, len(videos), num_columns):
        row = side_by_side(videos[start : start + num_columns], captions[start : start + num_columns])
        missing = (rows[0].shape[-1] if rows else row.shape[-1]) - row.shape[-1]
        rows.append(torch.cat([row, _background(row, missing)], dim=-1))
    return torch.cat(rows, dim=-2)


def beside_truth(video: Tensor, truth: Tensor | None, action: Tensor | None) -> Tensor:
    """A generated video, with its actions `[rows, columns]` drawn on it, and the true one, if any, to its right.

    Both have one shape; small ones are enlarged.
    """
    videos = {"generated": enlarge(to_uint8(video))}
    if action is not None:
        videos["generated"] = draw_actions(videos["generated"], action)
    if truth is not None:
        videos["truth"] = enlarge(to_uint8(truth))
    return side_by_side(list(videos.values()), list(videos))


def first_frames(video: Tensor, action: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The beginning of a video, and the action rows that its frames show; see `action_of_frame`."""
    shown = action_of_frame(len(action), len(video))[:count]
    return video[:count], action[[row for row in shown if row is not None]]


def action_of_frame(num_rows: int, num_frames: int) -> list[int | None]:
    """The action row that each pixel frame shows: the one that led to it.

    - One row fewer than frames: row k leads from frame k to k + 1, and nothing led to frame 0.
    - As many rows as frames: row k is recorded with frame k.
    - Several times as many as there are transitions, or one more: a frame shows the last of those that led to it.
    - Fewer: one row for each latent frame; frame 0 is the first latent frame, every later one is equally many frames.

    Raises:
        ValueError: The rows are more than the frames, and not equally many for each transition.
    """
    if num_rows > num_frames:
        per_frame, rest = divmod(num_rows, num_frames - 1) if num_frames > 1 else (0, 2)
        if rest > 1:
            raise ValueError(
                f"Expected equally many action rows for each frame, got {num_rows} rows for {num_frames} frames"
            )
        return [0 if rest else None, *(per_frame * frame - 1 + rest for frame in range(1, num_frames))]
    if num_rows == num_frames - 1:
        return [None, *range(num_rows)]
    if num_rows == 0:
        return [None] * num_frames
    # Whole numbers round exactly: ceil(t / r) with r = (num_frames - 1) / (num_rows - 1); 1 if each has a row.
    return [-(-frame * (num_rows - 1) // max(1, num_frames - 1)) for frame in range(num_frames)]


def draw_actions(video: Tensor, action: Tensor) -> Tensor:
    """Draw into the lower left corner of every frame which action led to it.

    Two floating point columns are a joystick, x to the right and y down; one column of whole numbers is a class; all
    else is a bar for each column. Joystick and bars are scaled to the largest values of the video.

    Args:
        video: Video at least 160 pixels high and wide, or the drawing is cut off; see `enlarge`.
        action: Action rows, `[rows, columns]`; see `action_of_frame` for which frame shows which row.
    """
    from PIL import Image, ImageDraw

    action = action.detach().cpu()
    rows = action.float().nan_to_num()
    short_side = min(video.shape[-2:])
    margin = round(0.04 * short_side)
    # The badge is small, because it hides what is behind it, but not too small to see.
    size = round(min(max(0.22 * short_side, 48), 96))
    is_joystick = rows.shape[-1] == 2 and action.is_floating_point()
    width, paint = _choose_painter(rows, is_joystick, size, max_width=video.shape[-1] - 2 * margin)
    frames = []
    for frame, index in zip(to_uint8(video), action_of_frame(len(rows), len(video)), strict=True):
        row = None if index is None else rows[index]
        badge = Image.new("RGBA", (width * _OVERSAMPLING, size * _OVERSAMPLING))
        paint(ImageDraw.Draw(badge), row)
        frames.append(_draw_badge(frame, badge.reduce(_OVERSAMPLING), _describe(row, is_joystick), margin))
    return torch.stack(frames)


def to_image(frame: Tensor) -> Image.Image:
    """A frame `[3, H, W]` as a Pillow image."""
    from PIL import Image

    return Image.fromarray(to_uint8(frame).permute(1, 2, 0).contiguous().numpy())


def from_image(image: Image.Image) -> Tensor:
    """A Pillow image as a uint8 frame `[3, H, W]`."""
    import numpy as np

    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that Pillow brings along, so that no file is needed."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def write_mp4(path: Path, frames: Tensor, fps: int) -> None:
    """Write a video as H.264 that browsers play; the file is replaced as a whole.

    Odd sizes grow by one pixel, as the format has none.
    """
    import av
    from av.video.reformatter import VideoReformatter

    frames = _pad_to_even(to_uint8(frames))
    # Otherwise every frame makes a converter of its own, with threads of its own.
    reformatter = VideoReformatter()
    options = {"movflags": "+faststart"}
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        stream.gop_size = 16
        stream.height, stream.width = frames.shape[-2:]
        for frame in frames.permute(0, 2, 3, 1):
            picture = av.VideoFrame.from_ndarray(frame.contiguous().numpy(), format="rgb24")
            container.mux(stream.encode(reformatter.reformat(picture, format="yuv420p", threads=1)))
        container.mux(stream.encode(None))


def write_png(path: Path, image: Tensor) -> None:
    """Write one frame `[3, H, W]`; the file is replaced as a whole."""
    with replacing(path) as temporary:
        to_image(image).save(temporary, format="PNG", optimize=True)


def encode_gif(frames: Tensor, fps: int) -> bytes:
    """A video that repeats for ever, as small as a GIF gets."""
    from PIL import Image

    images = [to_image(frame) for frame in frames]
    # All frames share one palette without dithering: what does not move then costs nothing from frame to frame. It
    # is made from some pixels of some frames, because counting the colours takes longer than everything else.
    samples = frames[:: -(-len(frames) // 16), :, ::3, ::3]
    palette = to_image(torch.cat(list(samples), dim=-1)).quantize(256, method=Image.Quantize.MEDIANCUT)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    gif = BytesIO()
    images[0].save(gif, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return gif.getvalue()


def _caption(text: str, width: int) -> Tensor:
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, CAPTION_HEIGHT), _BACKGROUND)
    centre = (width / 2, CAPTION_HEIGHT / 2)
    ImageDraw.Draw(image).text(centre, text, fill=_WHITE, font=font(15), anchor="mm")
    return from_image(image)


def _background(video: Tensor, width: int) -> Tensor:
    """An empty video of the length and height of another."""
    colour = torch.tensor(_BACKGROUND, dtype=torch.uint8)
    return colour[:, None, None].expand(len(video), -1, video.shape[-2], width)


def _pad_to_even(frames: Tensor) -> Tensor:
    frames = torch.cat([frames, frames[..., frames.shape[-1] - frames.shape[-1] % 2 :]], dim=-1)
    return torch.cat([frames, frames[..., frames.shape[-2] - frames.shape[-2] % 2 :, :]], dim=-2)


def _choose_painter(rows: Tensor, is_joystick: bool, size: int, max_width: int) -> tuple[int, Painter]:
    """Width of the badge, `size` high, and what paints it in `_OVERSAMPLING` times that size."""
    num_columns, height = rows.shape[-1], size * _OVERSAMPLING
    if is_joystick:
        return size, partial(_joystick, size=height, longest=_largest(rows.norm(dim=-1)))
    if num_columns == 1 and bool((rows == rows.round()).all()):
        return size, partial(_class_number, size=height)
    largest = torch.tensor([_largest(column) for column in rows.abs().unbind(-1)])
    width = min(max_width, max(size, num_columns * size // 5))
    is_signed = bool((rows < 0).any())
    return width, partial(_bars, size=(width * _OVERSAMPLING, height), largest=largest, signed=is_signed)


def _largest(values: Tensor) -> float:
    """The largest value, or 1 if there is nothing but zeros: for dividing by."""
    return (float(values.max()) if len(values) else 0.0) or 1.0


def _describe(row: Tensor | None, is_joystick: bool) -> str:
    if row is None:
        return "no action"
    return "action\nx {:+.2f}\ny {:+.2f}".format(*row.tolist()) if is_joystick else "action"


def _draw_badge(frame: Tensor, badge: Image.Image, text: str, margin: int) -> Tensor:
    from PIL import ImageDraw

    image = to_image(frame)
    top = image.height - margin - badge.height
    image.paste(badge, (margin, top), badge)
    size = min(24, max(12, badge.height // 4))
    # Above a badge that leaves no room beside it.
    beside = margin + badge.width + 6 * size < image.width
    place = (margin + badge.width + size // 2, image.height - margin) if beside else (margin, top - 2)
    draw = ImageDraw.Draw(image)
    draw.text(place, text, fill=_WHITE, font=font(size), anchor="ld", stroke_width=1, stroke_fill=_BACKGROUND)
    return from_image(image)


def _joystick(draw: ImageDraw.ImageDraw, row: Tensor | None, size: int, longest: float) -> None:
    radius = size / 2
    line = size // 24
    draw.ellipse((0, 0, size - 1, size - 1), fill=_SHADE, outline=_WHITE, width=line)
    if row is not None:
        x, y = (radius + 0.7 * radius * value / longest for value in row.tolist())
        draw.line((radius, radius, x, y), fill=_POSITIVE, width=3 * line)
        for centre, share, colour in (((radius, radius), 0.1, _WHITE), ((x, y), 0.22, _POSITIVE)):
            draw.circle(centre, share * radius, fill=colour)


def _bars(draw: ImageDraw.ImageDraw, row: Tensor | None, size: tuple[int, int], largest: Tensor, signed: bool) -> None:
    width, height = size
    draw.rectangle((0, 0, width, height), fill=_SHADE)
    base = height / 2 if signed else height
    pitch = width / len(largest)
    for column, share in enumerate([] if row is None else (row / largest).tolist()):
        top, bottom = sorted((base, base - 0.9 * base * share))
        left = (column + 0.15) * pitch
        draw.rectangle((left, top, left + 0.7 * pitch, bottom), fill=_POSITIVE if share > 0 else _NEGATIVE)
    draw.line((0, base, width, base), fill=_WHITE, width=height // 24)


def _class_number(draw: ImageDraw.ImageDraw, row: Tensor | None, size: int) -> None:
    draw.rounded_rectangle((0, 0, size - 1, size - 1), radius=size // 6, fill=_SHADE)
    text = "-" if row is None else f"{row.item():g}"
    draw.text((size / 2, size / 2), text, fill=_POSITIVE, font=font(size // 2), anchor="mm")
