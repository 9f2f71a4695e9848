"""Random numbers from whole numbers alone, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib
import struct

import torch


def mix_seed(*numbers: int) -> int:
    """One seed in [0, 2^63) from several whole numbers; different tuples give unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator seeded by whole numbers."""
    return torch.Generator().manual_seed(mix_seed(*numbers))
