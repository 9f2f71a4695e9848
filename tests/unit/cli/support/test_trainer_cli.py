"""The parts of the command line one by one; tests/integration/test_command_line.py runs the whole."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerFn

from lightning_action.cli.support.trainer_cli import (
    ActionVideoCLI,
    SaveConfigOfVerb,
    checkpoint_folder,
    only_tensors,
    require_strategy_for,
    undoing_a_refusal,
    warn_of_another_place,
)


def test_checkpoints_lie_in_the_folder_of_the_run() -> None:
    assert checkpoint_folder("runs/demo") == os.path.join("runs", "demo", "checkpoints")
    assert checkpoint_folder(None) is None


@pytest.mark.parametrize("value", [None, True, "true", "null"])
def test_checkpoints_are_always_read_as_tensors_alone(value: Any) -> None:
    assert only_tensors(value) is None


@pytest.mark.parametrize("value", [False, "false", "maybe"])
def test_nobody_can_ask_for_more(value: Any) -> None:
    with pytest.raises(ValueError, match="always read as tensors and plain values alone, so that none can run code"):
        only_tensors(value)
    assert all("weights_only" in skipped for skipped in ActionVideoCLI.subcommands().values())


def test_shards_are_read_by_their_strategy_alone(tmp_path: Path) -> None:
    (tmp_path / "file.ckpt").touch()
    (tmp_path / "folder.ckpt").mkdir()
    fsdp2, ddp = (
        Namespace(class_path=path)
        for path in ("lightning_action.FSDP2Strategy", "lightning.pytorch.strategies.DDPStrategy")
    )
    for strategy in (fsdp2, ddp, "auto"):
        require_strategy_for(str(tmp_path / "file.ckpt"), strategy)
    require_strategy_for(str(tmp_path / "folder.ckpt"), fsdp2)
    for strategy in (ddp, "auto", Namespace(class_path="nobody.imported.This")):
        with pytest.raises(ValueError, match="folder.ckpt' is a folder of shards: stack configs/fsdp.yaml"):
            require_strategy_for(str(tmp_path / "folder.ckpt"), strategy)


@pytest.mark.parametrize(("stage", "name"), [(TrainerFn.FITTING, "config_fit.yaml"), ("test", "config_test.yaml")])
def test_each_verb_has_a_configuration_of_its_own(stage: Any, name: str) -> None:
    saver = SaveConfigOfVerb(None, None)  # type: ignore[arg-type]
    saver.setup(SimpleNamespace(fast_dev_run=True), None, stage)  # type: ignore[arg-type]
    assert saver.config_filename == "config.yaml", "of a dry run nothing is saved"
    saver.setup(SimpleNamespace(fast_dev_run=False), None, stage)  # type: ignore[arg-type]
    assert saver.config_filename == name


def refused_run(root: Path, saved: bool, error: type[BaseException] = ValueError, version: int | None = None) -> None:
    """Leave what a run leaves that ends with an error: its log, and an empty folder."""
    saver, logger = SaveConfigOfVerb(None, None), CSVLogger(root, version=version)  # type: ignore[arg-type]
    trainer = SimpleNamespace(default_root_dir=str(root), callbacks=[saver], loggers=[logger])
    with pytest.raises(error), undoing_a_refusal(trainer):  # type: ignore[arg-type]
        saver.already_saved = saved
        Path(logger.log_dir).mkdir(parents=True, exist_ok=True)
        (Path(logger.log_dir) / "metrics.csv").touch()
        (root / "checkpoints").mkdir()
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_refused_run_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    refused_run(tmp_path / "runs" / "new", saved=False, error=error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", [None, 0])
def test_what_was_there_before_stays(tmp_path: Path, version: int | None) -> None:
    (tmp_path / "lightning_logs" / "version_0").mkdir(parents=True)
    (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").touch()
    (tmp_path / "empty").mkdir()
    refused_run(tmp_path, saved=False, version=version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "lightning_logs"]
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


@pytest.mark.parametrize(("saved", "rank"), [(True, "0"), (False, "1")])
def test_a_run_that_went_on_and_other_ranks_remove_nothing(
    tmp_path: Path, saved: bool, rank: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", rank)
    refused_run(tmp_path, saved)
    assert (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").is_file()


def test_a_run_that_was_moved_is_told_where_it_writes(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    config = tmp_path / "moved" / "lightning_logs" / "version_0" / "config_fit.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("trainer: {default_root_dir: runs/before}\n")
    for default_root_dir in (str(tmp_path / "moved"), "chosen/now", None):
        warn_of_another_place([config, None], default_root_dir)
    assert not recwarn
    with pytest.warns(UserWarning, match="a run in '.*moved', and writes to 'runs/before', .* add --trainer.default_r"):
        warn_of_another_place([config], "runs/before")
