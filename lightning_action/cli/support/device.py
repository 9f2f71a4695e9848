"""The device that a verb is told to use."""

from __future__ import annotations

import os

import torch


def choose_device(name: str, rank: int) -> torch.device:
    """Find a device by its name; `auto` shares out the GPUs, and is the CPU where there are none.

    Raises:
        ValueError: The name is that of no kind of device.
    """
    if name != "auto":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"expected a device such as cuda:0 or cpu, or auto, got {name!r}") from error
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
