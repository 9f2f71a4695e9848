"""The verb that trains a model to read actions off videos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lightning_action import ActionSchema
from lightning_action.cli import main
from lightning_action.cli.inverse_dynamics import format_quality, new_model, run_inverse_dynamics, videos_with_rows
from lightning_action.evaluation.metrics.inverse_dynamics_model import Column, load_inverse_dynamics
from lightning_action.evaluation.metrics.read_actions import ReadingQuality
from tests.support.written_videos import LEROBOT, numbered_frames, write_video

SPRITES = [
    "--data=lightning_action.SpriteDataModule",
    "--data.world=lightning_action.MovingSpriteWorld",
    "--data.num_latents=3",
    "--data.batch_size=4",
    "--data.train_size=8",
    "--data.validation_size=5",
]
FEW = ["--max_steps=2", "--device=cpu"]
pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def test_it_learns_measures_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["inverse-dynamics", *SPRITES, *FEW, f"--output={tmp_path / 'idm'}"])
    shown = capsys.readouterr().out
    assert "READ OFF REAL FRAMES, 5 videos of validation" in shown and "without looking" in shown
    assert f"--model.inverse_dynamics={tmp_path / 'idm'}" in shown
    model = load_inverse_dynamics(tmp_path / "idm")
    assert [column.name for column in model.columns] == ["move_0", "move_1"]


def test_recorded_columns_have_their_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data=lightning_action.LeRobotDataModule", f"--data.root={LEROBOT / 'v3'}", "--data.num_latents=3"]
    held = ["--data.frame_size=[16, 16]", "--data.batch_size=4", "--data.validation_share=0"]
    run_inverse_dynamics([*data, *held, *FEW, f"--output={tmp_path / 'idm'}"])
    assert "videos of test" in capsys.readouterr().out
    assert "action_0" not in [column.name for column in load_inverse_dynamics(tmp_path / "idm").columns]


def test_what_is_there_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "idm").mkdir()
    (tmp_path / "idm" / "notes.txt").write_text("mine")
    nowhere = ["--data=lightning_action.EnvironmentDataModule", "--data.env=no_module:make", *FEW]
    for option in ("--output", "--out"):
        with pytest.raises(FileExistsError, match="is there already"):
            run_inverse_dynamics([*nowhere, f"{option}={tmp_path / 'idm'}"])
    with pytest.raises(ValueError, match="max_steps"):
        run_inverse_dynamics([*nowhere, "--max_steps=0", f"--output={tmp_path / 'other'}"])
    assert not (tmp_path / "other").exists()


def test_data_without_actions_is_refused(tmp_path: Path) -> None:
    """A folder of videos has none."""
    (tmp_path / "videos").mkdir()
    for number in range(3):
        write_video(tmp_path / "videos" / f"{number}.mp4", numbered_frames(20))
    data = ["--data=lightning_action.VideoFolderDataModule", f"--data.root={tmp_path / 'videos'}"]
    with pytest.raises(ValueError, match="has no actions to learn from"):
        run_inverse_dynamics([*data, "--data.num_latents=3", *FEW, f"--output={tmp_path / 'idm'}"])


def test_samples_without_actions_are_left_out() -> None:
    schema = ActionSchema(temporal_compression_ratio=2)
    video, action = torch.rand(3, 5, 3, 16, 16) * 2 - 1, torch.rand(3, 4, 2)
    batch = {"video": video, "action": action, "has_action": torch.tensor([True, False, True])}
    pair = videos_with_rows(batch, schema)
    assert pair is not None and len(pair[0]) == 2 and torch.equal(pair[1], action[[0, 2]])
    assert pair[0].min() >= 0 and pair[0].max() <= 1
    assert videos_with_rows({"video": video, "action": None}, schema) is None
    assert videos_with_rows({**batch, "has_action": torch.zeros(3, dtype=torch.bool)}, schema) is None
    with pytest.raises(ValueError, match="there is nothing to learn from"):
        new_model(schema, [{"video": video, "action": None}], [])


def test_latents_and_other_rows_are_refused() -> None:
    schema = ActionSchema(temporal_compression_ratio=2)
    with pytest.raises(ValueError, match="the data that the latents were encoded from"):
        videos_with_rows({"latents": torch.zeros(3, 3, 4, 2, 2), "action": torch.zeros(3, 4, 2)}, schema)
    with pytest.raises(ValueError, match="actions for 3 latent frames must be"):
        videos_with_rows({"video": torch.zeros(3, 5, 3, 16, 16), "action": torch.zeros(3, 5, 2)}, schema)


def test_columns_that_are_not_read_are_named() -> None:
    given = torch.randn(6, 12, 2, generator=torch.Generator().manual_seed(0))
    quality = ReadingQuality([Column("x", "continuous", 3), Column("y", "continuous", 3)])
    quality.update(given * torch.tensor([1.0, 0.0]), given)
    table = format_quality(quality, "validation")
    assert "READ OFF REAL FRAMES, 6 videos of validation" in table and "1.000 .. 1.000" in table
    assert table.endswith("- y: correlation below 0.5, of which `test` will tell nothing")
