"""The folder that one fit leaves and the next one starts from: a generator, and a codec if it was fitted to data."""

from __future__ import annotations

from pathlib import Path

from lightning_action.frozen.interfaces import CodecVideos, FittedCodec, VideoCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights import load_strictly, read_metadata, read_safetensors, write_safetensors

GENERATOR_FILE = "generator.safetensors"
VAE_FILE = "vae.safetensors"


def load_generator(generator: CausalWanModel, folder: str) -> float:
    """Load `generator.safetensors` (original Wan names) and return the seconds it was trained for, 0 if unknown.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not whole, or does not fit.
    """
    path = _find(folder, GENERATOR_FILE)
    load_strictly(generator, read_safetensors(path), str(path))
    return float(read_metadata(path).get("fit_seconds", 0.0))


def prepare_codec(codec: FittedCodec, folder: str | None, datamodule: object) -> None:
    """Load `vae.safetensors` from the folder, or without a folder fit the codec to the training videos.

    Raises:
        FileNotFoundError: the folder has no such file.
        ValueError: the file does not fit, or the DataModule offers no videos.
    """
    if folder is not None:
        path = _find(folder, VAE_FILE)
        codec.load_fitted_tensors(read_safetensors(path), str(path))
    elif isinstance(datamodule, CodecVideos):
        codec.fit(datamodule.codec_videos())
    else:
        raise ValueError(
            f"{type(codec).__name__} is fitted to training videos: give a DataModule with codec_videos() -> [N, T, "
            "3, H, W] in [-1, 1], or `pretrained` weights that bring the fitted codec"
        )


def export(folder: str | Path, generator: CausalWanModel, vae: VideoCodec, fit_seconds: float) -> None:
    """Write the files that `load_generator` and `prepare_codec` read, each in one step."""
    write_safetensors(Path(folder) / GENERATOR_FILE, generator.state_dict(), {"fit_seconds": str(fit_seconds)})
    if isinstance(vae, FittedCodec):
        write_safetensors(Path(folder) / VAE_FILE, vae.fitted_tensors(), {})


def _find(folder: str, name: str) -> Path:
    path = Path(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"no {name} in {folder!r}: `pretrained` is a folder that a fit with `export_weights` leaves, for the demo "
            "that of `fit --config configs/demo_backbone.yaml`"
        )
    return path
