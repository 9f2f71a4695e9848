"""A player for `benchmarks.live`, in a process of its own that loads no torch: python -m benchmarks._live_player ..."""

from __future__ import annotations

import json
import random
import struct
import sys
import time
from typing import Any

from websockets.sync.client import connect

# Seconds between two changes of what is held.
HELD_SECONDS = (0.3, 1.5)


def unpack_block(message: bytes) -> tuple[dict[str, Any], bytes]:
    """Take apart what `lightning_action.play.messages.pack_block` puts together."""
    (length,) = struct.unpack(">I", message[:4])
    header: dict[str, Any] = json.loads(message[4 : 4 + length])
    return header, message[4 + length :]


def play(port: int, seed: int, seconds: float) -> None:
    """Hold this and that, and draw each block at once: what a browser does, without drawing."""
    source = random.Random(seed)
    with connect(f"ws://127.0.0.1:{port}/live", compression=None, proxy=None, open_timeout=60) as client:
        end, next_change, change, asked = time.perf_counter() + seconds, 0.0, 0, 0.0
        while time.perf_counter() < end:
            message = client.recv(60)
            now = time.perf_counter()
            if isinstance(message, bytes):
                header, _ = unpack_block(message)
                answers = asked and header["change"] == change
                key = 1000 * (now - asked) if answers else None
                client.send(json.dumps({"type": "shown", "serial": header["serial"], "key_ms": key}))
                asked = 0.0 if answers else asked
            if now >= next_change:
                # At any time, not only when a block has come.
                time.sleep(source.uniform(0, 0.2))
                change, asked = change + 1, time.perf_counter()
                held = [[source.randrange(4), 1]] if change % 3 else []
                client.send(json.dumps({"type": "hold", "held": held, "change": change}))
                next_change = asked + source.uniform(*HELD_SECONDS)


if __name__ == "__main__":
    play(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
