"""Mistakes in the data are what they are called, and each is tried."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import wrong_actions
from lightning_action.cli.trainer_verbs import run
from tests.support.shipped import shipped
from tests.support.small_commands import SMALL_DATA, SMALL_MODEL, small


def test_mistakes_are_what_they_are_called() -> None:
    rows = torch.arange(16.0).reshape(1, 8, 2)
    found = {name: mistake(rows)[0, :, 0].tolist() for name, mistake in wrong_actions.MISTAKES.items()}
    assert found["none"] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert found["late by a frame"] == [0, 0, 2, 4, 6, 8, 10, 12]
    assert found["swapped columns"] == [1, 3, 5, 7, 9, 11, 13, 15]
    assert found["x cut"] == [0] * 8
    assert found["last of four alone"] == [6] * 4 + [14] * 4
    assert wrong_actions.MISTAKES["y inverted"](rows)[0, 1].tolist() == [2, -3]
    two = torch.stack([rows[0], -rows[0]])
    assert torch.equal(wrong_actions.MISTAKES["shuffled between samples"](two), two.flip(0))


@pytest.mark.filterwarnings("ignore:ActionSensitivity. the model ignores its actions")
def test_each_gets_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = f"--trainer.default_root_dir={tmp_path / 'backbone'}"
    run(["fit", *shipped("demo_backbone"), "--trainer.max_steps=2", backbone, *SMALL_MODEL, *SMALL_DATA])
    run(small("fit", tmp_path, "--trainer.max_steps=2", "--trainer.limit_val_batches=0"))
    capsys.readouterr()
    tried = ["--only", "y inverted", "blind", "--steps", "2", "--videos", "3"]
    wrong_actions.main(["--run", str(tmp_path), *tried, "--json", str(tmp_path / "wrong.json")])
    lines = [line.split("|")[1].strip() for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines == ["y inverted", "blind"]
    reports = json.loads((tmp_path / "wrong.json").read_text())
    # Two steps teach no picture in which the sprite would be found.
    assert reports["blind"]["verdict"]["label"] in ("ignores", "cannot tell")
    assert reports["blind"]["swapped_gap"] == 0 and reports["y inverted"]["swapped_gap"] != 0
    assert reports["y inverted"]["episodes"] == 3
