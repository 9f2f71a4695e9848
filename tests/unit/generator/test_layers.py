from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_action.generator.causality import bidirectional
from lightning_action.generator.context import CachedContext, MaskedContext
from lightning_action.generator.layers import Head, RMSNorm, WanLayer, per_token
from lightning_action.generator.prompt import EmbeddedPrompt
from lightning_action.generator.rope import rotation
from tests.support.small_generator import fill


def test_rms_norm() -> None:
    norm = RMSNorm(6, eps=1e-3)
    fill(norm)
    x = torch.randn(2, 5, 6)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16, "under autocast the weight stays float32"


def test_modulation_order_is_shift_scale_gate_twice() -> None:
    layer = WanLayer(12, 20, 2, qk_norm=True, cross_attn_norm=True, eps=1e-6).double()
    fill(layer)
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    modulation = torch.randn(2, 3, 6, 12, dtype=torch.float64)
    angles = rotation((0, 1, 2), 2, 2, 6, torch.device("cpu")).double()
    text = torch.randn(2, 5, 12, dtype=torch.float64)
    context = MaskedContext(bidirectional(3), 4, EmbeddedPrompt(text))
    shift1, scale1, gate1, shift2, scale2, gate2 = (layer.modulation + modulation).unsqueeze(3).unbind(2)

    def norm(tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, (12,), eps=1e-6)

    flat = (norm(x) * (1 + scale1) + shift1).flatten(1, 2)
    expected = x + gate1 * layer.self_attn(flat, angles, context).view_as(x)
    cross = layer.cross_attn(layer.norm3(expected).flatten(1, 2), layer.cross_attn.keys_values(EmbeddedPrompt(text)))
    expected = expected + cross.view_as(x)
    expected = expected + gate2 * layer.ffn(norm(expected) * (1 + scale2) + shift2)
    torch.testing.assert_close(layer(x, modulation, angles, context), expected)


def test_write_keeps_what_forward_keeps() -> None:
    layer = WanLayer(12, 20, 2, qk_norm=True, cross_attn_norm=True, eps=1e-6)
    fill(layer)
    x, modulation, text = torch.randn(2, 3, 4, 12), torch.randn(2, 3, 6, 12), torch.randn(2, 5, 12)
    angles = rotation((0, 1, 2), 2, 2, 6, torch.device("cpu"))
    kept = []
    for method in (layer, layer.write):
        keys, values = torch.zeros(2, 14, 2, 6), torch.zeros(2, 14, 2, 6)
        method(x, modulation, angles, CachedContext(keys, values, layer.prompt(EmbeddedPrompt(text))))
        kept.append((keys, values))
    assert torch.equal(kept[0][0], kept[1][0]) and torch.equal(kept[0][1], kept[1][1])
    assert not kept[0][0][:, :2].any() and kept[0][0][:, 2:].all()


def test_head_is_modulated_by_the_time_embedding() -> None:
    head = Head(8, 5, 1e-6)
    fill(head)
    x, time = torch.randn(2, 3, 4, 8), torch.randn(2, 3, 8)
    shift, scale = (head.modulation + time[:, :, None]).unsqueeze(3).unbind(2)
    expected = head.head(F.layer_norm(x, (8,), eps=1e-6) * (1 + scale) + shift)
    torch.testing.assert_close(head(x, time), expected)
    assert not torch.equal(head(x, time), head(x, 2 * time))


def test_per_token() -> None:
    parts = per_token(torch.arange(2 * 3 * 6 * 4.0).view(2, 3, 6, 4))
    assert len(parts) == 6 and parts[4].shape == (2, 3, 1, 4)
    assert parts[4][1, 2, 0, 3] == ((1 * 3 + 2) * 6 + 4) * 4 + 3
