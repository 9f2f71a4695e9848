"""Context that the tokens of a layer attend to: frames of the same pass, or those that a cache keeps; and a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from lightning_action.generator.attention import Kernel, attend_dense, choose_attention
from lightning_action.generator.causality import Visibility
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.layers import CrossAttention
from lightning_action.generator.prompt import EmbeddedPrompt, KeysValues


class MaskedContext:
    """Frames of this pass, each of which sees others of it, and embedded prompts; the same for every layer.

    Args:
        visibility: Rule of which frames see which.
        tokens_per_frame: Number of tokens of a latent frame.
        prompt: Embedded prompts, and images for models that see one.
        flex_on_cuda: True if FlexAttention may be used.
    """

    def __init__(
        self,
        visibility: tuple[Visibility, ...],
        tokens_per_frame: int,
        prompt: EmbeddedPrompt,
        flex_on_cuda: bool = True,
    ) -> None:
        # Chosen once for a pass: who sees whom is the same in every layer, and so are the masks that it takes.
        self._attend = choose_attention(visibility, tokens_per_frame, prompt.text.device, flex_on_cuda)
        self._prompt = prompt

    # Compiled layers do not look into it: who sees whom would become part of their code, and another number of frames
    # would compile all of it anew. FlexAttention is compiled by itself.
    @torch.compiler.disable
    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute self-attention, all `[B, N, heads, head_dim]`."""
        return self._attend(query, key, value)

    def prompt(self, cross_attention: CrossAttention) -> tuple[KeysValues, ...]:
        """Compute the keys and values that a layer's cross-attention sees."""
        return cross_attention.keys_values(self._prompt)


class TextCache(NamedTuple):
    """Keys and values of prompts (and images) in every layer: the same for all blocks and timesteps of a video.

    A tuple, since FSDP2 of torch up to 2.11 looks into nothing else for tensors whose gradients it must wait for.

    Args:
        layers: Keys and values that the cross-attention of each layer sees.
    """

    layers: tuple[tuple[KeysValues, ...], ...]

    def select(self, videos: Sequence[int]) -> TextCache:
        """Take those of some videos; one may be there more than once."""
        return TextCache(tuple(tuple(seen.select(videos) for seen in layer) for layer in self.layers))


@dataclass(frozen=True)
class CachedContext:
    """The past and the present block in the `KVCache`, and prompts in the `TextCache`, of one layer.

    Args:
        keys: Keys of the past, and behind them the place of the block's, `[B, N, heads, head_dim]`.
        values: Values, likewise.
        text: Keys and values that cross-attention sees.
        kernel: Function that computes self-attention.
    """

    keys: Tensor
    values: Tensor
    text: tuple[KeysValues, ...]
    kernel: Kernel = attend_dense

    @classmethod
    def of_layers(cls, cache: KVCache, text: TextCache) -> list[Self]:
        """Make the contexts of all layers for the cache's next block."""
        return [cls(*cache.of_layer(layer), prompt, cache.kernel) for layer, prompt in enumerate(text.layers)]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keep the block's keys and values, and compute its attention to the past and itself."""
        # Written before it is read: the block sees itself, and past and block are one slice that nothing has to join.
        self.write(key, value)
        return self.kernel(query, self.keys, self.values)

    def write(self, key: Tensor, value: Tensor) -> None:
        """Put the block's keys and values where attention reads them."""
        # These are views of the cache that end with the block's place, so that this writes into the cache itself. Each
        # step of denoising writes over the one before; only `KVCache.advance` makes the block a part of the past.
        self.keys[:, -key.shape[1] :] = key
        self.values[:, -value.shape[1] :] = value

    def prompt(self, cross_attention: CrossAttention) -> tuple[KeysValues, ...]:
        """Return the keys and values that were computed with this layer's cross-attention."""
        return self.text


@dataclass(frozen=True)
class KeptContext:
    """The past as it was copied out of a `KVCache`, the present block of this pass, and prompts, of one layer.

    Nothing is written, so that a backward pass finds what the forward pass saw; what the frames of the past were
    computed from gets no gradient.

    Args:
        past: Keys and values of each past frame that the block sees, `[B, N, heads, head_dim]` each.
        text: Keys and values that cross-attention sees.
    """

    past: tuple[tuple[Tensor, Tensor], ...]
    text: tuple[KeysValues, ...]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Compute the block's attention to the past and itself."""
        # Always exactly, whatever kernel has generated: this is for a gradient, which the kernel in 8 bits has not.
        keys = torch.cat([*(keys for keys, _ in self.past), key], dim=1)
        return attend_dense(query, keys, torch.cat([*(values for _, values in self.past), value], dim=1))

    def prompt(self, cross_attention: CrossAttention) -> tuple[KeysValues, ...]:
        """Return the keys and values that were computed with this layer's cross-attention."""
        return self.text


class OpaqueContext(CachedContext):
    """Context for layers that are compiled one by one: not looking into it, one code serves all blocks and layers."""

    # A class of its own, for a pass that is compiled whole (`CapturedPass`) would fail at what is not looked into.
    # `write` needs nothing: outside of `attend` it is called by `WanLayer.write` alone, which is never compiled.
    attend = torch.compiler.disable(CachedContext.attend)
    prompt = torch.compiler.disable(CachedContext.prompt)
