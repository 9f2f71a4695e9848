"""What a test leaves behind, and what it says of where it comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_action.evaluation.report.provenance import data_fingerprint
from lightning_action.evaluation.report.report import read_report
from lightning_action.module.reporting import publish
from lightning_action.weights.fingerprint import fingerprint
from tests.support import made_up_report, sprite_module


def test_a_test_leaves_both_reports_and_says_of_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, _ = sprite_module.ready()
    data = sprite_module.data(test_size=2)
    sprite_module.trainer(tmp_path).test(module, data, verbose=False)
    assert f"written to {tmp_path / 'report.json'} and {tmp_path / 'report.html'}" in capsys.readouterr().out
    found = read_report(tmp_path)["provenance"]
    assert found["checkpoint"] == {"path": "", "fingerprint": fingerprint(module.state_dict())}
    assert found["data"] == {
        "class": "SpriteDataModule",
        "fingerprint": data_fingerprint(next(iter(data.test_dataloader()))),
    }
    assert found["config"] is None
    assert (tmp_path / "report.html").is_file()


def test_tensorboard_gets_pictures_where_it_is_there(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path, name="tb", version=0), CSVLogger(tmp_path, name="csv")]
    told = publish(sprite_module.trainer(tmp_path, logger=loggers), made_up_report.report(), made_up_report.pictures(1))
    assert told.startswith("written to ")
    loggers[0].finalize("success")
    events = EventAccumulator(str(tmp_path / "tb" / "version_0")).Reload()
    assert set(events.Tags()["images"]) == {"test_rollouts/sample_0", "test_action_scan/start_0"}
    assert "test_curves_psnr_db/model" in events.Tags()["scalars"]


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    trainer = sprite_module.trainer(tmp_path, fast_dev_run=True)
    assert publish(trainer, made_up_report.report(), {}) == f"a dry run, not written to {tmp_path / 'report.json'}"
    assert list(tmp_path.iterdir()) == []
