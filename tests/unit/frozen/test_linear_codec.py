"""The linear codec: geometry and causality of a causal video VAE, and exact where it can be."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.frozen.interfaces import CodecVideos, FittedCodec, VideoCodec
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.weights.safetensors_files import read_safetensors, write_safetensors

BATCH, HEIGHT, WIDTH, PATCH = 3, 4, 6, 2


def smooth_videos(num_frames: int, batch_size: int = BATCH, rank: int = 4, seed: int = 0) -> Tensor:
    """Videos in (-1, 1) whose patches, and groups of 4 of them, span `rank` dimensions, the mean included.

    Each is a mixture of the same `rank` patches; a video stands still but for a flicker that all groups share.
    """
    random = torch.Generator().manual_seed(seed)
    patches = torch.rand(rank, 3, PATCH, PATCH, generator=random) * 2 - 1
    weights = torch.rand(batch_size, rank, HEIGHT // PATCH, WIDTH // PATCH, generator=random) / rank
    frame = torch.einsum("brhw,rcpq->bchpwq", weights, patches).reshape(batch_size, 3, HEIGHT, WIDTH)
    flicker = 1 - 0.1 * ((torch.arange(num_frames) - 1) % 4)
    return frame[:, None] * flicker[:, None, None, None]


def noise_videos(num_frames: int, batch_size: int = BATCH) -> Tensor:
    return torch.rand(batch_size, num_frames, 3, HEIGHT, WIDTH) * 2 - 1


def fitted(latent_dim: int = 5, ratio: int = 4, num_frames: int = 17) -> LinearVideoCodec:
    codec = LinearVideoCodec(latent_dim, PATCH, ratio)
    codec.fit(noise_videos(num_frames, batch_size=20))
    return codec


@pytest.mark.parametrize("ratio", [1, 3, 4])
@pytest.mark.parametrize("num_latents", [1, 2, 5])
def test_geometry(ratio: int, num_latents: int) -> None:
    codec = fitted(ratio=ratio, num_frames=1 + 4 * ratio)
    video = noise_videos(1 + ratio * (num_latents - 1))
    latents = codec.encode(video)
    assert latents.shape == (BATCH, num_latents, 5, 2, 3)
    assert tuple(latents.shape[2:]) == codec.latent_shape(HEIGHT, WIDTH)
    decoded = codec.decode(latents)
    assert decoded.shape == video.shape
    assert decoded.abs().max() <= 1


def test_videos_that_the_components_span_come_back() -> None:
    codec = LinearVideoCodec(4, PATCH)
    codec.fit(smooth_videos(17, batch_size=20))
    unseen = smooth_videos(9)[:2] * 0.5
    # Float32; a component that nothing needs is not missed.
    torch.testing.assert_close(codec.decode(codec.encode(unseen)), unseen, atol=1e-5, rtol=0)


def test_too_few_components_lose_something() -> None:
    codec = LinearVideoCodec(2, PATCH)
    videos = smooth_videos(17, batch_size=20)
    codec.fit(videos)
    assert (codec.decode(codec.encode(videos)) - videos).abs().max() > 1e-2


def test_every_value_of_a_first_frame_comes_back_when_there_are_as_many_channels() -> None:
    codec = fitted(latent_dim=3 * PATCH**2)
    frame = noise_videos(1)
    torch.testing.assert_close(codec.decode(codec.encode(frame)), frame, atol=1e-5, rtol=0)


def test_channels_are_principal_components_with_the_square_root_of_their_deviation() -> None:
    codec = LinearVideoCodec(6, PATCH)
    scale = torch.linspace(0.1, 1, WIDTH)  # so that directions differ in how much they vary
    videos = noise_videos(5, batch_size=300) * scale
    codec.fit(videos)
    for latents in codec.encode(videos).split([1, 1], dim=1):
        values = latents.double().transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)  # [C, N]
        covariance = values @ values.T / values.shape[1]
        deviation = covariance.diagonal()  # (deviation / sqrt(deviation))^2
        assert values.mean(1).abs().max() < 1e-5
        assert (covariance - deviation.diag()).abs().max() < 1e-5
        assert bool((deviation[:-1] >= deviation[1:] - 1e-6).all())
    torch.testing.assert_close(codec.later.scale.double().square(), deviation, atol=1e-5, rtol=0)


@pytest.mark.parametrize("split", [[1] * 5, [1, 4], [2, 3], [3, 1, 1], [4, 1]])
def test_streaming_equals_decoding_at_once(split: list[int]) -> None:
    codec = fitted()
    latents = torch.randn(BATCH, 5, 5, 2, 3)
    decode = codec.streaming_decoder()
    parts = [decode(part) for part in latents.split(split, dim=1)]
    assert [part.shape[1] for part in parts] == [4 * split[0] - 3] + [4 * size for size in split[1:]]
    assert torch.equal(torch.cat(parts, dim=1), codec.decode(latents))


def test_two_streams_do_not_disturb_each_other() -> None:
    codec = fitted()
    one, other = torch.randn(2, BATCH, 3, 5, 2, 3)
    decode_one, decode_other = codec.streaming_decoder(), codec.streaming_decoder()
    parts_one, parts_other = [decode_one(one[:, :1])], []
    parts_other += [decode_other(other[:, :2])]
    parts_one += [decode_one(one[:, 1:2])]
    parts_other += [decode_other(other[:, 2:])]
    parts_one += [decode_one(one[:, 2:])]
    assert torch.equal(torch.cat(parts_one, dim=1), codec.decode(one))
    assert torch.equal(torch.cat(parts_other, dim=1), codec.decode(other))
    assert not torch.equal(codec.decode(one), codec.decode(other))


@pytest.mark.parametrize("ratio", [3, 4])
def test_no_pixel_frame_reaches_an_earlier_latent_frame(ratio: int) -> None:
    codec = fitted(ratio=ratio, num_frames=1 + 4 * ratio)
    video = noise_videos(1 + 2 * ratio)
    before = codec.encode(video)
    for frame in range(video.shape[1]):
        changed = video.clone()
        changed[:, frame] = -changed[:, frame]
        different = (codec.encode(changed) != before).flatten(2).any(-1).all(0).tolist()
        own = 0 if frame == 0 else (frame - 1) // ratio + 1
        assert different == [latent == own for latent in range(3)]


def test_a_shorter_video_has_the_same_first_latents() -> None:
    codec = fitted()
    video = noise_videos(13)
    latents = codec.encode(video)
    assert torch.equal(codec.encode(video[:, :1]), latents[:, :1])
    # The matrix product is of another height, and float32 may round differently.
    torch.testing.assert_close(codec.encode(video[:, :5]), latents[:, :2], atol=1e-6, rtol=1e-6)


def test_positions_and_samples_do_not_mix() -> None:
    codec = fitted()
    video = noise_videos(5)
    before = codec.encode(video)
    video[1, :, :, PATCH:, 2 * PATCH :] += 0.5
    changed = (codec.encode(video) != before).any(dim=2)
    assert {tuple(place) for place in changed.nonzero()[:, [0, 2, 3]].tolist()} == {(1, 1, 2)}
    decoded = codec.decode(before * 0.1)
    before[1, 1, :, 1, 2] += 0.1
    changed = (codec.decode(before * 0.1) != decoded).any(dim=2)
    assert changed.nonzero().min(0).values.tolist() == [1, 1, PATCH, 2 * PATCH]
    assert changed.nonzero().max(0).values.tolist() == [1, 4, 2 * PATCH - 1, 3 * PATCH - 1]


@pytest.mark.parametrize("frames", [0, 2, 4, 6])
def test_a_wrong_number_of_frames_is_refused(frames: int) -> None:
    codec = fitted()
    codec.encode(noise_videos(5))
    with pytest.raises(ValueError, match=rf"{frames} frames cannot be encoded: expected 1 \+ 4 n"):
        codec.encode(noise_videos(frames))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 5, 6), "multiples of 2, got 5 x 6"),
        ((3, 4, 7), "multiples of 2, got 4 x 7"),
        ((4, 4, 6), r"expected videos of floats \[B, T, 3, H, W\] in \[-1, 1\], got torch.float32 \[3, 5, 4, 4, 6\]"),
    ],
)
def test_frames_of_another_kind_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fitted().encode(torch.zeros(BATCH, 5, *shape))


def test_an_unfitted_codec_is_refused() -> None:
    codec = LinearVideoCodec(5, PATCH)
    assert not codec.fitted
    with pytest.raises(RuntimeError, match="not fitted"):
        codec.encode(noise_videos(5))
    with pytest.raises(RuntimeError, match="not fitted"):
        codec.decode(torch.zeros(BATCH, 2, 5, 2, 3))
    with pytest.raises(RuntimeError, match="not fitted"):
        codec.streaming_decoder()
    codec.fit(noise_videos(5))
    assert codec.fitted


def videos_with(place: tuple[int, int], value: float) -> Tensor:
    videos = noise_videos(5)
    videos[place] = value
    return videos


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        (noise_videos(1), r"cannot be fitted to videos of one frame: expected 1 \+ 4 n"),
        (videos_with((1, 0), float("nan")), "training videos hold NaN or infinity"),
        (videos_with((2, 4), float("inf")), "training videos hold NaN or infinity"),
    ],
)
def test_videos_that_cannot_be_fitted_are_refused_and_leave_nothing_behind(videos: Tensor, message: str) -> None:
    codec = LinearVideoCodec(5, PATCH)
    with pytest.raises(ValueError, match=message):
        codec.fit(videos)
    assert not codec.fitted


def test_more_channels_than_values_are_refused() -> None:
    LinearVideoCodec(12, PATCH)
    with pytest.raises(ValueError, match="latent_dim 13 is more than a patch has values, 12"):
        LinearVideoCodec(13, PATCH)


def test_fitting_is_deterministic() -> None:
    videos = noise_videos(9)
    codecs = [LinearVideoCodec(5, PATCH) for _ in range(2)]
    for codec in codecs:
        codec.fit(videos)
    one, other = (codec.fitted_tensors() for codec in codecs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    codecs[1].fit(noise_videos(9))
    assert not torch.equal(codecs[1].first.mean, codecs[0].first.mean)


def test_saved_and_loaded_it_is_the_same_codec(tmp_path: Path) -> None:
    codec, loaded = fitted(), LinearVideoCodec(5, PATCH)
    write_safetensors(tmp_path / "vae.safetensors", codec.fitted_tensors(), {})
    loaded.load_fitted_tensors(read_safetensors(tmp_path / "vae.safetensors"), "the file")
    assert loaded.fitted
    video = noise_videos(5)
    assert torch.equal(loaded.encode(video), codec.encode(video))
    assert torch.equal(loaded.decode(codec.encode(video)), codec.decode(codec.encode(video)))


def test_tensors_of_other_sizes_are_refused_by_name() -> None:
    other = LinearVideoCodec(7, PATCH)
    message = r"run 3 does not fit LinearVideoCodec .*first.basis \[12, 5\] \(expected \[12, 7\]\)"
    with pytest.raises(ValueError, match=message):
        other.load_fitted_tensors(fitted().fitted_tensors(), "run 3")
    assert not other.fitted


def test_nothing_is_trainable_and_nothing_carries_gradient() -> None:
    codec = fitted()
    assert list(codec.parameters()) == []
    latents = torch.randn(BATCH, 2, 5, 2, 3, requires_grad=True)
    assert not codec.decode(latents).requires_grad
    assert not codec.encode(noise_videos(5).requires_grad_()).requires_grad


def test_it_is_a_codec_that_is_saved_with_the_run() -> None:
    assert isinstance(LinearVideoCodec(), FittedCodec)

    class WithVideos:
        def codec_videos(self) -> Tensor:
            return noise_videos(5)

    assert isinstance(WithVideos(), CodecVideos)
    assert not isinstance(object(), CodecVideos)


@pytest.mark.parametrize("ratio", [1, 3])
def test_a_video_that_comes_in_parts_is_encoded_as_the_whole(ratio: int) -> None:
    codec = fitted(ratio=ratio, num_frames=1 + 4 * ratio)
    video = noise_videos(1 + 4 * ratio)
    parts = list(codec.encode_parts(video.split([1 + ratio, 2 * ratio, ratio], dim=1)))
    assert [latents.shape[1] for latents in parts] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(parts, dim=1), codec.encode(video), atol=1e-6, rtol=0)
    whole = list(VideoCodec.encode_parts(codec, video.split([1 + ratio, 2 * ratio, ratio], dim=1)))
    assert len(whole) == 1 and torch.equal(whole[0], codec.encode(video))


def test_its_identity_is_that_of_what_was_fitted() -> None:
    codec, same = fitted(), LinearVideoCodec(5, PATCH, 4)
    same.load_fitted_tensors(codec.fitted_tensors(), "test")
    assert codec.identity() == same.identity() != fitted().identity()
