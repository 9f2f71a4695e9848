"""Random numbers from whole numbers alone, so that nothing depends on what was drawn before."""

from __future__ import annotations

import hashlib
import struct

import torch


def mix_seed(*numbers: int) -> int:
    """Mix one seed in [0, 2^63) out of several whole numbers; different tuples give unrelated seeds.

    Raises:
        ValueError: A number does not fit into 64 bits.
    """
    require_seeds(*numbers)
    digest = hashlib.blake2b(struct.pack(f"<{len(numbers)}q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def require_seeds(*numbers: int) -> None:
    """Refuse seeds that do not fit into 64 bits.

    Raises:
        ValueError: A seed does not fit into 64 bits.
    """
    if wrong := [number for number in numbers if not -(2**63) <= number < 2**63]:
        raise ValueError(f"a seed, as a sample_id, is a whole number from -2^63 to 2^63 - 1, got {wrong[0]}")


def generator_for(*numbers: int) -> torch.Generator:
    """Return a CPU generator seeded by whole numbers."""
    return torch.Generator().manual_seed(mix_seed(*numbers))
