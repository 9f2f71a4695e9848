"""`UMT5TextEncoder` against transformers' `UMT5EncoderModel`, padded to the full length and masked, as Wan runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.frozen.umt5 import UMT5TextEncoder
from tests.support.small_generator import small_generator
from tests.support.wan_parts import small_umt5, write_word_tokenizer

PROMPTS = ["a red  disc\nmoves left", "", "the quick fox &amp;amp; an unknown word", "a red disc moves left"]
CLEANED = ["a red disc moves left", "", "the quick fox & an unknown word", "a red disc moves left"]
LENGTH = 40


def wan_embeddings(theirs: Any, folder: Path) -> Tensor:
    """`[B, 40, text_dim]`, zero past the end."""
    from transformers import AutoTokenizer

    tokenize = AutoTokenizer.from_pretrained(folder)
    tokens = tokenize(CLEANED, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
    hidden = theirs(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return hidden * tokens.attention_mask[..., None]


def write_bytes_tokenizer(folder: Path) -> None:
    from transformers import ByT5Tokenizer

    ByT5Tokenizer().save_pretrained(folder)


@pytest.mark.parametrize("write_tokenizer", [write_word_tokenizer, write_bytes_tokenizer])
@torch.no_grad()
def test_embeddings_equal_transformers(write_tokenizer: Callable[[Path], None], tmp_path: Path) -> None:
    theirs = small_umt5(relative_attention_max_distance=9)
    theirs.save_pretrained(tmp_path / "text_encoder")
    write_tokenizer(tmp_path / "tokenizer")
    expected = wan_embeddings(theirs, tmp_path / "tokenizer")
    ours = UMT5TextEncoder(str(tmp_path), text_len=LENGTH, dtype="float32").encode(PROMPTS)
    # Float32; theirs computes over the padding too.
    torch.testing.assert_close(ours, expected[:, : ours.shape[1]], atol=1e-5, rtol=0)
    assert not expected[:, ours.shape[1] :].any()
    assert (ours[0, :3] - ours[2, :3]).abs().max() > 0.1


@torch.no_grad()
def test_trimmed_embeddings_are_the_same_to_the_generator(tmp_path: Path) -> None:
    theirs = small_umt5(d_model=9)
    theirs.save_pretrained(tmp_path)
    write_word_tokenizer(tmp_path)
    encoder = UMT5TextEncoder(str(tmp_path), text_len=LENGTH, dtype="float32")
    generator = small_generator(text_len=LENGTH)
    trimmed = encoder.encode(PROMPTS)
    padded = torch.cat([trimmed, torch.zeros(4, LENGTH - trimmed.shape[1], 9)], dim=1)
    assert trimmed.shape[1] < LENGTH
    latents, timestep = torch.randn(4, 2, 5, 4, 3), torch.rand(4, 2) * 1000
    expected = generator(latents, timestep, padded)
    # Softmax over few tokens that count often, and over all of them, rounds differently.
    torch.testing.assert_close(generator(latents, timestep, trimmed), expected, rtol=1e-5, atol=1e-6)
    assert (generator(latents, timestep, trimmed[:, :3]) - expected).abs().max() > 1e-3
