"""Latency from a step to its pixels on the screen, and where the time goes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from threading import Lock

import numpy as np

PARTS = ("generate", "decode", "encode", "send", "pixels", "key")
"""Parts of the way; `send` ends when the page has drawn the first frame, `pixels` is all of it from the step on, and
`key` from the key on, which the page measures."""

_KEPT = 512
# The words of `ThroughputMonitor`, for what it measures too.
_TAGS = {"generate": "block_seconds", **{part: f"{part}_seconds" for part in PARTS if part != "generate"}}


class Latencies:
    """The last 512 times of each part, in seconds; may be used from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._seconds: dict[str, deque[float]] = {part: deque(maxlen=_KEPT) for part in PARTS}

    def add(self, seconds: Mapping[str, float]) -> None:
        """Keep a time of some parts."""
        with self._lock:
            for part, value in seconds.items():
                self._seconds[part].append(value)

    def quantiles(self) -> dict[str, tuple[float, float]]:
        """Return median and 95th percentile of each part that was measured."""
        with self._lock:
            known = {part: list(values) for part, values in self._seconds.items() if values}
        return {part: (float(np.quantile(each, 0.5)), float(np.quantile(each, 0.95))) for part, each in known.items()}


def as_scalars(quantiles: Mapping[str, tuple[float, float]], frames_per_second: float) -> dict[str, float]:
    """Name the figures for TensorBoard: `throughput/play/block_seconds_p50` and so on."""
    figures = {"video_frames_per_second_with_vae": frames_per_second}
    for part, pair in quantiles.items():
        figures |= {f"{_TAGS[part]}_{name}": value for name, value in zip(("p50", "p95"), pair, strict=True)}
    return {f"throughput/play/{name}": value for name, value in figures.items()}
