"""The table of the distillation demo is made whole, small: every row and every column."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import distill_demo
from lightning_action.cli.trainer_verbs import run
from tests.support.shipped import CONFIGS
from tests.support.small_commands import SMALL_MODEL

SIZES = """
model: {pretrained: null, sampling: {num_inference_steps: 8, action_guidance_scale: 1.0}}
trainer: {callbacks: [], limit_val_batches: 0}
data:
  init_args:
    train_size: 32
    batch_size: 4
    num_latents: 4
    world:
      class_path: lightning_action.MovingSpriteWorld
      init_args: {background: plain, second_object: true, second_turn_probability: 0.1}
"""
ROWS = ["teacher_many", "teacher_1", "teacher_2", "teacher_4", "student_1", "student_2", "student_4", "student_2_blind"]
KEYS = {"sign_accuracy", "gain_x", "gain_y", "r2_x", "r2_y", "realism_distance", "psnr_db", "seconds_per_block"}


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_table_has_all_rows_and_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "small.yaml").write_text(SIZES)
    configs = [str(CONFIGS / "demo.yaml"), str(tmp_path / "small.yaml")]
    sizes = [*SMALL_MODEL, "--model.action_projection.init_args.num_layers=2"]
    stacked = [f"--config={path}" for path in configs]
    root = f"--trainer.default_root_dir={tmp_path / 'teacher'}"
    run(["fit", *stacked, *sizes, "--trainer.max_steps=2", "--trainer.logger=false", root])
    capsys.readouterr()
    arguments = ["--run", str(tmp_path / "teacher"), *(part for path in configs for part in ("--config", path))]
    arguments += ["--consistency_steps", "2", "--matching_steps", "3", "--videos", "3", "--out", str(tmp_path / "out")]
    distill_demo.main([*arguments, *sizes])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [name for name in report if name not in ("findings", "seconds")] == ROWS
    assert all(report[name].keys() >= KEYS for name in ROWS)
    assert report["teacher_many"]["seconds_per_block"] == 1 > report["student_1"]["seconds_per_block"]
    blind = (tmp_path / "out" / "start_blind" / "config_fit.yaml").read_text()
    assert "action_blind: true" in blind
    assert (
        str(tmp_path / "out" / "start_blind") in (tmp_path / "out" / "student_2_blind" / "config_fit.yaml").read_text()
    )
    table = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table == ["", "---", *ROWS]


def test_findings_by_hand() -> None:
    def row(sign: float, realism: float, seconds: float) -> distill_demo.Row:
        return {
            **dict.fromkeys(distill_demo.OBEDIENCE, sign),
            "realism_distance": realism,
            "seconds_per_block": seconds,
        }

    rows = {"teacher_many": row(0.98, 0.1, 1.0), "teacher_2": row(0.98, 0.5, 0.3)}
    rows |= {"student_2": row(0.97, 0.2, 0.25), "student_2_blind": row(0.4, 0.3, 0.25)}
    found = distill_demo.findings(rows)
    assert found["realism_made_good"] == pytest.approx(0.75) and found["times_faster"] == 4
    assert found["obedience_lost"] == pytest.approx(0.01)
    # A gain beyond the ideal is a loss too, and a better figure is none.
    rows["student_2"] |= {"gain_y": 1.2, "r2_x": 0.99}
    assert distill_demo.findings(rows)["obedience_lost"] == pytest.approx(0.18)
    assert found["gain_lost_by_the_blind"] == pytest.approx(0.57)
    rows["teacher_2"] = rows["teacher_many"]
    assert math.isnan(distill_demo.findings(rows)["realism_made_good"])


def test_a_world_without_chance_is_refused() -> None:
    data = distill_demo.data_of([str(CONFIGS / "demo.yaml")], 3)
    with pytest.raises(ValueError, match="a world with chance in it"):
        distill_demo.Judge(data, None)  # type: ignore[arg-type]
