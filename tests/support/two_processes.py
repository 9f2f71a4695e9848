"""Scripts that run as two processes, with gloo on the CPU."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def random_port() -> int:
    """Draw one below the ports that the system hands out, so that nobody takes it before the ranks do."""
    return random.SystemRandom().randrange(20000, 30000)


def facts_of(script: ModuleType, folder: Path, processes: int = 2) -> dict[str, Any]:
    """What a script writes to `facts.json` in the folder, which is its only argument."""
    assert script.__file__ is not None
    command, ranks = [sys.executable, script.__file__, str(folder)], list[subprocess.Popen[bytes]]()
    place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random_port())}
    place |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    outputs = [folder / f"rank_{rank}.txt" for rank in range(processes)]
    for rank, output in enumerate(outputs):
        environment = os.environ | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with output.open("w") as file:
            ranks.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file))
    end = time.monotonic() + 300
    # One that fails leaves the others waiting for it.
    while None in (codes := [rank.poll() for rank in ranks]) and not any(codes) and time.monotonic() < end:
        time.sleep(0.1)
    for each in ranks:
        each.kill()
        each.wait()
    assert codes == [0] * processes, "\n".join(output.read_text()[-5000:] for output in outputs)
    seen: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return seen
