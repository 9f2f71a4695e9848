"""The configurations of the released sizes, shrunk, on a release folder with the same files: fit, then predict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lightning_action.command_line import run
from tests.wan_release import VERSIONS, small_arguments, write_release

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("config", VERSIONS)
def test_fit_and_predict(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = write_release(tmp_path / "release", VERSIONS[config])
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path / "release"))
    runs = tmp_path / "runs"
    common = [f"--config={ROOT / 'configs' / config}.yaml", f"--trainer.default_root_dir={runs}"]
    common += small_arguments(config)
    run(["fit", *common, "--trainer.max_steps=1"])
    checkpoint = runs / "checkpoints" / "last.ckpt"
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 1
    name = "blocks.1.ffn.2.weight"
    assert torch.equal(saved["state_dict"][f"generator.{name}"], released.state_dict()[name]), (
        "frozen in the first phase"
    )

    run(["predict", *common, f"--ckpt_path={checkpoint}"])
    told = json.loads((runs / "predictions" / "000000.json").read_text())
    assert (runs / "predictions" / "000000.mp4").stat().st_size > 0 and told["prompt"]


@pytest.mark.parametrize("config", VERSIONS)
def test_without_weights_a_fit_stops_at_once(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than start from random ones."""
    write_release(tmp_path / "release", VERSIONS[config])
    (tmp_path / "release" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path / "release"))
    more = [f"--trainer.default_root_dir={tmp_path / 'runs'}", "--trainer.max_steps=1", *small_arguments(config)]
    with pytest.raises(FileNotFoundError, match="found no diffusion_pytorch_model.*the generator"):
        run(["fit", f"--config={ROOT / 'configs' / config}.yaml", *more])
    assert not (tmp_path / "runs" / "checkpoints").exists()
