"""Reading, refusing and streaming; agreement with diffusers is tested in `tests/parity`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_action.frozen.wan_vae import WanVideoVAE
from lightning_action.frozen.wan_vae_format import config_of
from tests.support.wan_parts import GEOMETRY, original_tensors, small_vae, video


def without_own_statistics(version: str) -> Any:
    """A VAE whose normalisation is the published one, which a bare file of tensors stands for."""
    sizes = config_of(small_vae(version).state_dict())
    return small_vae(version, **{key: value for key, value in sizes.items() if key.startswith("latents")})


@pytest.fixture
def vae(tmp_path: Path) -> WanVideoVAE:
    small_vae("2.1").save_pretrained(tmp_path)
    return WanVideoVAE(str(tmp_path))


def in_folder(version: str, vae: Any, path: Path) -> Path:
    vae.save_pretrained(path)
    return path


def in_folder_of_release(version: str, vae: Any, path: Path) -> Path:
    vae.save_pretrained(path / "vae")
    return path


def in_safetensors(version: str, vae: Any, path: Path) -> Path:
    save_file(vae.state_dict(), path / "any name.safetensors")
    return path / "any name.safetensors"


def in_original_safetensors(version: str, vae: Any, path: Path) -> Path:
    save_file(original_tensors(version, vae), path / "vae.safetensors")
    return path / "vae.safetensors"


def in_original_pickle(version: str, vae: Any, path: Path) -> Path:
    torch.save(original_tensors(version, vae), path / f"Wan{version}_VAE.pth")
    # The generator's, in a release.
    (path / "config.json").write_text('{"_class_name": "WanModel", "dim": 1536}')
    return path / f"Wan{version}_VAE.pth"


def in_original_release(version: str, vae: Any, path: Path) -> Path:
    return in_original_pickle(version, vae, path).parent


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize(
    "write",
    [
        *(in_folder, in_folder_of_release, in_safetensors),
        *(in_original_safetensors, in_original_pickle, in_original_release),
    ],
)
def test_every_format_gives_the_same_network(
    version: str, write: Callable[[str, Any, Path], Path], tmp_path: Path
) -> None:
    theirs = without_own_statistics(version)
    ours = WanVideoVAE(str(write(version, theirs, tmp_path)), **GEOMETRY[version])
    ours.load()
    stored = theirs.state_dict()
    loaded = ours._model.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())
    assert all(ours._model.config[key] == theirs.config[key] for key in ("latents_mean", "latents_std", "patch_size"))
    assert not any(parameter.requires_grad for parameter in ours._model.parameters())


def test_streaming_splits_are_bit_equal_and_state_is_needed(vae: WanVideoVAE) -> None:
    latents = torch.randn(2, 4, 16, 2, 3)
    whole = vae.decode(latents)
    decode_next = vae.streaming_decoder()
    assert torch.equal(torch.cat([decode_next(latents[:, :1]), decode_next(latents[:, 1:])], dim=1), whole)
    # A decoder that forgets gives other frames.
    assert (vae.decode(latents[:, 1:])[:, -4:] - whole[:, -4:]).abs().max() > 1e-2


def test_copies_of_streams_go_on_by_themselves(vae: WanVideoVAE) -> None:
    latents, pixels = torch.randn(2, 4, 16, 2, 3), video("2.1", 13)
    for whole, stream, x, cut in (
        (vae.decode(latents), vae.streaming_decoder(), latents, 2),
        (vae.encode(pixels), vae.streaming_encoder(), pixels, 9),
    ):
        stream(x[:, :cut])
        copy, chosen = stream.copy(), stream.select([1, 1, 0])
        # Where the copy goes on, what it comes from still stands.
        copy(-x[:, cut:])
        here = stream(x[:, cut:])
        torch.testing.assert_close(here, whole[:, -here.shape[1] :], atol=1e-6, rtol=0)
        torch.testing.assert_close(chosen(x[[1, 1, 0], cut:]), here[[1, 1, 0]], atol=1e-5, rtol=0)
        assert (here[1] - here[0]).abs().max() > 1e-2


def test_latents_of_another_model_are_refused(vae: WanVideoVAE) -> None:
    with pytest.raises(ValueError, match=r"expected latents \[B, F, 16, h, w\], got \[1, 2, 48, 2, 3\]"):
        vae.decode(torch.zeros(1, 2, 48, 2, 3))


def test_two_videos_are_decoded_in_turn(vae: WanVideoVAE) -> None:
    first, second = torch.randn(2, 3, 16, 2, 3), torch.randn(1, 3, 16, 3, 2)
    expected = vae.decode(first), vae.decode(second)
    one, other = vae.streaming_decoder(), vae.streaming_decoder()
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in range(3):
        parts[0].append(one(first[:, index : index + 1]))
        # Encoding in between has a cache of its own.
        vae.encode(video("2.1", 5))
        parts[1].append(other(second[:, index : index + 1]))
    for streamed, whole in zip(parts, expected, strict=True):
        assert torch.equal(torch.cat(streamed, dim=1), whole)


def test_samples_of_a_batch_do_not_meet(vae: WanVideoVAE) -> None:
    pixels = video("2.1", 5)
    latents = vae.encode(pixels)
    for row in range(2):
        # Float32; a convolution over another batch may round differently.
        torch.testing.assert_close(vae.encode(pixels[row : row + 1]), latents[row : row + 1], atol=1e-5, rtol=0)
        torch.testing.assert_close(
            vae.decode(latents[row : row + 1]), vae.decode(latents)[row : row + 1], atol=1e-5, rtol=0
        )
    assert (latents[0] - latents[1]).abs().max() > 1e-2


def test_later_frames_do_not_change_earlier_latents(vae: WanVideoVAE) -> None:
    pixels = video("2.1", 9)
    latents = vae.encode(pixels)
    assert torch.equal(vae.encode(pixels[:, :5]), latents[:, :2])
    pixels[:, 3] = -pixels[:, 3]
    changed = vae.encode(pixels)
    assert torch.equal(changed[:, :1], latents[:, :1])
    assert (changed[:, 1] - latents[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_computes_in_it_and_gives_float32(dtype: Any, tmp_path: Path, vae: WanVideoVAE) -> None:
    half = WanVideoVAE(str(tmp_path), dtype=dtype)
    pixels = video("2.1", 5)
    latents = half.encode(pixels)
    assert half._model.dtype == getattr(torch, dtype)
    assert latents.dtype == half.decode(latents).dtype == torch.float32
    expected = vae.encode(pixels)
    assert 0 < (latents - expected).abs().max() < 0.05
    assert 0 < (half.decode(expected) - vae.decode(expected)).abs().max() < 0.1


def test_the_trainers_autocast_changes_nothing(vae: WanVideoVAE) -> None:
    pixels, latents = video("2.1", 5), torch.randn(1, 2, 16, 2, 3)
    expected = vae.encode(pixels), vae.decode(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vae.encode(pixels), expected[0])
        assert torch.equal(vae.decode(latents), expected[1])
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_file_of_another_geometry_is_refused(tmp_path: Path) -> None:
    in_folder("2.2", small_vae("2.2"), tmp_path)
    with pytest.raises(ValueError, match=r"configured as \(16, 8, 4\), those of .* are \(48, 16, 4\)"):
        WanVideoVAE(str(tmp_path)).load()


def test_a_file_of_unknown_latents_needs_its_configuration(tmp_path: Path) -> None:
    theirs = small_vae("2.1", z_dim=5, latents_mean=[0.1] * 5, latents_std=[0.7] * 5)
    with pytest.raises(ValueError, match="latents have 5 channels, .* config.json"):
        WanVideoVAE(str(in_safetensors("2.1", theirs, tmp_path)), latent_dim=5).load()
    folder = in_folder("2.1", theirs, tmp_path / "folder")
    assert WanVideoVAE(str(folder), latent_dim=5).encode(video("2.1", 1)).shape == (2, 1, 5, 2, 3)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    tensors = small_vae("2.1").state_dict()
    del tensors["decoder.conv_out.bias"]
    tensors["decoder.surprise"] = torch.zeros(3)
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"1 missing: decoder.conv_out.bias; 1 unexpected: decoder.surprise"):
        WanVideoVAE(str(tmp_path / "vae.safetensors")).load()
    save_file({"blocks.0.modulation": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no Wan VAE: it has no tensor 'encoder.conv_in.weight'"):
        WanVideoVAE(str(tmp_path / "other.safetensors")).load()


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("executed"),))


def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"encoder.conv1.weight": Malicious()}, "Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match="run code"):
        WanVideoVAE("Wan2.1_VAE.pth").load()
    assert not Path("executed").exists()
    pickle.loads(pickle.dumps(Malicious()))
    assert Path("executed").exists()


@pytest.mark.parametrize("write", [in_safetensors, in_original_pickle])
def test_a_truncated_file_is_refused(write: Callable[[str, Any, Path], Path], tmp_path: Path) -> None:
    path = write("2.1", small_vae("2.1"), tmp_path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f"{path.name} (is not a whole|cannot be read)"):
        WanVideoVAE(str(path)).load()


def test_a_damaged_configuration_is_refused(tmp_path: Path, vae: WanVideoVAE) -> None:
    config = tmp_path / "config.json"
    config.write_text(config.read_text()[:-20])
    with pytest.raises(ValueError, match="config.json is not JSON"):
        vae.load()


def test_missing_weights_are_told(tmp_path: Path) -> None:
    vae = WanVideoVAE(str(tmp_path / "nothing"))
    with pytest.raises(FileNotFoundError, match="no weights at .*nothing"):
        vae.load()
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKLWan"}))
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        WanVideoVAE(str(tmp_path)).load()


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("parts", [[1, 4, 8], [9, 4], [13]])
def test_a_video_that_comes_in_parts_is_encoded_as_the_whole(version: str, parts: list[int], tmp_path: Path) -> None:
    small_vae(version).save_pretrained(tmp_path)
    vae = WanVideoVAE(str(tmp_path), **GEOMETRY[version])
    pixels = video(version, num_frames=13)
    encoded = list(vae.encode_parts(pixels.split(parts, dim=1)))
    assert [latents.shape[1] for latents in encoded] == [(frames + 3) // 4 for frames in parts]
    torch.testing.assert_close(torch.cat(encoded, dim=1), vae.encode(pixels), atol=1e-6, rtol=0)
    assert (vae.encode(pixels[:, 4:])[:, 1:] - vae.encode(pixels)[:, 2:]).abs().max() > 1e-3, "the VAE has a memory"
    with pytest.raises(ValueError, match="cannot be encoded: expected 1 [+] 4 n"):
        list(vae.encode_parts(pixels.split([9, 3, 1], dim=1)))


def test_its_identity_is_that_of_its_weights(vae: WanVideoVAE, tmp_path: Path) -> None:
    assert (
        vae.identity()
        == WanVideoVAE(str(tmp_path)).identity()
        == WanVideoVAE(str(tmp_path), dtype="bfloat16").identity()
    )
    assert vae.identity().startswith("WanVideoVAE ")
    small_vae("2.1").save_pretrained(tmp_path / "other")
    assert WanVideoVAE(str(tmp_path / "other")).identity() != vae.identity()
