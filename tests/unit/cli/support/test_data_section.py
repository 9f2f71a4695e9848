from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.cli.support.data_section import build_data, split_settings
from lightning_action.data.sprite_data import SpriteDataModule
from tests.support.shipped import CONFIGS


def test_arguments_of_the_data_are_told_from_others() -> None:
    words = ["--videos", "a", "--data.test_size", "8", "--null", "b", "--data.world.image_size=16", "--resize"]
    settings, rest = split_settings(words)
    assert settings == ["--data.test_size", "8", "--data.world.image_size=16"]
    assert rest == ["--videos", "a", "--null", "b", "--resize"]


def test_configurations_stack_and_the_command_line_comes_last(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("data: {init_args: {test_size: 5, eval_batch_size: 3}}\nmodel: {nothing: 1}\n")
    data = build_data([CONFIGS / "demo.yaml", tmp_path / "more.yaml"], ["--data.test_size=4"])
    assert isinstance(data, SpriteDataModule) and data.sizes["test"] == 4 and data.eval_batch_size == 3


@pytest.mark.parametrize(
    "section", ["", "data: {class_path: lightning_action.ActionFileDataModule, init_args: {actions: x}}"]
)
def test_data_without_test_samples_is_refused(tmp_path: Path, section: str) -> None:
    (tmp_path / "a.yaml").write_text(f"model: {{}}\n{section}\n")
    with pytest.raises(ValueError, match="a.yaml: expected a section `data` with a DataModule of recordings or of a"):
        build_data([tmp_path / "a.yaml"])


def test_a_class_of_another_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("data: {class_path: someones.Data}\n")
    with pytest.raises(ValueError, match="someones"):
        build_data([tmp_path / "a.yaml"])
