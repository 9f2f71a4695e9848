from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from lightning_action.action.schema import ActionSchema
from lightning_action.cli import main
from tests.support.written_videos import LEROBOT, numbered_frames, write_video

ROOT = Path(__file__).parents[3]


def inspect(capsys: pytest.CaptureFixture[str], folder: Path, *args: str) -> str:
    main(["inspect", f"--output={folder / 'sheet.png'}", *args])
    return capsys.readouterr().out


def test_a_lerobot_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = tmp_path / "schema.yaml"
    data = ["--data=lightning_action.LeRobotDataModule", f"--data.root={LEROBOT / 'v3'}", "--data.num_latents=3"]
    printed = inspect(capsys, tmp_path, *data, "--data.test_share=0", f"--write={schema}")
    for said in (
        "  train             2       80       0.1                 0",
        "frames: 10 a second, 10 to the model; 64 x 64",
        "2 prompts: 'move the red dot' (2), 'push the red dot to the left' (1)",
        "ACTIONS IN TIME, episode 0, alignment: transition",
        "1                     1 - 4         0 - 3",
        "cannot tell: 44 motions between frames are too few",
    ):
        assert said in printed
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 1600 and sheet.height > 400
    written = ActionSchema.from_dict(yaml.safe_load(schema.read_text())["model"]["schema"])
    assert written.num_columns == 2 and f"{written.parts[0].low[0]:.4g}" in printed  # type: ignore[index]


def test_a_whole_configuration_is_read_for_its_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--data.init_args.train_size=12", "--data.init_args.batch_size=4"]
    sizes += ["--data.init_args.validation_size=2", "--data.init_args.test_size=2"]
    printed = inspect(capsys, tmp_path, f"--config={ROOT / 'configs/demo.yaml'}", *sizes)
    assert "lag 0: motion from frame k to k + 1 explains" in printed
    assert (tmp_path / "sheet.png").is_file()


def test_videos_without_actions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", numbered_frames(12))
    data = ["--data=lightning_action.VideoFolderDataModule", f"--data.root={tmp_path}", "--data.num_latents=3"]
    data += ["--data.validation_share=0", "--data.test_share=0"]
    printed = inspect(capsys, tmp_path, *data)
    assert "  train             2       24       0.0                 2" in printed
    assert "none were recorded: the data trains a backbone" in printed
    (tmp_path / "sheet.png").unlink()
    with pytest.raises(SystemExit):
        inspect(capsys, tmp_path, *data, f"--write={tmp_path / 'schema.yaml'}")
    assert "there are no actions, so that there is no schema to write" in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_what_training_should_know_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    for name in "ab":
        write_video(tmp_path / f"{name}.mp4", numbered_frames(12))
        rows = np.stack([np.full(12, 3.0), (random.random(12) > 0.5).astype(float)], axis=1)
        np.savetxt(tmp_path / f"{name}.csv", rows, delimiter=",", header="base,jaw", comments="")
    data = ["--data=lightning_action.VideoFolderDataModule", f"--data.root={tmp_path}", "--data.num_latents=3"]
    printed = inspect(capsys, tmp_path, *data, "--data.validation_share=0", "--data.test_share=0")
    assert "base is constant (3): it says nothing, and encodes as 0" in printed
    assert "jaw seems to be a gripper or a switch (two values alone): 0 and 1" in printed


def test_data_without_clips_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["inspect", "--data=lightning_action.ActionFileDataModule", "--data.actions=a.npy"])
    assert "ActionFileDataModule has no clips to look at" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["inspect", "--config=nothing.yaml"])
    assert "no configuration at 'nothing.yaml'" in capsys.readouterr().err
