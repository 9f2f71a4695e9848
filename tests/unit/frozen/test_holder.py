"""What is frozen stays in eval mode, without gradient, and out of sight."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import StreamingDecoder, TextEncoder, VideoCodec
from lightning_action.frozen.linear_codec import LinearVideoCodec


class Text(nn.Module, TextEncoder):
    """A text encoder with weights and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 7)
        self.dropout = nn.Dropout(0.5)

    def encode(self, prompts: Sequence[str]) -> Tensor:
        lengths = torch.tensor([[[float(len(prompt))]] for prompt in prompts])
        return self.dropout(self.linear(lengths.to(self.linear.weight.device)))


class Vae(nn.Module, VideoCodec):
    """One weight; every pixel frame is a latent frame."""

    temporal_compression_ratio = 1

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def encode(self, video: Tensor) -> Tensor:
        return video * self.gain

    def decode(self, latents: Tensor) -> Tensor:
        return latents / self.gain

    def streaming_decoder(self) -> StreamingDecoder:
        return self.decode

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        return 3, height, width


VIDEO = torch.linspace(-1, 1, 2 * 5 * 3 * 4 * 6).reshape(2, 5, 3, 4, 6)


def test_networks_are_held_in_eval_mode_and_without_gradient() -> None:
    text, vae = Text(), Vae()
    assert text.training and vae.gain.requires_grad
    FrozenParts(text, vae)
    assert not any(module.training for part in (text, vae) for module in part.modules())
    assert not any(parameter.requires_grad for part in (text, vae) for parameter in part.parameters())


def test_results_carry_no_gradient_and_no_dropout() -> None:
    frozen = FrozenParts(Text(), Vae())
    text = frozen.encode_text(["a", "bcd"])
    assert text.shape == (2, 1, 7)
    assert torch.equal(text, frozen.encode_text(["a", "bcd"]))
    video = VIDEO.clone().requires_grad_()
    latents = frozen.encode_video(video)
    assert torch.equal(latents, 2 * VIDEO)
    assert not latents.requires_grad
    assert torch.equal(frozen.decoder()(latents), VIDEO)


class Holding(L.LightningModule):
    def __init__(self, frozen: FrozenParts) -> None:
        super().__init__()
        self.frozen = frozen
        self.linear = nn.Linear(2, 3)


def test_a_lightning_module_does_not_see_what_is_held() -> None:
    text, vae = Text(), Vae()
    module = Holding(FrozenParts(text, vae))
    names = {"linear.weight", "linear.bias"}
    assert {name for name, _ in module.named_parameters()} == names
    assert module.state_dict().keys() == names
    assert not {text, vae} & set(module.modules())
    module.train()
    module.double()
    assert not text.training and not vae.training
    assert vae.gain.dtype == torch.float32
    # The same parts as plain attributes would be seen.
    module.vae = vae
    assert "vae.gain" in module.state_dict()


def test_networks_move_and_what_they_give_follows() -> None:
    text, vae = Text(), Vae()
    frozen = FrozenParts(text, vae)
    assert frozen.encode_text(["a"], "meta").device.type == "meta"
    assert text.linear.weight.device.type == "meta" and vae.gain.device.type == "cpu", "only what is needed moves"
    frozen.decoder("meta")
    assert vae.gain.device.type == "meta"


def test_parts_without_weights_need_no_moving() -> None:
    frozen = FrozenParts(HashingTextEncoder(7, 5), Vae())
    assert frozen.encode_text(["a red disc"]).shape == (1, 5, 7)
    half = frozen.encode_text(["a red disc"], "meta", torch.float16)
    assert half.device.type == "meta" and half.dtype == torch.float16


class Placed(TextEncoder):
    """No `nn.Module`, but it has weights to read and to move."""

    def __init__(self) -> None:
        self.device: torch.device | None = None
        self.value: float | None = None

    def load(self) -> None:
        self.value = 3.0

    def to(self, device: torch.device) -> None:
        self.device = device

    def encode(self, prompts: Sequence[str]) -> Tensor:
        return torch.full((len(prompts), 1, 7), self.value, device=self.device)


def test_weights_are_read_when_loading_and_not_before() -> None:
    text = Placed()
    frozen = FrozenParts(text, Vae())
    assert text.value is None
    frozen.load()
    assert torch.equal(frozen.encode_text(["a", "b"]), torch.full((2, 1, 7), 3.0))


def test_a_part_that_moves_itself_is_told_where_to() -> None:
    text = Placed()
    frozen = FrozenParts(text, Vae())
    frozen.load()
    frozen.encode_text(["a"], "meta")
    assert text.device == torch.device("meta")
    frozen.park()
    assert text.device == torch.device("cpu")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_video_that_is_not_finite_is_refused(bad: float) -> None:
    frozen = FrozenParts(Text(), Vae())
    video = VIDEO.clone()
    frozen.encode_video(video)
    video[1, 4, 0, 3, 5] = bad
    with pytest.raises(ValueError, match="^the video hold"):
        frozen.encode_video(video)


def test_a_vae_that_overflows_is_told_from_a_bad_video() -> None:
    vae = Vae()
    frozen = FrozenParts(Text(), vae)
    vae.gain.fill_(torch.finfo(torch.float32).max)
    with pytest.raises(ValueError, match="^the latents of a finite video hold"):
        frozen.encode_video(2 * VIDEO)


def test_the_fitted_codec_is_held_too() -> None:
    codec = LinearVideoCodec(4, 2)
    codec.fit(VIDEO)
    frozen = FrozenParts(HashingTextEncoder(), codec)
    assert not codec.training
    assert frozen.decoder()(frozen.encode_video(VIDEO)).shape == VIDEO.shape


def test_what_a_batch_has_encoded_is_not_encoded_again() -> None:
    frozen = FrozenParts(Text(), Vae())
    pixels = {"video": VIDEO, "prompt": ["a", "bcd"]}
    encoded = {"latents": frozen.encode_video(VIDEO), "text": frozen.encode_text(["a", "bcd"]), "prompt": ["?", "?"]}
    for batch in (pixels, encoded):
        latents, text = (of(batch, "cpu", torch.float64) for of in (frozen.latents_of, frozen.text_of))
        assert latents.dtype == text.dtype == torch.float64
        assert torch.equal(latents.float(), encoded["latents"]) and torch.equal(text.float(), encoded["text"])


def test_latents_lie_in_order_in_memory_however_the_codec_leaves_them() -> None:
    codec = LinearVideoCodec(3, patch_size=2)
    video = torch.rand(2, 5, 3, 4, 6, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codec.fit(video.repeat(4, 1, 1, 1, 1))
    frozen = FrozenParts(HashingTextEncoder(), codec)
    assert not codec.encode(video).is_contiguous()
    assert frozen.encode_video(video).is_contiguous()
    assert frozen.encode_next(frozen.encoder(), video, "cpu", torch.float32).is_contiguous()
