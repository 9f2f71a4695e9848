"""The commands that `benchmarks/README.md` gives start as they stand there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMANDS = sorted(
    set(re.findall(r"^python ((?:-m )?benchmarks[./]\S+)", (ROOT / "benchmarks" / "README.md").read_text(), re.M))
)


@pytest.mark.parametrize("command", [*COMMANDS, "-m benchmarks.gpu"])
def test_it_starts(command: str) -> None:
    arguments = [sys.executable, *command.split(), "--help"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--json" in done.stdout, done.stderr
