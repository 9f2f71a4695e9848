from __future__ import annotations

from typing import cast

import pytest
import torch

from lightning_action.generator.layers import WanLayer
from lightning_action.generator.prompt import pad, padding_bias
from tests.support.small_generator import small_generator

CPU = torch.device("cpu")


@pytest.mark.parametrize(("num_tokens", "text_len"), [(0, 512), (5, 512), (90, 512), (26, 33), (1, 1000), (470, 512)])
def test_zeros_count_as_many_as_the_generator_was_trained_with(num_tokens: int, text_len: int) -> None:
    padded = pad(torch.ones(2, num_tokens, 3), text_len)
    assert padded[:, :num_tokens].all() and not padded[:, num_tokens:].any()
    assert padded.shape[1] % 32 == 0 and padded.shape[1] <= num_tokens + 38
    bias = padding_bias(num_tokens, padded.shape[1], text_len, CPU, torch.float32)
    assert bias is not None and not bias[:, :num_tokens].any()
    assert torch.equal(bias.bfloat16().float(), bias), "autocast rounds it"
    assert float(bias[:, num_tokens:].double().exp().sum()) == pytest.approx(text_len - num_tokens, rel=1e-7)


@pytest.mark.parametrize(("num_tokens", "text_len"), [(7, 7), (3, 7), (487, 512), (512, 512)])
def test_where_little_would_be_saved_all_zeros_stay(num_tokens: int, text_len: int) -> None:
    padded = pad(torch.ones(1, num_tokens, 2), text_len)
    assert padded.shape[1] == text_len and padding_bias(num_tokens, text_len, text_len, CPU, torch.float32) is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
def test_a_pass_and_its_gradients_equal_those_over_all_tokens(dtype: torch.dtype, tolerance: float) -> None:
    generator = small_generator(text_len=150).to(dtype)
    latents = torch.randn(2, 3, generator.out_dim, 4, 6, dtype=dtype)
    timestep, text = torch.tensor([[0.0, 400, 900]] * 2), torch.randn(2, 20, generator.text_dim, dtype=dtype)
    text[1, 11:] = 0
    cross_attention = cast("WanLayer", generator.blocks[1]).cross_attn
    tokens = torch.randn(2, 9, generator.dim, dtype=dtype)
    both = []
    for given in (text, torch.cat([text, text.new_zeros(2, 130, generator.text_dim)], dim=1)):
        velocity = generator(latents, timestep, given)
        generator.zero_grad()
        velocity.square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in generator.named_parameters()}
        prompt = generator.text_cache(given).layers[1]
        both.append((cross_attention(tokens, prompt), velocity, gradients, prompt[0].keys.shape[1]))
    (attended, ours, our_gradients, ours_long), (all_attended, full, full_gradients, full_long) = both
    assert (ours_long, full_long) == (32, 150)
    for few, all_of_them in ((attended, all_attended), (ours, full), (our_gradients, full_gradients)):
        torch.testing.assert_close(few, all_of_them, rtol=tolerance, atol=tolerance / 10)


def test_the_count_matters() -> None:
    generator = small_generator(text_len=150)
    latents, timestep = torch.randn(1, 2, generator.out_dim, 4, 6), torch.full((1, 2), 300.0)
    text = torch.randn(1, 26, generator.text_dim)
    counted = generator(latents, timestep, text)
    generator.text_len = 32
    assert (generator(latents, timestep, text) - counted).abs().max() > 1e-3
