"""The command line on two gloo processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.test_command_line import ROOT, SMALL_DATA, SMALL_MODEL, small


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


@pytest.mark.distributed
def test_fit_test_and_predict_on_two_processes(tmp_path: Path) -> None:
    backbone = tmp_path / "backbone"
    pretrain = ["fit", f"--config={ROOT / 'configs' / 'demo_backbone.yaml'}", "--trainer.max_steps=2"]
    root = f"--trainer.default_root_dir={backbone}"
    run_on_two([*pretrain, root, *SMALL_MODEL, *SMALL_DATA])
    run_on_two(small("fit", tmp_path, "--trainer.max_steps=4", "--trainer.limit_val_batches=0"))
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4

    checkpoint = f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}"
    printed = run_on_two(small("test", tmp_path, checkpoint))
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["episodes"] == 6 and printed.count("sign accuracy") == 1
    run_on_two(small("predict", tmp_path, checkpoint, "--return_predictions=false"))
    names = {path.name for path in (tmp_path / "predictions").glob("*.mp4")}
    assert names == {"000000.mp4", "000001.mp4", "000002.mp4"}, "three samples on two ranks"
