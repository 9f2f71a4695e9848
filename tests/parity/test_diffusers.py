"""The bidirectional mode against diffusers' `WanTransformer3DModel` with the same weights under its names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.generator.model import CausalWanModel
from lightning_action.weights import from_diffusers_name, to_diffusers_name
from tests.helpers import fill

SIZES = {"in_dim": 6, "out_dim": 6, "freq_dim": 20, "text_dim": 11, "ffn_dim": 52}


@pytest.mark.parametrize("timestep", [[720.0, 35.0], [999.0, 500.0]])
@torch.no_grad()
def test_bidirectional_mode_equals_diffusers(timestep: list[float]) -> None:
    from diffusers import WanTransformer3DModel

    ours = CausalWanModel(dim=48, num_heads=4, num_layers=3, text_len=10, **SIZES).eval()
    fill(ours)
    theirs = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=6,
        out_channels=6,
        text_dim=11,
        freq_dim=20,
        ffn_dim=52,
        num_layers=3,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=1e-6,
        rope_max_seq_len=32,
    ).eval()
    assert all(from_diffusers_name(to_diffusers_name(name)) == name for name in ours.state_dict())
    theirs.load_state_dict({to_diffusers_name(name): tensor for name, tensor in ours.state_dict().items()})

    latents, text = torch.randn(2, 5, 6, 8, 4), torch.randn(2, 10, 11)
    level = torch.tensor(timestep)
    expected: Tensor = theirs(latents.transpose(1, 2), level, text, return_dict=False)[0].transpose(1, 2)
    per_frame = level[:, None].expand(2, 5)
    torch.testing.assert_close(ours(latents, per_frame, text), expected, atol=1e-5, rtol=0)
    assert (ours(latents, per_frame / 2, text) - expected).abs().max() > 1e-2
