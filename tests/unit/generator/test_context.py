from __future__ import annotations

import torch
from torch import Tensor

from lightning_action.generator.attention import attend_dense
from lightning_action.generator.causality import BlockCausality, block_causal
from lightning_action.generator.context import CachedContext, KeptContext, MaskedContext, OpaqueContext, TextCache
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.layers import CrossAttention
from lightning_action.generator.prompt import EmbeddedPrompt, KeysValues
from tests.support.small_generator import fill

BLOCKS, TOKENS = BlockCausality(2), 3


def drawn(num_frames: int, count: int = 3) -> list[Tensor]:
    """Tensors `[B, N, heads, head_dim]` for some latent frames."""
    return [torch.randn(2, num_frames * TOKENS, 5, 4) for _ in range(count)]


def keys_values(size: int) -> KeysValues:
    return KeysValues(torch.randn(2, size, 5, 4), torch.randn(2, size, 5, 4))


def test_one_pass_a_cache_and_its_copies_see_the_same() -> None:
    query, key, value = drawn(4)
    prompt = EmbeddedPrompt(torch.randn(2, 7, 20))
    expected = MaskedContext(block_causal(4, BLOCKS), TOKENS, prompt).attend(query, key, value)
    cache, text = KVCache(1, 2, 5, 4, TOKENS, 4, BLOCKS), TextCache(((keys_values(7),),))
    for block in BLOCKS.split(4):
        tokens = slice(block.start * TOKENS, block.stop * TOKENS)
        (cached,) = CachedContext.of_layers(cache, text)
        kept = KeptContext(
            tuple((keys[0], values[0]) for keys, values in map(cache.of_frame, range(block.start))), text.layers[0]
        )
        for context in (cached, kept):
            found = context.attend(query[:, tokens], key[:, tokens], value[:, tokens])
            # Sums of the same numbers, which a mask leaves in another order.
            torch.testing.assert_close(found, expected[:, tokens])
        cache.advance()


def test_a_step_writes_over_the_one_before() -> None:
    (keys, values), (key, value) = drawn(3, 2), drawn(2, 2)
    past = keys[:, :TOKENS].clone()
    context = CachedContext(keys, values, ())
    context.write(torch.zeros_like(key), torch.zeros_like(value))
    context.write(key, value)
    assert torch.equal(keys, torch.cat([past, key], dim=1)) and torch.equal(values[:, TOKENS:], value)


def test_layers_have_their_own_views_and_prompts_and_the_kernel_of_the_cache() -> None:
    def kernel(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return 2 * attend_dense(query, keys, values)

    cache = KVCache(2, 2, 5, 4, TOKENS, 4, BLOCKS, kernel=kernel)
    text = TextCache(((keys_values(7),), (keys_values(7), keys_values(6))))
    contexts = OpaqueContext.of_layers(cache, text)
    assert [type(context) for context in contexts] == [OpaqueContext] * 2
    assert [context.text for context in contexts] == list(text.layers)
    query, key, value = drawn(2)
    found = contexts[1].attend(query, key, value)
    assert torch.equal(found, 2 * attend_dense(query, key, value))
    assert torch.equal(cache.keys[1, :, : 2 * TOKENS], key) and not cache.keys[0].any()
    attention = CrossAttention(20, 5, True, 1e-6)
    assert contexts[1].prompt(attention) is text.layers[1]
    assert KeptContext((), text.layers[1]).prompt(attention) is text.layers[1]


def test_prompts_are_those_of_the_layer() -> None:
    attention, prompt = CrossAttention(20, 5, True, 1e-6), EmbeddedPrompt(torch.randn(2, 7, 20))
    fill(attention)
    (found,) = MaskedContext(block_causal(2, BLOCKS), TOKENS, prompt).prompt(attention)
    (expected,) = attention.keys_values(prompt)
    assert found.keys.shape == (2, 7, 5, 4)
    assert torch.equal(found.keys, expected.keys) and torch.equal(found.values, expected.values)


def test_videos_are_chosen_in_every_layer() -> None:
    text = TextCache(((keys_values(7),), (keys_values(7), keys_values(6))))
    chosen = text.select([1, 0, 1])
    assert [len(seen) for seen in chosen.layers] == [1, 2]
    assert torch.equal(chosen.layers[1][1].keys, text.layers[1][1].keys[[1, 0, 1]])
    assert torch.equal(chosen.layers[0][0].values, text.layers[0][0].values[[1, 0, 1]])
