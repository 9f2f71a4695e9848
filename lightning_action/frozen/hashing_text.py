"""A text encoder without weights, for models that are trained from nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_action.frozen.interfaces import TextEncoder


class HashingTextEncoder(TextEncoder):
    """Encodes each word as a fixed random vector, drawn from a hash of its letters: the same on every machine.

    Words are split at white space and lower-cased; there is no vocabulary and nothing to train. Numbers by hash in
    place of a vocabulary are the hashing trick (Weinberger et al. 2009, arXiv:0902.2206).

    Args:
        text_dim: Number of channels of a word.
        text_len: Largest number of words of a prompt; longer prompts are refused.
    """

    def __init__(self, text_dim: int = 32, text_len: int = 8) -> None:
        self.text_dim = text_dim
        self.text_len = text_len

    def encode(self, prompts: Sequence[str]) -> Tensor:
        """Encode prompts as `[B, text_len, text_dim]`, zero past the last word.

        Raises:
            ValueError: A prompt has more than `text_len` words.
        """
        encoded = torch.zeros(len(prompts), self.text_len, self.text_dim, dtype=torch.float32)
        for row, prompt in enumerate(prompts):
            words = prompt.lower().split()
            if len(words) > self.text_len:
                raise ValueError(f"prompt has {len(words)} words, the text encoder takes {self.text_len}: {prompt!r}")
            for column, word in enumerate(words):
                encoded[row, column] = _word_vector(word, self.text_dim)
        return encoded


@lru_cache(maxsize=4096)
def _word_vector(word: str, text_dim: int) -> Tensor:
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    random = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.randn(text_dim, generator=random, dtype=torch.float32)
