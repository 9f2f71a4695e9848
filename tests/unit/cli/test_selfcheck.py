"""The first minute, shortened: what it finds, and that it would find what is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_action.cli import selfcheck
from lightning_action.cli.mistakes import UsageError
from lightning_action.cli.selfcheck import Obedience, failures, measured, run_selfcheck, toy_data, toy_module


def test_it_leaves_videos_and_a_scan_and_replaces_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "check"
    for _ in range(2):
        assert run_selfcheck([f"--output={folder}"], steps=3) == []
    assert {path.name for path in folder.iterdir()} == {"action_scan.png", "predictions"}
    assert (folder / "predictions" / "000001.mp4").stat().st_size > 0
    told = capsys.readouterr().out
    assert f"torch {torch.__version__}" in told and "CPU cores" in told and "All is well: actions act." in told


def test_what_is_not_its_own_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds what no selfcheck left"):
        run_selfcheck([f"--output={tmp_path}"], steps=1)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="--outputs"):
        run_selfcheck(["--outputs=x"])


def test_a_projection_that_is_not_zero_is_seen() -> None:
    torch.manual_seed(0)
    data = toy_data()
    module = toy_module(data)
    batch = next(iter(data.predict_dataloader()))
    fresh = measured(module, batch)
    assert fresh == Obedience(0, 0, 0)
    assert module.action_projection is not None
    torch.nn.init.normal_(module.action_projection.action_projection.weight, std=0.1)
    acting = measured(module, batch)
    assert min(acting.modulation, acting.video, acting.null) > 0
    assert failures(fresh, acting) == []
    assert len(failures(acting, fresh)) == 4, "each of the claims"
    assert failures(fresh, replace(acting, video=0.0)) == [
        "videos under two actions differ by 0 after training, expected more than 0"
    ]


def test_packages_that_are_not_there_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "_EXTRAS", {"wan": ("a_package_that_nobody_has",)})
    assert "extra wan: a_package_that_nobody_has not installed" in selfcheck.described()
