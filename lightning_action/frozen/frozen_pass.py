"""How a frozen network is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def frozen_pass(device: torch.device) -> Iterator[None]:
    """Without gradient, and in the network's own precision also where the trainer's autocast is on."""
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        yield
