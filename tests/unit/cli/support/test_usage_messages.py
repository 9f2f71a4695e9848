"""What jsonargparse says, put into one sentence; tests/unit/cli/support/test_usage.py has it from the parser."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from lightning_action.cli.support.trainer_cli import ActionVideoCLI
from lightning_action.cli.support.usage_messages import (
    VERBS,
    WITHOUT_TRAINER,
    explain,
    nearest,
    shipped_configurations,
    without_configuration,
)


def test_words() -> None:
    assert nearest("fitt", ["fit", "test"]) == "fit" and nearest("x", ["fit"]) is None
    assert explain("argument subcommand: invalid choice: 'chek' (choose from 'fit', 'test')") == (
        "there is no verb 'chek': did you mean 'check'?"
    )


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("argument folder(trainer.root) --> checkpoint.dirpath: x", "checkpoint.dirpath follows from trainer.root and"),
        (
            'Parser key "fit":\n  Parser key "model.seed":\n Expected a <class \'int\'>. Got value: x',
            "model.seed: expec",
        ),
        ("unrecognized arguments: --modl.seed=3", "there is no option --modl.seed: did you mean '--model.seed'?"),
        ("Group 'model' does not accept option 'sede'", "there is no argument 'sede': did you mean 'seed'?"),
        ("the following arguments are required: model.vae", "missing: model.vae; name a configuration with --config"),
        ('expected "subcommand" to be one of {fit}', "name a verb: fit, validate, test, predict, selfcheck"),
        ("Unexpected config: 3", "expected a mapping of settings, as in `trainer: {max_steps: 10}`"),
        (
            "Expected a typing.Literal['mean', 'last']. Got value: lost",
            "expected one of 'mean', 'last', got 'lost': did",
        ),
        ("words that nobody knows", "words that nobody knows"),
        ("Given value type: <class 'int'>", "Given value type"),
    ],
)
def test_one_sentence_about_one_option(message: str, told: str) -> None:
    found = explain(message, ["--model.seed", "--model.seed.help", "--output"])
    assert found.startswith(told) and "\n" not in found


def test_only_a_model_that_is_missing_is_in_a_configuration() -> None:
    assert explain("the following arguments are required: output") == "missing: output"


def test_a_type_that_yaml_guessed_is_told_to_be_quoted() -> None:
    assert explain("Parser key \"root\":\n  Expected a <class 'str'>. Got value: 3") == (
        "root: expected str, got '3' (YAML reads that as something other than text: put it into quotes)"
    )


def test_configurations_that_are_near_are_named(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    assert without_configuration(str(tmp_path / "mime.yaml")).endswith(f"did you mean {str(tmp_path / 'mine.yaml')!r}?")
    shipped = str(shipped_configurations() / "demo.yaml")
    assert without_configuration("a/demo.yaml") == f"no configuration at 'a/demo.yaml': the shipped one is {shipped!r}"
    assert without_configuration("a/unlike_all") == "no configuration at 'a/unlike_all'"


def test_the_others_are_those_of_a_trainer() -> None:
    assert set(VERBS) - set(WITHOUT_TRAINER) == ActionVideoCLI.subcommands().keys()
    assert len(set(VERBS)) == len(VERBS)


@pytest.mark.parametrize("verb", WITHOUT_TRAINER)
def test_a_verb_is_a_function_of_its_module(verb: str) -> None:
    name = verb.replace("-", "_")
    assert callable(getattr(import_module(f"lightning_action.cli.{name}"), f"run_{name}"))
