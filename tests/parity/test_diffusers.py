"""The bidirectional mode against diffusers' `WanTransformer3DModel` with the same weights under its names."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.generator.model import CausalWanModel
from tests.helpers import fill

SIZES = {"in_dim": 6, "out_dim": 6, "freq_dim": 20, "text_dim": 11, "ffn_dim": 52}
RENAMED = (
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("time_embedding.2", "condition_embedder.time_embedder.linear_2"),
    ("text_embedding.0", "condition_embedder.text_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.modulation", "scale_shift_table"),
    ("head.head", "proj_out"),
    (".modulation", ".scale_shift_table"),
    ("self_attn.o", "attn1.to_out.0"),
    ("cross_attn.o", "attn2.to_out.0"),
    ("self_attn.norm", "attn1.norm"),
    ("cross_attn.norm", "attn2.norm"),
    ("self_attn.", "attn1.to_"),
    ("cross_attn.", "attn2.to_"),
    ("ffn.0", "ffn.net.0.proj"),
    ("ffn.2", "ffn.net.2"),
    ("norm3", "norm2"),
)


def renamed(name: str) -> str:
    for ours, theirs in RENAMED:
        name = name.replace(ours, theirs)
    return name


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
    theirs.load_state_dict({renamed(name): tensor for name, tensor in ours.state_dict().items()})

    latents, text = torch.randn(2, 5, 6, 8, 4), torch.randn(2, 10, 11)
    level = torch.tensor(timestep)
    expected: Tensor = theirs(latents.transpose(1, 2), level, text, return_dict=False)[0].transpose(1, 2)
    per_frame = level[:, None].expand(2, 5)
    torch.testing.assert_close(ours(latents, per_frame, text), expected, atol=1e-5, rtol=0)
    assert (ours(latents, per_frame / 2, text) - expected).abs().max() > 1e-2
