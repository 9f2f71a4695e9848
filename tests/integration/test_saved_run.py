"""A run that the version of 28 November 2026 left still loads, predicts what it predicted then, and goes on.

`tests/data/saved_run` is the demo of that day, small, after three steps: what it saved, and the latents of its two
videos. It names classes by the paths that they had, and has none of the settings that have come since.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_action import load_run
from lightning_action.cli import main
from lightning_action.cli.trainer_verbs import run
from tests.support.small_commands import ROOT, last_checkpoint

SAVED = ROOT / "tests" / "data" / "saved_run"
ARGUMENTS = [f"--config={SAVED / 'config_fit.yaml'}", f"--ckpt_path={SAVED / 'last.ckpt'}"]


def test_it_predicts_what_it_predicted(tmp_path: Path) -> None:
    run(["predict", *ARGUMENTS, f"--trainer.default_root_dir={tmp_path}"])
    then = load_file(SAVED / "predictions.safetensors")
    paths = sorted((tmp_path / "predictions").glob("*.pt"))
    assert len(paths) == len(then) == 2
    for index, path in enumerate(paths):
        now = torch.load(path, weights_only=True)["latents"]
        # Other processors sum in another order; latents are up to 3.
        torch.testing.assert_close(now, then[f"latents_{index}"], atol=1e-5, rtol=0)
    assert (then["latents_0"] - then["latents_1"]).abs().max() > 0.1, "the control"


def test_its_fit_goes_on(tmp_path: Path) -> None:
    run(["fit", *ARGUMENTS, f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=5"])
    before, after = (torch.load(path, weights_only=True) for path in (SAVED / "last.ckpt", last_checkpoint(tmp_path)))
    assert (before["global_step"], after["global_step"]) == (3, 5)
    moments = [each["optimizer_states"][0]["state"] for each in (before, after)]
    # Those of the backbone, which is frozen for longer, stand still.
    assert [{float(state["step"]) for state in states.values()} for states in moments] == [{0.0, 3.0}, {0.0, 5.0}]
    name = "action_projection.action_projection.weight"
    moved = (after["state_dict"][name] - before["state_dict"][name]).abs().max()
    assert 0 < moved < 0.01, "it goes on from where it was, by two steps of the saved rate"


def test_it_is_taken_from_python_and_exported(tmp_path: Path) -> None:
    module = load_run(SAVED / "config_fit.yaml", SAVED / "last.ckpt")
    saved = torch.load(SAVED / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    output = tmp_path / "generator.safetensors"
    main(["export", *ARGUMENTS, "--format=wan", f"--output={output}"])
    assert {f"generator.{name}" for name in load_file(output)} == {name for name in saved if "generator." in name}


@pytest.mark.parametrize("verb", ["validate", "test"])
def test_it_is_measured(verb: str, tmp_path: Path) -> None:
    run([verb, *ARGUMENTS, f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=1"])
    assert (tmp_path / "report.json").is_file() == (verb == "test")
