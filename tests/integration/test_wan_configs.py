"""The configurations of the released sizes without their weights; with them, test_lifecycles.py runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.cli.trainer_verbs import run
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
