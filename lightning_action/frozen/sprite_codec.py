"""The codec that comes trained, as a real video VAE does: for the videos of the simulators."""

from __future__ import annotations

from pathlib import Path

from lightning_action.frozen.conv_codec import ConvVideoCodec
from lightning_action.weights.safetensors_files import read_safetensors

WEIGHTS = Path(__file__).with_name("sprite_codec.safetensors")
SIZES = {
    "latent_dim": 24,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 4,
    "width": 64,
    "num_blocks": 2,
    "encoder_width": 32,
}


class SpriteVideoCodec(ConvVideoCodec):
    """A `ConvVideoCodec` whose weights come with the package, trained on videos of our own simulators.

    It needs no fit: 24 latent channels, 8 pixels of a side and 4 pixel frames to a latent position. How well it does is
    in `docs/sprite_codec.md`; `docs/make_codec.py` made it.

    Args:
        mixes_in_time: Mix the codes of a latent frame by half of what would whiten them, see `time_whitening` of
            `ConvVideoCodec`; False leaves them side by side, as in runs of before.
    """

    def __init__(self, mixes_in_time: bool = False) -> None:
        super().__init__(**SIZES, time_whitening=0.5 if mixes_in_time else 0.0)
        tensors = {name: tensor.float() for name, tensor in read_safetensors(WEIGHTS).items()}
        if not mixes_in_time:
            del tensors["mixing"]
        self.load_fitted_tensors(tensors, str(WEIGHTS))
        self.requires_grad_(False)
