"""The configurations of the released sizes without their weights; with them, test_lifecycles.py runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lightning_action.cli.trainer_verbs import run
from tests.support.shipped import shipped
from tests.support.two_processes import ROOT
from tests.support.wan_release import VERSIONS, small_arguments, write_release


@pytest.mark.parametrize("config", VERSIONS)
def test_without_weights_a_fit_stops_at_once(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than start from random ones."""
    write_release(tmp_path / "release", VERSIONS[config])
    (tmp_path / "release" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path / "release"))
    more = [f"--trainer.default_root_dir={tmp_path / 'runs'}", "--trainer.max_steps=1", *small_arguments(config)]
    with pytest.raises(FileNotFoundError, match="found no diffusion_pytorch_model.*the generator"):
        run(["fit", *shipped(config), *more])
    assert not (tmp_path / "runs" / "checkpoints").exists()


def test_a_check_of_the_14b_model_takes_little_memory() -> None:
    """The whole process, data included; VmHWM is the most that it ever had."""
    code = (
        "from lightning_action.cli.check import run_check; "
        f"run_check({shipped('wan2.1_14b')}); "
        "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "14,288,491,584" in done.stdout
    assert int(done.stdout.split()[-2]) < 2 * 2**20
