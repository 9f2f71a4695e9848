"""How long the stages of a call take."""

from __future__ import annotations

import time
from typing import TypedDict

import torch


class StageSeconds(TypedDict):
    """Wall-clock seconds of each stage; with `profile` the device is waited for at the end of each."""

    text: float
    blocks: list[float]
    vae: float


class Stopwatch:
    """Seconds between laps. It waits for the device only where it is asked to, because that slows generation down.

    Args:
        device: where the work is done.
        waits: wait for it at the end of each lap.
    """

    def __init__(self, device: torch.device, waits: bool) -> None:
        self._device, self._waits = device, waits and device.type != "cpu"
        self._last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last one, or since the start."""
        if self._waits:
            torch.accelerator.synchronize(self._device)
        before, self._last = self._last, time.perf_counter()
        return self._last - before
