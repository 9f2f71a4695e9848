"""What the codecs of Wan's latents share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_action.assembly import describe
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import StreamingDecoder
from lightning_action.frozen.tiny_vae import TinyWanVAE
from lightning_action.frozen.wan_codec import WanCodec
from lightning_action.frozen.wan_vae import WanVideoVAE


class Codec(WanCodec):
    """One weight, the number in a file."""

    release_names = ("preferred.txt", "other.txt")

    def encode(self, video: Tensor) -> Tensor:
        self.require_video(video)
        self.load()
        return video * self._model.weight

    def streaming_decoder(self) -> StreamingDecoder:
        self.load()
        return lambda latents: latents / self._model.weight

    def _read(self, path: Path) -> nn.Module:
        model = nn.Linear(1, 1, bias=False, dtype=self._dtype)
        nn.init.constant_(model.weight, float(path.read_text()))
        self._require_geometry(16, 8, 4, path)
        return model.train()


CODECS = (Codec, WanVideoVAE, TinyWanVAE)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_frames", [0, 2, 4, 6, 16])
def test_other_lengths_than_4_n_plus_1_are_refused(codec: Callable[..., WanCodec], num_frames: int) -> None:
    with pytest.raises(ValueError, match=rf"a video of {num_frames} frames cannot be encoded: expected 1 \+ 4 n"):
        codec("nowhere").encode(torch.zeros(2, num_frames, 3, 16, 24))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("height", "width"), [(12, 24), (16, 20)])
def test_sides_between_latent_positions_are_refused(codec: Callable[..., WanCodec], height: int, width: int) -> None:
    for use in (
        lambda vae: vae.latent_shape(height, width),
        lambda vae: vae.encode(torch.zeros(1, 1, 3, height, width)),
    ):
        with pytest.raises(ValueError, match=f"multiples of 8, got {height} x {width}"):
            use(codec("nowhere"))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "video", [torch.zeros(5, 3, 16, 24), torch.zeros(1, 5, 4, 16, 24), torch.zeros(1, 5, 3, 16, 24, dtype=torch.uint8)]
)
def test_what_is_no_video_in_floats_is_refused(codec: Callable[..., WanCodec], video: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected videos of floats \[B, T, 3, H, W\] in \[-1, 1\], got torch\."):
        codec("nowhere").encode(video)


@pytest.mark.parametrize("codec", CODECS)
def test_the_latent_shape_is_known_without_weights(codec: Callable[..., WanCodec]) -> None:
    assert codec("nowhere").latent_shape(480, 832) == (16, 60, 104)
    assert codec("nowhere", latent_dim=48, spatial_compression_ratio=16).latent_shape(704, 1280) == (48, 44, 80)


@pytest.mark.parametrize("codec", CODECS)
def test_missing_weights_are_told(codec: Callable[..., WanCodec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_ACTION_WEIGHTS", raising=False)
    with pytest.raises(FileNotFoundError, match=f"weights of {codec.__name__}: give one, or set LIGHTNING_ACTION_WEIG"):
        codec().load()
    with pytest.raises(FileNotFoundError, match="nowhere"):
        codec("nowhere").load()


def test_a_release_is_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path))
    (tmp_path / "other.txt").write_text("3")
    assert torch.equal(Codec(str(tmp_path)).decode(torch.ones(1)), torch.ones(1, 1) / 3)
    (tmp_path / "preferred.txt").write_text("2")
    assert torch.equal(Codec().decode(torch.ones(1)), torch.ones(1, 1) / 2)


def test_weights_are_read_once_and_frozen(tmp_path: Path) -> None:
    path = tmp_path / "weight.txt"
    path.write_text("2")
    codec = Codec(str(path), dtype="bfloat16")
    codec.load()
    path.write_text("5")
    codec.load()
    (weight,) = codec._model.parameters()
    assert (weight.item(), weight.dtype, weight.requires_grad, codec._model.training) == (
        2,
        torch.bfloat16,
        False,
        False,
    )


def test_another_geometry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weight.txt").write_text("2")
    with pytest.raises(ValueError, match=r"configured as \(5, 8, 4\), those of .*weight.txt are \(16, 8, 4\)"):
        Codec(str(tmp_path / "weight.txt"), latent_dim=5).load()


@pytest.mark.parametrize("moved_first", [False, True])
def test_the_holder_loads_and_moves_it(tmp_path: Path, moved_first: bool) -> None:
    (tmp_path / "weight.txt").write_text("2")
    codec = Codec(str(tmp_path / "weight.txt"))
    frozen = FrozenParts(HashingTextEncoder(), codec)
    for step in (lambda: frozen.decoder("meta"), frozen.load)[:: 1 if moved_first else -1]:
        step()
    assert codec._model.weight.device.type == "meta"


def test_weights_read_in_inference_mode_can_be_moved_and_used_outside(tmp_path: Path) -> None:
    (tmp_path / "weight.txt").write_text("2")
    codec = Codec(str(tmp_path / "weight.txt"))
    with torch.inference_mode():
        codec.encode(torch.zeros(1, 1, 3, 8, 8))
        codec.to(torch.device("cpu"))
    assert not codec._model.weight.is_inference()
    codec.to(torch.device("meta"))


def test_records_of_predictions_tell_files_of_one_name_apart(tmp_path: Path) -> None:
    described = set()
    for number in ("2", "3", "3.0"):
        (tmp_path / "preferred.txt").write_text(number)
        codec = Codec(str(tmp_path))
        codec.load()
        described.add(describe(codec))
    assert len(described) == 3
