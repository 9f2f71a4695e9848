"""Shapes, their shading, and pictures to put behind them."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Shape = Literal["disc", "square", "diamond"]
Background = Literal["plain", "gradient", "busy", "textured"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
# How dark the rim of a shaded sprite is; the light comes from the front, so that the centre of its mass stays.
_RIM = 0.5


def distance_outside(shape: Shape, dx: Tensor, dy: Tensor, radius: float) -> Tensor:
    """Compute how far points lie outside a shape of this radius around 0, in pixels; inside it is negative."""
    if shape == "square":
        return torch.maximum(dx.abs(), dy.abs()) - 0.85 * radius
    if shape == "diamond":
        return (dx.abs() + dy.abs()) / math.sqrt(2) - 0.8 * radius
    return (dx.square() + dy.square()).sqrt_().sub_(radius)


def paint(
    frames: Tensor, positions: Tensor, color: Tensor, radius: float, shape: Shape = "disc", shaded: bool = False
) -> Tensor:
    """Paint shapes with an edge one pixel soft.

    Args:
        frames: Videos `[B, T, 3, H, W]` in [-1, 1] behind the shapes.
        positions: Centres of the shapes in pixels, `[B, T, 2]`.
        color: Colours, `[B, 3]`.
        radius: Radius of the shapes in pixels.
        shape: Kind of the shapes.
        shaded: Darken towards the rim, as light from the front does with a ball.
    """
    columns, rows = (torch.arange(side) + 0.5 for side in (frames.shape[-1], frames.shape[-2]))
    dx = (columns - positions[..., 0, None])[..., None, :]
    dy = (rows - positions[..., 1, None])[..., :, None]
    cover = distance_outside(shape, dx, dy, radius).neg_().add_(0.5).clamp_(0, 1)[:, :, None]
    paint_color = color[:, None, :, None, None]
    if shaded:
        light = 1 - _RIM * ((dx.square() + dy.square()) / radius**2).clamp_(max=1)[:, :, None]
        paint_color = (paint_color + 1) * light - 1
    # Painting is in place: a video of full size is hundreds of megabytes.
    painted = paint_color - frames
    return painted.mul_(cover).add_(frames)


def draw_background(kind: Background, height: int, width: int, random: torch.Generator) -> Tensor:
    """Draw a dark picture `[3, H, W]` in [-1, 0.2]; `textured` is one of tiles, boards and cloth, in muted colours."""
    size = (height, width)
    if kind == "plain":
        return torch.full((3, *size), -0.6)
    if kind == "textured":
        return _draw_texture(height, width, random).clamp(-1, 0.2)
    if kind == "gradient":
        corners = -0.6 + 0.3 * torch.randn(1, 3, 2, 2, generator=random)
    else:
        corners = -0.5 + 0.25 * torch.randn(1, 3, height // 4, width // 4, generator=random)
    return F.interpolate(corners, size=size, mode="bilinear", align_corners=True)[0].clamp(-1, 0.2)


def _draw_texture(height: int, width: int, random: torch.Generator) -> Tensor:
    kind = int(torch.randint(3, (1,), generator=random))
    tint = -0.55 + 0.12 * torch.randn(3, 1, 1, generator=random)
    phase_x, phase_y, slope_x, slope_y = (2 * torch.rand(4, generator=random) - 1).tolist()
    x = (torch.arange(width) + 0.5)[None]
    y = (torch.arange(height) + 0.5)[:, None]
    u, v = 2 * math.pi * (x / 16 + phase_x), 2 * math.pi * (y / 16 + phase_y)
    if kind == 0:
        pattern = torch.tanh(2.5 * u.sin() * v.sin())
    elif kind == 1:
        pattern = (0.6 * (v.cos() + 0.5 * (2 * v).cos()) + 0.25 * (u / 2).sin()).expand(height, width)
    else:
        pattern = 0.5 * ((u + v).sin() + (u - v).sin())
    light = 0.12 * (slope_x * (2 * x / width - 1) + slope_y * (2 * y / height - 1))
    return tint + 0.16 * pattern + light
