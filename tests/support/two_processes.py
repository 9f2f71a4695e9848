"""Scripts that run as two processes, with gloo on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def facts_of(script: ModuleType, folder: Path, processes: int = 2) -> dict[str, Any]:
    """What a script writes to `facts.json` in the folder, which is its only argument."""
    assert script.__file__ is not None
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [script.__file__, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-5000:]
    seen: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return seen
