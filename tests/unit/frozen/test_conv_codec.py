"""The convolutional codec: geometry and causality of a causal video VAE, and what its fit learns."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.frozen.conv_codec import ConvVideoCodec, _whitening
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from lightning_action.weights.safetensors_files import read_safetensors, write_safetensors

BATCH, HEIGHT, WIDTH = 3, 16, 24
QUICK: dict[str, Any] = {"width": 8, "num_steps": 40, "batch_size": 6, "learning_rate": 4e-3, "change_weight": 0.0}


def dot_videos(num_frames: int, batch_size: int = BATCH, seed: int = 0) -> Tensor:
    """Videos of a blue square of 4 x 4 pixels that moves over a picture of one colour, another in each video."""
    random = torch.Generator().manual_seed(seed)
    backgrounds = 1.6 * torch.rand(batch_size, 1, 3, 1, 1, generator=random) - 0.8
    video = backgrounds.repeat(1, num_frames, 1, HEIGHT, WIDTH)
    for sample in video:
        x, y = (int(torch.randint(side - 4, (), generator=random)) for side in (WIDTH, HEIGHT))
        for number, frame in enumerate(sample):
            left = (x + 2 * number) % (WIDTH - 4)
            frame[:, y : y + 4, left : left + 4] = torch.tensor([-0.5, -0.2, 0.7])[:, None, None]
    return video


def fit_codec(ratio: int = 4, latent_dim: int = 12, spatial: int = 8, seed: int = 0, **settings: Any) -> ConvVideoCodec:
    codec = ConvVideoCodec(latent_dim, spatial, ratio, seed=seed, **{**QUICK, **settings})
    codec.fit(dot_videos(1 + 2 * ratio, batch_size=20))
    return codec


fitted = cache(fit_codec)


@pytest.mark.parametrize("spatial", [4, 8])
@pytest.mark.parametrize("ratio", [1, 3, 4])
@pytest.mark.parametrize("num_latents", [1, 2, 5])
def test_geometry(spatial: int, ratio: int, num_latents: int) -> None:
    codec = fitted(ratio=ratio, spatial=spatial)
    video = dot_videos(1 + ratio * (num_latents - 1))
    latents = codec.encode(video)
    assert latents.shape == (BATCH, num_latents, 12, HEIGHT // spatial, WIDTH // spatial)
    assert tuple(latents.shape[2:]) == codec.latent_shape(HEIGHT, WIDTH)
    decoded = codec.decode(latents)
    assert decoded.shape == video.shape
    assert decoded.abs().max() <= 1


def test_a_fit_learns_to_give_unseen_videos_back() -> None:
    unseen = dot_videos(9, batch_size=10, seed=1)
    codec = fitted(num_steps=400, width=32, spatial=4, latent_dim=24, noise=0.1, dropout=0)
    error = (codec.decode(codec.encode(unseen)) - unseen).square().mean()
    assert error < 0.2 * (unseen - unseen.mean((0, 1, 3, 4), keepdim=True)).square().mean()


def test_latents_have_mean_0_and_deviation_1_over_all_channels() -> None:
    codec = fitted(num_steps=30)
    latents = codec.encode(dot_videos(9, batch_size=20))
    assert latents.mean().abs() < 0.05
    # The first frame counts four times in the latents, and once in the fit.
    assert latents.std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_latents_are_whitened_in_time_by_the_share_that_is_asked_for(share: float) -> None:
    """The spread of r consecutive codes over their directions in time is taken to the power of what is left."""
    video, plain = dot_videos(9, batch_size=20), fitted(time_whitening=0.0)
    codec = fitted(time_whitening=share)
    spread, left = moments_in_time(plain.encode(video)), moments_in_time(codec.encode(video))
    assert spread[-1] > 4 * spread[0], "nothing to whiten"
    torch.testing.assert_close(left / left[-1], (spread / spread[-1]) ** (1 - share), rtol=1e-3, atol=0)
    torch.testing.assert_close(left.sum(), spread.sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(codec.decode(codec.encode(video)), plain.decode(plain.encode(video)))


def moments_in_time(latents: Tensor) -> Tensor:
    """Rising second moments along the directions in time of latents of four frames."""
    codes = latents[:, 1:].unflatten(2, (4, -1)).movedim(2, 0).flatten(1).double()
    return torch.linalg.eigvalsh(codes @ codes.T / codes.shape[1])


def test_where_nothing_changes_in_time_nothing_is_made_louder_without_bound() -> None:
    codec = ConvVideoCodec(12, **QUICK, time_whitening=1.0)
    codec.fit(dot_videos(9, batch_size=20)[:, :1].expand(-1, 9, -1, -1, -1))
    assert torch.isfinite(codec.mixing).all() and torch.linalg.cond(codec.mixing) < 1001
    codec.fit(dot_videos(1, batch_size=20))
    assert torch.equal(codec.mixing, torch.eye(4)), "single frames say nothing"
    assert torch.equal(_whitening(torch.zeros(4, 7), 0.5), torch.eye(4))


def test_tensors_of_codecs_that_did_not_mix_leave_codes_side_by_side() -> None:
    codec, video = fitted(), dot_videos(9)
    early = {name: tensor for name, tensor in codec.fitted_tensors().items() if name != "mixing"}
    other = ConvVideoCodec(12, width=8)
    other.load_fitted_tensors(early, "vae.safetensors")
    assert torch.equal(other.encode(video), fitted(time_whitening=0.0).encode(video))
    assert not torch.allclose(other.encode(video), codec.encode(video), atol=0.1)


def test_latents_are_mixed_in_full_precision_under_autocast() -> None:
    codec, video = fitted(), dot_videos(5)
    codes = fitted(time_whitening=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert codec.encode(video).dtype == codes.encode(video).dtype == torch.float32
        mixed, plain = (each.encode(video).unflatten(2, (4, -1)) for each in (codec, codes))
    torch.testing.assert_close(mixed, torch.einsum("kr, bfrchw -> bfkchw", codec.mixing, plain))


def test_codes_change_less_with_a_weight_on_their_change() -> None:
    """Both are scaled to deviation 1, so that smaller codes are no way to it."""
    video = dot_videos(9, batch_size=20)
    changes = []
    for weight in (0.0, 3.0):
        latents = fitted(num_steps=150, ratio=1, change_weight=weight).encode(video)
        changes.append((latents[:, 1:] - latents[:, :-1]).abs().mean())
    assert changes[1] < 0.8 * changes[0]


def test_a_latent_frame_depends_on_its_own_pixel_frames_alone() -> None:
    codec, video = fitted(), dot_videos(13)
    latents = codec.encode(video)
    changed = video.clone()
    changed[:, 5:9] = -changed[:, 5:9]
    differs = (codec.encode(changed) != latents).flatten(2).any(dim=2).any(dim=0)
    assert differs.tolist() == [False, False, True, False]


def test_the_first_latent_frame_is_that_of_a_video_that_stands_still() -> None:
    codec = fitted()
    latents = codec.encode(dot_videos(1).expand(-1, 5, -1, -1, -1))
    torch.testing.assert_close(latents[:, 0], latents[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("split", [[1, 1, 1, 1], [2, 2], [1, 3], [3, 1]])
def test_no_split_of_the_latents_shows_in_the_pixels(split: list[int]) -> None:
    codec = fitted()
    latents = codec.encode(dot_videos(13))
    decode_next = codec.streaming_decoder()
    assert torch.equal(
        torch.cat([decode_next(part) for part in latents.split(split, dim=1)], dim=1), codec.decode(latents)
    )


def test_parts_of_a_long_video_are_encoded_as_the_whole() -> None:
    codec, video = fitted(), dot_videos(17)
    parts = torch.cat(list(codec.encode_parts(video.split([5, 8, 4], dim=1))), dim=1)
    # A convolution over another number of frames may round differently.
    torch.testing.assert_close(parts, codec.encode(video), atol=1e-5, rtol=0)


def test_the_same_videos_and_seed_give_the_same_codec() -> None:
    one, same, other = (fit_codec(seed=seed).fitted_tensors() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["encoder.1.weight"], other["encoder.1.weight"])


def test_a_fit_neither_reads_nor_moves_the_global_generator() -> None:
    before = torch.get_rng_state()
    one = fit_codec().fitted_tensors()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    assert torch.equal(fit_codec().fitted_tensors()["encoder.1.weight"], one["encoder.1.weight"])


def test_it_is_fitted_where_gradients_are_off_and_is_frozen_afterwards() -> None:
    frozen = FrozenParts(HashingTextEncoder(), ConvVideoCodec(12, **QUICK))
    codec = frozen.vae
    assert isinstance(codec, ConvVideoCodec)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        codec.fit(dot_videos(9, batch_size=20))
    assert torch.equal(codec.encoder[1].weight, fitted().encoder[1].weight)
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    assert not frozen.encode_video(dot_videos(5)).requires_grad


def test_fitted_tensors_make_the_same_codec(tmp_path: Path) -> None:
    codec, video = fitted(), dot_videos(9)
    write_safetensors(tmp_path / "vae.safetensors", codec.fitted_tensors(), {})
    other = ConvVideoCodec(12, width=8)
    assert not other.fitted
    other.load_fitted_tensors(read_safetensors(tmp_path / "vae.safetensors"), "vae.safetensors")
    assert other.fitted
    assert torch.equal(other.encode(video), codec.encode(video))
    assert other.identity() == codec.identity()
    with pytest.raises(ValueError, match="does not fit ConvVideoCodec"):
        ConvVideoCodec(16, width=8).load_fitted_tensors(codec.fitted_tensors(), "vae.safetensors")


def test_what_is_not_fitted_codes_nothing() -> None:
    codec = ConvVideoCodec(12, width=8)
    with pytest.raises(RuntimeError, match=re.escape("call fit(video)")):
        codec.encode(dot_videos(5))
    with pytest.raises(RuntimeError, match=re.escape("call fit(video)")):
        codec.streaming_decoder()


def test_bad_videos_are_refused() -> None:
    codec = ConvVideoCodec(12, width=8)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        codec.fit(dot_videos(5).fill_(float("nan")))
    with pytest.raises(ValueError, match="4 frames cannot be encoded"):
        fitted().encode(dot_videos(4))
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.fit(dot_videos(5)[..., :12])
    assert not codec.fitted


def test_videos_of_one_colour_are_no_reason_to_divide_by_zero() -> None:
    codec = ConvVideoCodec(12, width=8, num_steps=2, batch_size=6)
    codec.fit(torch.zeros(2, 5, 3, HEIGHT, WIDTH))
    assert torch.isfinite(codec.encode(dot_videos(5))).all()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"latent_dim": 10}, "multiple of temporal_compression_ratio 4"),
        ({"spatial_compression_ratio": 6}, "4 times a power of 2"),
        ({"spatial_compression_ratio": 2}, "4 times a power of 2"),
        ({"width": 0}, "width must be"),
        ({"num_steps": 0}, "num_steps must be"),
        ({"noise": -0.1}, "noise must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"change_weight": -0.1}, "change_weight must be"),
        ({"time_whitening": 1.1}, "time_whitening must be"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ConvVideoCodec(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_steps", [1, 10])
def test_a_fit_that_a_single_picture_could_replace_is_refused(num_steps: int) -> None:
    codec = ConvVideoCodec(12, width=8, num_steps=num_steps, batch_size=6, learning_rate=1e-6)
    with pytest.raises(RuntimeError, match=r"the fit of the codec failed: its pictures have an error of [\d.]+, and"):
        codec.fit(dot_videos(9))
    assert not codec.fitted


def test_a_fit_that_goes_astray_is_refused() -> None:
    codec = ConvVideoCodec(12, width=8, num_steps=20, batch_size=6, learning_rate=1e6)
    with pytest.raises(RuntimeError, match="with a lower learning_rate"):
        codec.fit(dot_videos(9))
    assert not codec.fitted


def test_latents_of_fewer_bits_decode_in_the_codecs_own() -> None:
    codec = fitted()
    video = dot_videos(5)
    latents = codec.encode(video.bfloat16())
    assert latents.dtype == torch.float32
    decoded = codec.decode(latents.bfloat16())
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, codec.decode(latents.bfloat16().float()))
