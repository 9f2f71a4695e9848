"""`evaluate --export worldproof`, by its command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from lightning_action.cli import run_verb
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from tests.support.worldproof_reader import read_rollout
from tests.support.written_run import write_run
from tests.support.written_videos import numbered_frames, write_video

SMALL = ["--data.world.image_size=16", "--data.world.sprite_radius=3", "--data.num_latents=4", "--data.test_size=3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("run")
    config, checkpoint = write_run(folder)
    (folder / "given.yaml").write_text("model: {sampling: {num_initial_latents: 1}}\n")
    return [f"--config={config}", f"--config={folder / 'given.yaml'}", f"--ckpt_path={checkpoint}"]


def export(run: list[str], output: Path, *arguments: str) -> None:
    run_verb(["evaluate", "--export", "worldproof", *run, "--output", str(output), "--device=cpu", *arguments])


def test_each_sample_is_a_counterfactual_pair(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export(run, tmp_path / "out", *SMALL, "--data.eval_batch_size=3", "--num_samples=2", "--fps=8")
    assert "6 rollouts written" in capsys.readouterr().out and not list(tmp_path.glob(".*"))
    names = [f"{sample:06d}_{kind}" for sample in range(3) for kind in ("other", "own")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    data = SpriteDataModule(
        MovingSpriteWorld(image_size=16, sprite_radius=3.0), num_latents=4, test_size=3, eval_batch_size=3
    )
    (batch,) = data.test_dataloader()
    truth = {"own": batch, "other": {**batch, "action": batch["action"].roll(1, dims=0)}}
    for sample in range(3):
        pair = {kind: read_rollout(tmp_path / "out" / f"{sample:06d}_{kind}") for kind in truth}
        for kind, rollout in pair.items():
            video = data.simulate(truth[kind], "test")[0][sample].permute(0, 2, 3, 1) * 127.5 + 127.5
            assert rollout.manifest["context_id"] == f"{sample:06d}" and rollout.manifest["fps"] == 8
            np.testing.assert_array_equal(rollout.actions, truth[kind]["action"][sample].numpy())
            assert rollout.predictions.shape == (2, 12, 16, 16, 3) and rollout.ground_truth is not None
            np.testing.assert_allclose(rollout.context, video[:1], atol=0.51)
            np.testing.assert_allclose(rollout.ground_truth, video[1:], atol=0.51)
            assert (rollout.predictions[0] != rollout.predictions[1]).any(), "the noise is the same"
        assert (pair["own"].predictions != pair["other"].predictions).any()


def test_without_a_simulator_there_are_no_pairs(
    run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kitchen").mkdir()
    for take in range(4):
        write_video(tmp_path / "kitchen" / f"{take}.mp4", numbered_frames(14, 16, 16))
        np.save(tmp_path / "kitchen" / f"{take}.npy", np.full((14, 2), 0.1 * take, np.float32))
    data = {"root": str(tmp_path / "kitchen"), "num_latents": 4, "test_share": 0.25}
    config = {"data": {"class_path": "lightning_action.VideoFolderDataModule", "init_args": data}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(config))
    export([*run, f"--config={tmp_path / 'data.yaml'}"], tmp_path / "out")
    told = capsys.readouterr().out
    assert "1 rollout written" in told and "VideoFolderDataModule cannot simulate what other actions show" in told
    (folder,) = (tmp_path / "out").iterdir()
    assert read_rollout(folder).manifest["horizon"] == 12 and folder.name.endswith("_own")


def test_what_cannot_be_judged_is_refused(run: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="model.sampling.num_initial_latents of at least 1"):
        export([run[0], run[2]], tmp_path / "out", *SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.json").write_text(json.dumps({}))
    with pytest.raises(FileExistsError, match="full is there already"):
        export(run, tmp_path / "full", *SMALL)
    with pytest.raises(ValueError, match="num_samples"):
        export(run, tmp_path / "out", *SMALL, "--num_samples=0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    export(run, tmp_path / "full", *SMALL, "--data.test_size=1", "--overwrite")
    assert len(list((tmp_path / "full").iterdir())) == 2
