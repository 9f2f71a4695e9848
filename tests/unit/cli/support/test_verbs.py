from __future__ import annotations

from importlib import import_module

import pytest

from lightning_action.cli.support.trainer_cli import ActionVideoCLI
from lightning_action.cli.support.verbs import VERBS, WITHOUT_TRAINER


def test_the_others_are_those_of_a_trainer() -> None:
    assert set(VERBS) - set(WITHOUT_TRAINER) == ActionVideoCLI.subcommands().keys()
    assert len(set(VERBS)) == len(VERBS)


@pytest.mark.parametrize("verb", WITHOUT_TRAINER)
def test_a_verb_is_a_function_of_its_module(verb: str) -> None:
    name = verb.replace("-", "_")
    assert callable(getattr(import_module(f"lightning_action.cli.{name}"), f"run_{name}"))
