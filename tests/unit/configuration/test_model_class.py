"""A configuration chooses the class of its model, or leaves it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.configuration.model_class import choose_class, chooses_class


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {
        "plain": "model: {seed: 3}\n",
        "choosing": "model: {class_path: lightning_action.ActionDistillation}\n",
        "elsewhere": "data: {class_path: a.b}\nmodel: null\n",
        "broken": "model: {class_path: [\n",
        "words": "hello\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return {name: str(tmp_path / f"{name}.yaml") for name in texts}


def test_the_files_of_a_command_line_are_looked_into(files: dict[str, str]) -> None:
    assert not choose_class(["fit", "--config", files["plain"], f"--config={files['elsewhere']}"])
    assert choose_class(["fit", "--config", files["plain"], f"--config={files['choosing']}"])
    assert choose_class(["fit", "-c", files["choosing"], "--config", files["plain"]])
    assert not choose_class(["fit", files["choosing"], "--config"])


def test_the_command_line_itself_may_choose() -> None:
    assert choose_class(["fit", "--model.class_path=ActionDistillation"])
    assert choose_class(["fit", "--model=ActionDistillation"]) and choose_class(["fit", "--model", "x.Y"])
    assert not choose_class(["fit", "--model.generator.class_path=x", "--data=lightning_action.SpriteDataModule"])


@pytest.mark.parametrize("name", ["broken", "words", "absent"])
def test_what_is_no_configuration_is_left_to_the_parser(files: dict[str, str], name: str) -> None:
    assert not choose_class(["fit", "--config", files.get(name, "/nowhere/absent.yaml")])


def test_sections() -> None:
    assert chooses_class({"class_path": "a.B"})
    assert not any(chooses_class(section) for section in (None, {}, {"generator": {"class_path": "a.B"}}, "class_path"))
