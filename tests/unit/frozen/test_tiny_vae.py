"""The tiny autoencoder against its definition, written out frame by frame from the names in the file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_action.frozen.tiny_vae import TinyWanVAE
from tests.support.tiny_vae import SIZES, shapes, tensors_of

GEOMETRY: dict[str, dict[str, Any]] = {
    "2.1": {"latent_dim": 16, "spatial_compression_ratio": 8},
    "2.2": {"latent_dim": 48, "spatial_compression_ratio": 16},
}


def write(tensors: dict[str, Tensor], folder: Path) -> str:
    torch.save(tensors, folder / "taew2_1.pth")
    return str(folder / "taew2_1.pth")


def tiny_vae(version: str, folder: Path) -> tuple[TinyWanVAE, dict[str, Tensor]]:
    tensors = tensors_of(version)
    return TinyWanVAE(write(tensors, folder), **GEOMETRY[version]), tensors


def through(tensors: dict[str, Tensor], side: str, frames: list[Tensor]) -> list[Tensor]:
    """Frames `[B, C, H, W]` through the numbered layers of one side."""
    upsampling = (6, 12, 18) if side == "decoder" else ()
    for index in range(1 + max(int(name.split(".")[1]) for name in tensors if name.startswith(side))):
        layer = {name.split(".", 2)[2]: value for name, value in tensors.items() if name.startswith(f"{side}.{index}.")}
        if "conv.0.weight" in layer:
            before = [torch.zeros_like(frames[0]), *frames[:-1]]
            frames = [memory_block(layer, now, past) for now, past in zip(frames, before, strict=True)]
        elif "conv.weight" in layer:
            weight = layer["conv.weight"]
            stride = weight.shape[1] // weight.shape[0]
            if side == "encoder":
                groups = [torch.cat(frames[at : at + stride], dim=1) for at in range(0, len(frames), stride)]
                frames = [functional.conv2d(group, weight) for group in groups]
            else:
                grown = [functional.conv2d(frame, weight) for frame in frames]
                frames = [part for frame in grown for part in frame.split(weight.shape[1], dim=1)]
        elif "weight" in layer:
            stride = 2 if side == "encoder" and "bias" not in layer else 1
            frames = [functional.conv2d(frame, **layer, stride=stride, padding=1) for frame in frames]
        elif index in upsampling:
            frames = [functional.interpolate(frame, scale_factor=2) for frame in frames]
        elif (side, index) == ("decoder", 0):
            frames = [3 * torch.tanh(frame / 3) for frame in frames]
        else:
            frames = [frame.relu() for frame in frames]
    return frames


def memory_block(layer: dict[str, Tensor], frame: Tensor, past: Tensor) -> Tensor:
    hidden = torch.cat([frame, past], dim=1)
    for index in (0, 2, 4):
        hidden = functional.conv2d(hidden, layer[f"conv.{index}.weight"], layer[f"conv.{index}.bias"], padding=1)
        hidden = hidden if index == 4 else hidden.relu()
    return (hidden + frame).relu()


def test_sizes_of_the_published_file() -> None:
    published = shapes(16, 1, widths=(256, 128, 64, 64), encoder_width=64)
    assert published["decoder.7.conv.weight"] == (256, 256, 1, 1)
    assert published["decoder.13.conv.weight"] == (256, 128, 1, 1)
    assert published["encoder.2.conv.weight"] == (64, 128, 1, 1)
    assert sum(torch.Size(shape).numel() for shape in published.values()) == 11_315_539


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_decoding_is_as_defined(version: str, tmp_path: Path) -> None:
    ours, tensors = tiny_vae(version, tmp_path)
    side = GEOMETRY[version]["spatial_compression_ratio"]
    latents = torch.randn(2, 3, *ours.latent_shape(2 * side, 3 * side))
    frames = torch.stack(through(tensors, "decoder", list(latents.unbind(1))), dim=1)[:, 3:]
    expected = functional.pixel_shuffle(frames, SIZES[version]["patch_size"]).clamp(0, 1) * 2 - 1
    decoded = ours.decode(latents)
    assert decoded.shape == (2, 9, 3, 2 * side, 3 * side)
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=0)
    assert decoded.std() > 0.1 and (decoded.abs() < 1).float().mean() > 0.2


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_encoding_is_as_defined(version: str, num_frames: int, tmp_path: Path) -> None:
    ours, tensors = tiny_vae(version, tmp_path)
    side = GEOMETRY[version]["spatial_compression_ratio"]
    video = torch.rand(2, num_frames, 3, 2 * side, 3 * side) * 2 - 1
    padded = [*((video + 1) / 2).unbind(1), *(3 * [(video[:, -1] + 1) / 2])]
    shuffled = [functional.pixel_unshuffle(frame, SIZES[version]["patch_size"]) for frame in padded]
    expected = torch.stack(through(tensors, "encoder", shuffled), dim=1)
    latents = ours.encode(video)
    assert latents.shape == (2, 1 + (num_frames - 1) // 4, *ours.latent_shape(2 * side, 3 * side))
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)
    assert latents.std() > 0.1


def test_streamed_frames_are_those_of_the_whole(tmp_path: Path) -> None:
    vae, _ = tiny_vae("2.1", tmp_path)
    latents = torch.randn(2, 5, 16, 2, 3)
    whole = vae.decode(latents)
    for splits in ([1, 1, 3], [2, 3], [5]):
        decode_next = vae.streaming_decoder()
        parts = [decode_next(part) for part in latents.split(splits, dim=1)]
        assert [part.shape[1] for part in parts] == [
            4 * length - 3 * (index == 0) for index, length in enumerate(splits)
        ]
        # To the rounding of convolutions over another number of frames: 2.4e-7 was seen, of values up to 1.
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-6, rtol=0)
    # A decoder that forgets gives other frames.
    assert (vae.decode(latents[:, 1:])[:, 1:5] - whole[:, 5:9]).abs().max() > 1e-2


def test_latents_of_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected latents \[B, F, 16, h, w\], got \[2, 16, 2, 3\]"):
        tiny_vae("2.1", tmp_path)[0].decode(torch.zeros(2, 16, 2, 3))


def test_two_videos_are_decoded_in_turn(tmp_path: Path) -> None:
    vae, _ = tiny_vae("2.1", tmp_path)
    first, second = torch.randn(2, 3, 16, 2, 3), torch.randn(1, 3, 16, 3, 2)
    one, other = vae.streaming_decoder(), vae.streaming_decoder()
    turns = [(one(first[:, [index]]), other(second[:, [index]])) for index in range(3)]
    for streamed, latents in zip(zip(*turns, strict=True), (first, second), strict=True):
        alone = vae.streaming_decoder()
        assert torch.equal(torch.cat(streamed, dim=1), torch.cat(list(map(alone, latents.split(1, dim=1))), dim=1))


def test_copies_of_streams_go_on_by_themselves(tmp_path: Path) -> None:
    vae, _ = tiny_vae("2.1", tmp_path)
    latents, decode_next = torch.randn(2, 3, 16, 2, 3), vae.streaming_decoder()
    decode_next(latents[:, :2])
    copy, chosen = decode_next.copy(), decode_next.select([1, 1, 0])
    copy(-latents[:, 2:])
    here = decode_next(latents[:, 2:])
    torch.testing.assert_close(here, vae.decode(latents)[:, -4:], atol=1e-6, rtol=0)
    torch.testing.assert_close(chosen(latents[[1, 1, 0], 2:]), here[[1, 1, 0]], atol=1e-6, rtol=0)
    assert (here[1] - here[0]).abs().max() > 1e-2


class Operations(TorchDispatchMode):
    """Counts what is computed, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def test_a_block_is_decoded_at_once_and_zeros_stand_before_the_video_alone(tmp_path: Path) -> None:
    decode_next = tiny_vae("2.1", tmp_path)[0].streaming_decoder()
    found = []
    for length in (3, 3, 1):
        with Operations() as operations:
            decode_next(torch.randn(1, length, 16, 2, 3))
        found.append(operations.counts)
    assert [counts["convolution"] for counts in found] == [35, 35, 35]
    assert [counts["zeros_like"] for counts in found] == [9, 0, 0]
    # The latents, what each memory block keeps, and the two layers that make time.
    assert found[1]["clone"] == found[2]["clone"] == 1 + 9 + 2


@pytest.mark.parametrize(("batch_size", "num_latents"), [(1, 1), (1, 3), (2, 1), (2, 5)])
def test_channels_lie_side_by_side_in_every_layer(batch_size: int, num_latents: int, tmp_path: Path) -> None:
    vae, _ = tiny_vae("2.1", tmp_path)
    vae.load()
    seen: list[Tensor] = []
    for layer in vae._model.modules():
        layer.register_forward_hook(lambda _, inputs, output: seen.extend([*inputs, output]))
    decode_next = vae.streaming_decoder()
    parts = [decode_next(torch.randn(batch_size, num_latents, 16, 2, 3)) for _ in range(2)]
    parts.append(vae.encode(torch.cat(parts, dim=1)))
    frames = [tensor for tensor in seen if tensor.ndim == 4]
    weights = [tensor for tensor in vae._model.parameters() if tensor.ndim == 4]
    assert len(frames) > 200 and len(weights) == 70
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in frames + weights)
    assert all(part.is_contiguous() for part in parts)


def test_half_precision_computes_in_it_and_gives_float32(tmp_path: Path) -> None:
    vae, _ = tiny_vae("2.1", tmp_path)
    half = TinyWanVAE(vae.path, dtype="bfloat16")
    latents = torch.randn(1, 2, 16, 2, 3)
    decoded = half.decode(latents)
    assert {parameter.dtype for parameter in half._model.parameters()} == {torch.bfloat16}
    assert decoded.dtype == torch.float32
    assert 0 < (decoded - vae.decode(latents)).abs().max() < 0.2
    assert half.encode(decoded).dtype == torch.float32


def test_the_trainers_autocast_changes_nothing(tmp_path: Path) -> None:
    vae, _ = tiny_vae("2.1", tmp_path)
    latents = torch.randn(1, 2, 16, 2, 3)
    decoded = vae.decode(latents)
    encoded = vae.encode(decoded)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vae.decode(latents), decoded)
        assert torch.equal(vae.encode(decoded), encoded)


def test_a_decoder_alone_cannot_encode(tmp_path: Path) -> None:
    tensors = {name: value for name, value in tensors_of("2.1").items() if name.startswith("decoder.")}
    save_file(tensors, tmp_path / "decoder.safetensors")
    vae = TinyWanVAE(str(tmp_path / "decoder.safetensors"))
    assert vae.decode(torch.randn(1, 2, 16, 2, 3)).shape == (1, 5, 3, 16, 24)
    with pytest.raises(ValueError, match="hold a decoder alone"):
        vae.encode(torch.zeros(1, 1, 3, 16, 24))


def test_files_of_something_else_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"configured as \(16, 8, 4\), those of .* are \(48, 16, 4\)"):
        TinyWanVAE(write(tensors_of("2.2"), tmp_path)).load()
    with pytest.raises(ValueError, match=r"those of .* are \(16, 8, 8\)"):
        TinyWanVAE(write(tensors_of("2.1", growth=(2, 2, 2)), tmp_path)).load()
    with pytest.raises(ValueError, match="holds no tiny autoencoder: it has no tensor 'decoder.1.weight'"):
        TinyWanVAE(write({"blocks.0.modulation": torch.zeros(3)}, tmp_path)).load()
    tensors = tensors_of("2.1")
    del tensors["decoder.4.conv.2.bias"]
    with pytest.raises(ValueError, match="1 missing: decoder.4.conv.2.bias"):
        TinyWanVAE(write(tensors, tmp_path)).load()
