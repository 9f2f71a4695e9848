"""The pipeline on files of the real formats, with small random networks in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_action import ActionCausalInferencePipeline, ActionModulationProjection, CausalWanModel
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.release import RELEASE_VARIABLE
from lightning_action.weights.safetensors_files import write_safetensors
from tests.support.small_generator import fill
from tests.support.wan_parts import small_umt5, small_vae, write_word_tokenizer

PROMPTS = ["a red disc moves left", "the fox"]


@pytest.fixture(params=["2.1", "2.2"])
def release(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, int]:
    """A folder in the layout of diffusers, and its number of latent channels."""
    torch.manual_seed(0)
    vae = small_vae(request.param)
    channels = vae.config.z_dim
    generator = CausalWanModel(128, 40, 1, 2, channels, channels, freq_dim=14, text_dim=20)
    fill(generator)
    tensors = {to_diffusers_name(name): tensor for name, tensor in generator.state_dict().items()}
    (tmp_path / "transformer").mkdir()
    write_safetensors(tmp_path / "transformer" / "diffusion_pytorch_model.safetensors", tensors, {})
    vae.save_pretrained(tmp_path / "vae")
    small_umt5().save_pretrained(tmp_path / "text_encoder")
    write_word_tokenizer(tmp_path / "tokenizer")
    return tmp_path, channels


def test_a_release_generates_and_obeys(release: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, channels = release
    monkeypatch.setenv(RELEASE_VARIABLE, str(folder))
    projection = ActionModulationProjection(3, 128, hidden_dim=10)
    fill(projection)
    made = ActionCausalInferencePipeline.from_checkpoint(None, action_projection=projection)
    noise = torch.randn(2, 3, channels, 2, 4)
    video, latents = made.inference(noise, PROMPTS, return_latents=True)
    side = made.frozen.vae.latent_shape(480, 832)
    assert video.shape == (2, 9, 3, 2 * 480 // side[1], 4 * 832 // side[2])
    assert 0 <= video.min() < video.max() <= 1 and not torch.equal(video[0], video[1])

    parked, same_latents, seconds = made.inference(noise, PROMPTS, return_latents=True, profile=True, low_memory=True)
    assert torch.equal(latents, same_latents) and len(seconds["blocks"]) == 1
    torch.testing.assert_close(parked, video, atol=1e-5, rtol=0)

    acting = made.inference(noise, PROMPTS, action_inputs={"action_features": torch.ones(2, 3)})
    assert (acting - video).abs().max() > 1e-3

    image = made.encode_video(video[:, :1] * 2 - 1)
    onward = made.inference(noise, PROMPTS, initial_latent=image, return_latents=True)[1]
    assert onward.shape[1] == 4 and torch.equal(onward[:, :1], image)
