from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from lightning_action import ActionVideoModule, SpriteDataModule
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.parts_cli import PartsCLI, choose_device
from tests.support.written_run import CONFIG


def parse(folder: Path, *args: str, **more: object) -> PartsCLI:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **more}))
    return PartsCLI("check", "Words.", [f"--config={path}", *args])


def test_model_and_data_are_built_and_no_trainer(tmp_path: Path) -> None:
    saved_by_predict = {"trainer": {"accelerator": "cuda", "devices": 64}, "return_predictions": False}
    cli = parse(tmp_path, "--model.seed=7", "--data.test_size=5", **saved_by_predict)
    assert type(cli.model) is ActionVideoModule and cli.model.seed == 7
    assert isinstance(cli.datamodule, SpriteDataModule) and cli.datamodule.sizes["test"] == 5
    assert not hasattr(cli, "trainer"), "this machine has no 64 devices"


def test_a_mistake_names_the_verb(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no option --modl.seed: did you mean .* check --help lists what"):
        parse(tmp_path, "--modl.seed=7")


def test_devices() -> None:
    assert choose_device("cpu", 3) == torch.device("cpu")
    assert choose_device("cuda:1", 0) == torch.device("cuda", 1)
    if not torch.cuda.is_available():
        assert choose_device("auto", 3) == torch.device("cpu")
    with pytest.raises(ValueError, match="expected a device such as cuda:0 or cpu, or auto, got 'gpu'"):
        choose_device("gpu", 0)
