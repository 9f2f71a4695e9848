"""Words to vectors without weights: the same on every machine."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lightning_action.frozen.hashing_text import HashingTextEncoder

PROMPTS = ["a red disc", "A  blue\tdisc", ""]


def test_words_are_placed_and_the_rest_is_zero() -> None:
    encoded = HashingTextEncoder(text_dim=7, text_len=5).encode(PROMPTS)
    assert encoded.shape == (3, 5, 7)
    filled = (encoded != 0).any(dim=2)
    assert filled.tolist() == [[True] * 3 + [False] * 2] * 2 + [[False] * 5]


def test_a_word_is_the_same_wherever_it_stands_and_however_it_is_written() -> None:
    red, blue, _ = HashingTextEncoder(7, 5).encode(PROMPTS)
    assert torch.equal(red[0], blue[0])
    assert torch.equal(red[2], blue[2])
    moved = HashingTextEncoder(7, 2).encode(["disc RED"])[0]
    assert torch.equal(moved, red[[2, 1]])


def test_different_words_differ() -> None:
    words = [f"word{number}" for number in range(40)]
    vectors = HashingTextEncoder(7, 40).encode([" ".join(words)])[0]
    distances = (vectors[:, None] - vectors[None]).norm(dim=-1) + 1e9 * torch.eye(40)
    assert distances.min() > 0.5
    assert abs(vectors.mean().item()) < 0.25
    assert abs(vectors.std().item() - 1) < 0.2


def test_changing_the_result_does_not_change_the_encoder() -> None:
    encoder = HashingTextEncoder(7, 5)
    first = encoder.encode(["red"])
    kept = first.clone()
    first.zero_()
    assert torch.equal(encoder.encode(["red"]), kept)


def test_random_state_is_neither_used_nor_moved() -> None:
    before = torch.get_rng_state()
    HashingTextEncoder(7, 5).encode(["some words never seen"])
    assert torch.equal(torch.get_rng_state(), before)
    one = HashingTextEncoder(11, 3).encode(["unseen until now"])
    torch.manual_seed(99)
    assert torch.equal(HashingTextEncoder(11, 3).encode(["unseen until now"]), one)


def test_another_process_with_other_string_hashes_agrees() -> None:
    program = (
        "from lightning_action.frozen.hashing_text import HashingTextEncoder; "
        f"print(hash('red')); print(HashingTextEncoder(7, 5).encode({PROMPTS!r}).tolist())"
    )
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    environment = {**os.environ, "PYTHONHASHSEED": other_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    their_hash, their_vectors = done.stdout.splitlines()
    assert int(their_hash) != hash("red")
    assert their_vectors == str(HashingTextEncoder(7, 5).encode(PROMPTS).tolist())


def test_too_many_words_are_refused() -> None:
    encoder = HashingTextEncoder(text_dim=7, text_len=3)
    encoder.encode(["one two three"])
    with pytest.raises(ValueError, match="prompt has 4 words, the text encoder takes 3: 'one two three four'"):
        encoder.encode(["one", "one two three four"])
