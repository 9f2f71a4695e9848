"""The callbacks that look at what a model does, on two processes (DDP, FSDP2 with gloo) against one."""

from typing import Any

import pytest

from tests.integration.callbacks import behaviour_script
from tests.support.forked_processes import facts_of

pytestmark = [
    pytest.mark.distributed,
    # Of a model that has not learned to generate.
    pytest.mark.filterwarnings("ignore:DriftMonitor. generated videos drift"),
]

STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw: one launch for all tests, because starting the processes takes longer than the fits."""
    return facts_of(behaviour_script.main, tmp_path_factory.mktemp("behaviour"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process gives."""
    folder = tmp_path_factory.mktemp("alone")
    return {"fit": behaviour_script.fit(folder), "predict": behaviour_script.predict(folder)}


@STRATEGIES
@pytest.mark.parametrize("verb", ["fit", "predict"])
def test_figures_are_those_of_one_process(
    facts: dict[str, Any], alone: dict[str, Any], strategy: str, verb: str
) -> None:
    together = facts[strategy][verb]["shown"]
    assert together.keys() == alone[verb]["shown"].keys()
    assert any(tag.startswith("drift/block_seam/") for tag in together)
    for tag, values in alone[verb]["shown"].items():
        seen = {int(step): value for step, value in together[tag].items()}
        assert seen == pytest.approx(values, rel=TOLERANCE, abs=1e-9), tag


@STRATEGIES
def test_rollouts_are_shown_once_and_generated_by_every_rank(
    facts: dict[str, Any], alone: dict[str, Any], strategy: str
) -> None:
    assert len(alone["fit"]["images"]) == 4
    assert facts[strategy]["fit"]["images"] == alone["fit"]["images"]
    assert facts[strategy]["fit"]["num_generated"] == alone["fit"]["num_generated"]


@STRATEGIES
def test_a_prediction_goes_on_with_what_is_missing_shared_between_the_ranks(
    facts: dict[str, Any], alone: dict[str, Any], strategy: str
) -> None:
    assert alone["predict"]["num_generated"] == [1, 4]
    # Of five samples, two are written in the first go, and of the three that are left one rank has one twice.
    assert facts[strategy]["predict"]["num_generated"] == [1, 2]
    assert facts[strategy]["predict"]["sample_ids"] == list(range(behaviour_script.NUM_PREDICTED))
