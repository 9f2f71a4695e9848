"""Gain in speed of an epoch from encoded latents over one with the frozen parts run on the fly.

`benchmarks/README.md` says what each figure means.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import lightning as L
import torch

from lightning_action import (
    ActionModulationProjection,
    ActionVideoModule,
    CausalWanModel,
    HashingTextEncoder,
    LatentDataModule,
    MovingSpriteWorld,
    SpriteDataModule,
    WanVideoVAE,
)
from lightning_action.atomic import write_json
from lightning_action.cli.encode import DType, clips_of, encode, encoding_of, frame_size_of
from lightning_action.data.latent_writer import StoreWriter
from lightning_action.frozen.interfaces import VideoCodec

TARGET = 3.0
DTYPE: DType = "float32"


@dataclass(frozen=True)
class Sizes:
    """Sizes of what is measured.

    Args:
        vae_dim: Width of the VAE; that of Wan 2.1 is 96.
        vae_blocks: Residual blocks of each of its stages; Wan 2.1 has 2.
        dim: Width of the generator.
        num_layers: Layers of the generator.
        side: Height and width of the pixel frames.
        num_latents: Latent frames of a video.
        batch_size: Videos of a step.
        num_videos: Videos of an epoch.
        rounds: Epochs of each kind.
    """

    vae_dim: int = 32
    vae_blocks: int = 2
    dim: int = 256
    num_layers: int = 6
    side: int = 64
    num_latents: int = 9
    batch_size: int = 8
    num_videos: int = 16
    rounds: int = 5


TINY = Sizes(6, vae_blocks=1, dim=48, num_layers=2, side=32, num_latents=3, batch_size=2, num_videos=4, rounds=2)


class Stopwatch(L.Callback):
    """Measures the training epoch, without what a fit does before and after it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = _now(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds.append(_now(pl_module) - self._started)


def _now(pl_module: L.LightningModule) -> float:
    if pl_module.device.type == "cuda":
        torch.cuda.synchronize(pl_module.device)
    return perf_counter()


def write_vae(folder: Path, sizes: Sizes) -> None:
    """A Wan VAE with random weights."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    AutoencoderKLWan(base_dim=sizes.vae_dim, num_res_blocks=sizes.vae_blocks).save_pretrained(folder)


def build(sizes: Sizes, folder: Path, videos: SpriteDataModule) -> ActionVideoModule:
    """A module with the VAE of a folder."""
    torch.manual_seed(0)
    return ActionVideoModule(
        partial(
            CausalWanModel, sizes.dim, 4 * sizes.dim, 4, sizes.num_layers, 16, 16, freq_dim=64, text_dim=16, text_len=4
        ),
        lambda: HashingTextEncoder(16, 4),
        partial[VideoCodec](WanVideoVAE, str(folder)),
        action_projection=partial(ActionModulationProjection, hidden_dim=sizes.dim, num_layers=sizes.num_layers),
        schema=videos.action_schema,
    )


def write_store(folder: Path, module: ActionVideoModule, videos: SpriteDataModule, device: torch.device) -> float:
    """Encode the videos, and return how many seconds that took."""
    splits, schema = clips_of(videos)
    started = perf_counter()
    encoding = encoding_of(module, schema, frame_size_of(splits["train"][0], module, schema), DTYPE)
    encode(StoreWriter(folder, encoding, 10**8), module.frozen, {"train": splits["train"]}, device)
    return perf_counter() - started


def measure(sizes: Sizes, device: str, folder: Path) -> dict[str, Any]:
    """Train on the same videos in both ways, by turns."""
    num_latents, batch_size = sizes.num_latents, sizes.batch_size
    videos = SpriteDataModule(
        MovingSpriteWorld(image_size=sizes.side, sprite_radius=sizes.side / 8),
        num_latents=num_latents,
        batch_size=batch_size,
        train_size=sizes.num_videos,
    )
    write_vae(folder / "vae", sizes)
    module = build(sizes, folder / "vae", videos)
    encode_seconds = write_store(folder / "store", module, videos, torch.device(device))
    store = str(folder / "store")
    latents = LatentDataModule(store, num_latents, window_starts="clip_start", batch_size=batch_size)
    watches = {"on_the_fly": Stopwatch(), "encoded": Stopwatch()}
    sources: dict[str, L.LightningDataModule] = {"on_the_fly": videos, "encoded": latents}
    for number in range(sizes.rounds + 1):  # the first one is not counted: much is called for the first time
        for name in list(watches) if number % 2 else reversed(watches):
            print(f"round {number} of {sizes.rounds}: {name}", file=sys.stderr)
            trainer(device, watches[name]).fit(module, sources[name])
    seconds = {name: watch.seconds[1:] for name, watch in watches.items()}
    ratios = [slow / fast for slow, fast in zip(seconds["on_the_fly"], seconds["encoded"], strict=True)]
    return {
        "torch": torch.__version__,
        "device": device,
        "sizes": asdict(sizes),
        "vae_parameters": sum(p.numel() for p in module.frozen.vae._model.parameters()),  # type: ignore[attr-defined]
        "generator_parameters": sum(p.numel() for p in module.generator.parameters()),
        "target": TARGET,
        "on_the_fly_to_encoded": median(ratios),
        "epochs_that_encoding_costs": encode_seconds / median(seconds["on_the_fly"]),
        **{f"{name}_seconds": median(of_rounds) for name, of_rounds in seconds.items()},
    }


def trainer(device: str, watch: Stopwatch) -> L.Trainer:
    """A Trainer of one epoch that says nothing."""
    return L.Trainer(
        accelerator="gpu" if device == "cuda" else device,
        devices=1,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[watch],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print JSON, and write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="Run for seconds, with a ratio that means nothing.")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="File that takes the result as well.")
    chosen = parser.parse_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.filterwarnings("ignore", ".* does not have many workers")
        result = measure(TINY if chosen.tiny else Sizes(), chosen.device, Path(folder))
    print(json.dumps(result, indent=2))
    if chosen.json is not None:
        write_json(chosen.json, result)


if __name__ == "__main__":
    main()
