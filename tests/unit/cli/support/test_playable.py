"""A trained run as a stage."""

from __future__ import annotations

import lightning as L
import pytest
import torch

from lightning_action.cli.support.playable import PlayableCLI, load_stage, require_playable, settings_of
from lightning_action.play.live_world import LiveWorld
from tests.support.playable_run import write_playable_run
from tests.support.sprite_module import build, data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    config, checkpoint = write_playable_run(tmp_path_factory.mktemp("run"))
    return [f"--config={config}", f"--ckpt_path={checkpoint}", "--device=cpu"]


@pytest.mark.parametrize(("split", "dtype"), [("test", torch.float32), ("train", torch.bfloat16)])
def test_a_run_is_loaded_and_told_of_on_the_way(run: list[str], split: str, dtype: torch.dtype) -> None:
    options = [f"--split={split}", f"--dtype={str(dtype).partition('.')[2]}", "--fps=20"]
    cli = PlayableCLI("play", None, [*run, *options])
    told: list[tuple[str, float]] = []
    settings = settings_of(cli.config, "mine")
    stage = load_stage(
        cli, require_playable(cli.model, cli.datamodule), settings, {"a": 1}, lambda *each: told.append(each)
    )
    assert [share for _, share in told] == sorted(share for _, share in told) and told[-1] == ("ready", 1.0)
    assert (stage.fps, stage.title, stage.provenance["a"]) == (20.0, "mine", 1)
    assert stage.provenance["dtype"] == str(dtype) and stage.provenance["ckpt_path"] == cli.config.ckpt_path
    world = LiveWorld(stage)
    assert world.reset(1).frames.shape == (1, 16, 16, 3)
    assert world.step(torch.tensor([0.5, 0.0])).frames.shape == (4, 16, 16, 3)


def test_what_nobody_can_steer_or_begin_is_refused() -> None:
    module = build()
    assert require_playable(module, source := data()) is source
    with pytest.raises(ValueError, match="this model takes no actions"):
        require_playable(build(action_projection=None), source)
    with pytest.raises(ValueError, match="got LightningDataModule"):
        require_playable(module, L.LightningDataModule())


@pytest.mark.parametrize(
    "option", [["--model.sampling.relative_positions=false"], ["--model.sampling.relative_positions", "true"]]
)
def test_positions_are_always_relative(run: list[str], option: list[str]) -> None:
    with pytest.raises(ValueError, match="positions are counted within the window: leave .*relative_positions out"):
        PlayableCLI("play", None, [*run, *option])
