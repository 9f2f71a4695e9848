"""Trains the codec that comes with the package, on videos of our own simulators, and writes its report.

Twenty minutes on one core: python docs/make_codec.py
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from lightning_action import (
    ConvVideoCodec,
    MovingSpriteWorld,
    PanningCameraWorld,
    SpriteDataModule,
    SpriteVideoCodec,
    VideoQuality,
)
from lightning_action.batch import to_unit_range
from lightning_action.callbacks.support.files import write_bytes
from lightning_action.data.scenery import SHAPES
from lightning_action.data.world import World
from lightning_action.frozen.sprite_codec import SIZES, WEIGHTS
from lightning_action.weights.safetensors_files import write_safetensors

ROOT = Path(__file__).parents[1]
RICH = {"background": "textured", "shapes": SHAPES, "shaded": True, "still_probability": 0.2, "slowness": 1.5}
# Name, world, and number of training videos of it.
WORLDS: tuple[tuple[str, World, int], ...] = (
    ("the demo's, with diamonds", MovingSpriteWorld(**RICH), 1900),
    (
        "small sprites with inertia, and a second object that turns at random",
        MovingSpriteWorld(**RICH, sprite_radius=3.5, inertia=0.6, second_object=True, second_turn_probability=0.1),
        300,
    ),
    (
        "smooth grounds and a second object",
        MovingSpriteWorld(shapes=SHAPES, shaded=True, background="gradient", second_object=True),
        100,
    ),
    ("a camera that pans", PanningCameraWorld(), 700),
)
NOISES = (0.0, 0.1, 0.2, 0.4)
_SEED, _NUM_TEST = 20, 64


def data(world: World, train_size: int) -> SpriteDataModule:
    """Videos of 9 latent frames, which no run of the demo sees."""
    return SpriteDataModule(world, batch_size=1, train_size=train_size, test_size=_NUM_TEST, seed=_SEED)


def measure(codec: ConvVideoCodec, world: World, noise: float) -> list[float]:
    """Decode held-out videos from codes with noise: PSNR, that of the moving region, and how far positions are off."""
    videos = data(world, 1)
    batch = videos.dataset("test").batch(range(_NUM_TEST))
    latents = codec.encode(batch["video"])
    random = torch.Generator().manual_seed(0)
    decoded = codec.streaming_decoder()(latents + noise * torch.randn(latents.shape, generator=random))
    quality = VideoQuality(num_initial_frames=0)
    quality.update(to_unit_range(decoded), to_unit_range(batch["video"]))
    figures = quality.compute()
    located, found = videos.read_positions(decoded, batch, "test")
    error = (located - batch["position"]).norm(dim=-1)[found].mean().item()
    return [figures["psnr_db"], figures["psnr_moving_db"], error, found.float().mean().item()]


def report(codec: ConvVideoCodec, num_steps: int, seconds: float) -> str:
    """Write the report, a page of Markdown."""
    size = sum(each.numel() for each in codec.parameters())
    lines = [
        "# The codec of the simulators",
        "",
        "`SpriteVideoCodec` comes trained, as a real video VAE does: `docs/make_codec.py` made its weights, from "
        f"{sum(count for *_, count in WORLDS)} videos of our own simulators. {size / 1e6:.2f} million parameters, "
        f"{num_steps} steps, {seconds / 60:.0f} minutes on one core. Held-out videos, of 33 frames of 32 x 32 "
        "pixels, {0} of each world, seen once through encoder and decoder; noise is added to the codes, mixed in time "
        "(`mixes_in_time: true`, as in the demo), whose own deviation is 1, as a generator's mistakes would be.".format(
            _NUM_TEST
        ),
        "",
        "| world | noise | PSNR, dB | in the moving region, dB | position off by, px | found |",
        "|---|---|---|---|---|---|",
    ]
    for name, world, _ in WORLDS:
        for noise in NOISES:
            psnr, moving, error, found = measure(codec, world, noise)
            lines.append(f"| {name} | {noise} | {psnr:.1f} | {moving:.1f} | {error:.2f} | {found:.1%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train, and write weights and report."""
    torch.set_num_threads(1)
    videos: list[Tensor] = [data(world, count).codec_videos(count) for _, world, count in WORLDS]
    codec = ConvVideoCodec(**SIZES, num_steps=14_000)
    started = time.monotonic()
    codec.fit(torch.cat(videos))
    seconds = time.monotonic() - started
    halves = {name: tensor.half() for name, tensor in codec.fitted_tensors().items()}
    write_safetensors(WEIGHTS, halves, {"made_by": "docs/make_codec.py"})
    shipped = SpriteVideoCodec(mixes_in_time=True)
    write_bytes(ROOT / "docs" / "sprite_codec.md", report(shipped, codec.num_steps, seconds).encode())


if __name__ == "__main__":
    main()
