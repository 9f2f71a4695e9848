"""The bidirectional mode against diffusers' `WanTransformer3DModel` with the same weights under its names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.generator.image import ImageCondition
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.names import from_diffusers_name, to_diffusers_name
from tests.support.small_generator import fill

SIZES = {"out_dim": 6, "freq_dim": 20, "text_dim": 11, "ffn_dim": 52}


def diffusers_model(num_layers: int, in_channels: int = 6, **sizes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=6,
        text_dim=11,
        freq_dim=20,
        ffn_dim=52,
        num_layers=num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=32,
        **sizes,
    ).eval()


@pytest.mark.parametrize("timestep", [[720.0, 35.0], [999.0, 500.0]])
@torch.no_grad()
def test_bidirectional_mode_equals_diffusers(timestep: list[float]) -> None:
    ours = CausalWanModel(dim=48, num_heads=4, num_layers=3, text_len=10, in_dim=6, **SIZES).eval()
    fill(ours)
    theirs = diffusers_model(num_layers=3)
    assert all(from_diffusers_name(to_diffusers_name(name)) == name for name in ours.state_dict())
    theirs.load_state_dict({to_diffusers_name(name): tensor for name, tensor in ours.state_dict().items()})

    latents, text = torch.randn(2, 5, 6, 8, 4), torch.randn(2, 10, 11)
    level = torch.tensor(timestep)
    expected: Tensor = theirs(latents.transpose(1, 2), level, text, return_dict=False)[0].transpose(1, 2)
    per_frame = level[:, None].expand(2, 5)
    torch.testing.assert_close(ours(latents, per_frame, text), expected, atol=1e-5, rtol=0)
    assert (ours(latents, per_frame / 2, text) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("first_and_last", [False, True])
@torch.no_grad()
def test_image_to_video_equals_diffusers(first_and_last: bool) -> None:
    """Extra channels, CLIP tokens and their cross-attention; diffusers takes prompts of exactly 512 tokens here."""
    tokens = 14 if first_and_last else 7
    num_positions = tokens if first_and_last else None
    ours = CausalWanModel(
        dim=48, num_heads=4, num_layers=2, in_dim=15, image_dim=18, num_image_positions=num_positions, **SIZES
    ).eval()
    fill(ours)
    theirs = diffusers_model(2, 15, image_dim=18, added_kv_proj_dim=48, pos_embed_seq_len=num_positions)
    theirs.load_state_dict({to_diffusers_name(name): tensor for name, tensor in ours.state_dict().items()})

    latents, text = torch.randn(2, 3, 6, 8, 4), torch.randn(2, 512, 11)
    image = ImageCondition(torch.randn(2, 3, 9, 8, 4), torch.randn(2, tokens, 18))
    joined = torch.cat([latents, image.channels], dim=2).transpose(1, 2)
    level = torch.tensor([720.0, 35.0])
    # Its first and last images come as samples of their own.
    embeds = image.embeds.reshape(4, 7, 18) if first_and_last else image.embeds
    expected = theirs(joined, level, text, embeds, return_dict=False)[0].transpose(1, 2)
    per_frame = level[:, None].expand(2, 3)
    torch.testing.assert_close(ours(latents, per_frame, text, image=image), expected, atol=1e-5, rtol=0)
    other = ImageCondition(image.channels, image.embeds.flip(2))
    assert (ours(latents, per_frame, text, image=other) - expected).abs().max() > 1e-2
