"""An embedded prompt as cross-attention sees it, in which equal tokens of padding stand for each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class EmbeddedPrompt(NamedTuple):
    """Prompts, and images for models that see one, in the generator's width.

    Args:
        text: Embedded tokens, `[B, L, D]`.
        bias: Logarithm of how often each token counts, `[1, L]`; None where each counts once.
        image: Embedded images, `[B, tokens, D]`.
    """

    text: Tensor
    bias: Tensor | None = None
    image: Tensor | None = None


class KeysValues(NamedTuple):
    """Keys and values `[B, L, heads, head_dim]` of a layer's cross-attention, and the `bias` of the prompt's tokens."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None = None

    def select(self, videos: Sequence[int]) -> KeysValues:
        """Take those of some videos; the bias is that of all."""
        return KeysValues(self.keys[list(videos)], self.values[list(videos)], self.bias)


def join(texts: Sequence[Tensor]) -> Tensor:
    """Join encoded prompts `[B, L, text_dim]` of other lengths along the batch; zeros stand past each one's end."""
    longest = max(text.shape[1] for text in texts)
    return torch.cat([functional.pad(text, (0, 0, 0, longest - text.shape[1])) for text in texts])


def pad(text: Tensor, text_len: int) -> Tensor:
    """Append zeros to prompts `[B, L, text_dim]`, as many as it takes for `padding_bias` to stand for all of them.

    Wan was trained with prompts that zeros fill up to `text_len`, and no mask. All tokens of zeros have the same key
    and value, so that a few of them, counted more than once, do what hundreds would.

    Returns:
        `[B, multiple of 32 or text_len, text_dim]`.
    """
    # Rounded up, so that a compiled layer meets few different lengths.
    padded_len = min(text_len, -(-(text.shape[1] + _FEWEST_ZEROS) // _STEP) * _STEP)
    zeros = text.new_zeros(text.shape[0], padded_len - text.shape[1], text.shape[2])
    return torch.cat([text, zeros], dim=1)


@lru_cache(maxsize=64)
def padding_bias(
    num_tokens: int, padded_len: int, text_len: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """Bias of the scores of padded prompts, by which their zeros count as `text_len - num_tokens` ones.

    exp(log n + q k) = n exp(q k), so that the softmax is that over all the tokens. The logarithms are multiples of
    1 / 16, which bfloat16 holds exactly: each zero takes what it can of what the ones before it left, six of them all
    but 6e-8 of it.

    Args:
        num_tokens: Number of tokens before the padding.
        padded_len: Number of tokens that `pad` made of them.
        text_len: Number of tokens that the generator was trained with.
        device: Device of the result.
        dtype: Dtype of the result.

    Returns:
        `[1, padded_len]`, minus infinity for zeros that are left over; None where no token counts more than once.
    """
    if padded_len == text_len:
        return None
    counted, left = [0.0] * num_tokens, float(text_len - num_tokens)
    for _ in range(padded_len - num_tokens):
        counted.append(math.floor(16 * math.log(left)) / 16 if left > _NOTHING else -math.inf)
        left -= math.exp(counted[-1])
    # Tensors kept for later calls must be usable in training, also when a rollout is the first to ask.
    with torch.inference_mode(False):
        return torch.tensor([counted], device=device, dtype=dtype)


_STEP = 32
_FEWEST_ZEROS = 6
_NOTHING = 1e-6
