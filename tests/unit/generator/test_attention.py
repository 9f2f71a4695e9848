from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.generator import attention
from lightning_action.generator.causality import (
    BlockCausality,
    Visibility,
    bidirectional,
    block_causal,
    teacher_forcing,
)

PLANS = {
    "bidirectional": bidirectional(5),
    "block_causal": block_causal(6, BlockCausality(2)),
    "window_and_sink": block_causal(8, BlockCausality(2, 5, 1)),
    "teacher_forcing": teacher_forcing(6, BlockCausality(3)),
    "teacher_forcing_window": teacher_forcing(5, BlockCausality(1, 3, 1)),
}


def draw(plan: tuple[Visibility, ...], tokens: int, seed: int) -> list[Tensor]:
    frames = attention.frame_mask(plan).shape[0]
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(2, frames * tokens, 3, 8, generator=random, dtype=torch.float64) for _ in range(3)]


def by_hand(plan: tuple[Visibility, ...], tokens: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    mask = attention.frame_mask(plan).repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    return torch.einsum("bhqk,bkhd->bqhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), value)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("tokens", [1, 7, 16, 32])
def test_all_implementations_agree(name: str, tokens: int) -> None:
    plan = PLANS[name]
    query, key, value = draw(plan, tokens, seed=3)
    expected = by_hand(plan, tokens, query, key, value)
    chosen = attention.choose_attention(plan, tokens, torch.device("cpu"))
    for out in (
        attention.attend_by_block(query, key, value, plan, tokens),
        attention.attend_masked(query, key, value, plan, tokens),
        chosen(query, key, value),
    ):
        torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["window_and_sink", "teacher_forcing"])
@pytest.mark.parametrize("tokens", [15, 16, 17])
def test_flex_attention_agrees_below_at_and_above_a_multiple_of_128(
    name: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncompiled on CPU: the mask is what differs from the other implementations, not the kernel."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "_compiled_flex", lambda: flex_attention)
    plan = PLANS[name]
    query, key, value = draw(plan, tokens, seed=4)
    out = attention.attend_flex(query, key, value, plan, tokens)
    torch.testing.assert_close(out, by_hand(plan, tokens, query, key, value), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", list(PLANS))
@pytest.mark.parametrize("tokens", [1, 15, 16, 100, 128, 300])
def test_a_block_mask_of_frames_is_that_of_their_tokens(name: str, tokens: int) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    plan = PLANS[name]
    frames = attention.frame_mask(plan)
    found = attention._flex_mask(plan, tokens, torch.device("cpu"))
    size = len(frames) * tokens
    expected = create_block_mask(lambda b, h, q, k: frames[q // tokens, k // tokens], None, None, size, size, "cpu")
    assert found.shape == expected.shape and found.BLOCK_SIZE == expected.BLOCK_SIZE
    for part in ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_num_blocks", "q_indices"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part


def test_gradients_agree() -> None:
    plan = PLANS["teacher_forcing"]
    grads = []
    for attend in (attention.attend_by_block, attention.attend_masked):
        inputs = [x.requires_grad_() for x in draw(plan, 4, seed=5)]
        attend(*inputs, plan, 4).square().sum().backward()
        grads.append([x.grad for x in inputs])
    torch.testing.assert_close(grads[0], grads[1], atol=1e-12, rtol=0)


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention.choose_attention(PLANS["bidirectional"], 4, torch.device("cpu")) is attention.attend_dense
    called: list[str] = []
    for name in ("attend_masked", "attend_by_block", "attend_flex"):
        monkeypatch.setattr(attention, name, lambda *_, name=name: called.append(name))
    nothing = torch.zeros(0)
    for tokens, device in ((4, "cpu"), (64, "cpu"), (4, "cuda")):
        attention.choose_attention(PLANS["block_causal"], tokens, torch.device(device))(nothing, nothing, nothing)
    cuda = torch.device("cuda")
    attention.choose_attention(PLANS["block_causal"], 64, cuda, flex_on_cuda=False)(nothing, nothing, nothing)
    assert called == ["attend_masked", "attend_by_block", "attend_flex", "attend_by_block"]
