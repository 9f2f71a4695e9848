"""Wan on a LeRobot folder, as configs/lerobot.yaml says: the real classes with small random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from lightning_action.action.schema import ActionSchema
from lightning_action.cli import main
from tests.support.shipped import CONFIGS, shipped
from tests.support.wan_release import small_model, write_release
from tests.support.written_videos import LEROBOT


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    write_release(tmp_path / "release", "2.1")
    monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path / "release"))
    small = ["--data.num_latents=4", "--data.num_workers=0", f"--trainer.default_root_dir={tmp_path / 'run'}"]
    per_layer = ["--model.action_projection.init_args.num_layers=2", "--model.sampling.num_inference_steps=2"]
    return [*shipped("lerobot"), *small_model(), *small, *per_layer]


def test_check_encode_fit_predict_test(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data.frame_size=[32, 48]", f"--data.root={LEROBOT / 'v3'}", "--data.fps=5"]
    main(["check", *arguments, *data])
    printed = capsys.readouterr().out
    assert "The data fits the model." in printed and "video [B, T, 3, H, W]" in printed
    assert "  1                     1 - 4         0 - 7" in printed
    store = tmp_path / "latents"
    main(["encode", *arguments, *data, f"--output={store}", "--dtype=float32"])
    # A step in pixel frames is not taken for one in latent frames.
    encoded = [*arguments, "--data.window_step=7", f"--config={CONFIGS / 'latents.yaml'}", f"--data.store={store}"]
    main(["fit", *encoded, "--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.val_check_interval=2"])
    last = tmp_path / "run/checkpoints/last.ckpt"
    saved = torch.load(last, weights_only=True)
    used = yaml.safe_load((tmp_path / "run/lightning_logs/version_0/config_fit.yaml").read_text())["data"]["init_args"]
    assert (used["num_latents"], used["latent_step"]) == (4, 1) and "window_step" not in used
    schema = ActionSchema.from_dict(saved["action_schema"])
    assert (schema.rows_per_frame, schema.num_columns, schema.action_dim) == (2, 2, 16)
    main(["predict", *encoded, f"--ckpt_path={last}"])
    predicted = torch.load(tmp_path / "run/predictions/000000.pt", weights_only=True)
    assert predicted["video"].shape == (13, 3, 32, 48)
    main(["test", *encoded, f"--ckpt_path={last}"])
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert report["psnr_db"] > 0 and report["swapped_win_rate"] is not None


def test_encoding_while_training_sees_the_same_data(arguments: list[str], tmp_path: Path) -> None:
    data = ["--data.frame_size=[32, 48]", f"--data.root={LEROBOT / 'v21'}"]
    main(["fit", *arguments, *data, "--trainer.max_steps=1", "--trainer.limit_val_batches=0"])
    assert (tmp_path / "run/checkpoints/last.ckpt").is_file()
