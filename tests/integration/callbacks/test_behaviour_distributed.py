"""The callbacks that look at what a model does, on two processes (DDP, FSDP2 with gloo) against one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.callbacks import behaviour_script

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).resolve().parents[3]
STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script saw: one launch for all tests, because starting the processes takes longer than the fits."""
    folder = tmp_path_factory.mktemp("behaviour")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [*command, behaviour_script.__file__, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-5000:]
    seen: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return seen


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
