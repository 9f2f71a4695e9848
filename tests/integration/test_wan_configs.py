"""The configurations of the released sizes without their weights; with them, test_lifecycles.py runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.cli.check import run_check
from lightning_action.cli.trainer_verbs import run
from tests.support.forked_processes import end_of, start
from tests.support.shipped import shipped
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


def test_a_check_of_the_14b_model_takes_little_memory(tmp_path: Path) -> None:
    """The whole process, data included; VmHWM is the most that it ever had."""
    code = end_of(start(tmp_path / "told", write_the_most_memory_of_a_check))
    told = (tmp_path / "told").read_text()
    assert code == 0 and "14,288,491,584" in told, told
    assert int(told.split()[-2]) < 2 * 2**20


def write_the_most_memory_of_a_check() -> None:
    run_check(shipped("wan2.1_14b"))
    print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
