"""The command line on two gloo processes."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.integration.test_command_line import ROOT


def run_on_two(arguments: list[str], strategy: str | None = "ddp_find_unused_parameters_true") -> str:
    """The output of a command on two processes; a strategy of None is the configuration's own."""
    done = start_on_two(arguments, strategy)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def start_on_two(arguments: list[str], strategy: str | None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "main.py",
        *arguments,
    ]
    more = ["--trainer.devices=2", *([] if strategy is None else [f"--trainer.strategy={strategy}"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
