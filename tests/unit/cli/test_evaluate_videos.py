"""`evaluate --videos`, by its command line, for videos that a simulator made in the place of another program."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from lightning_action.batch import to_bytes, to_unit_range
from lightning_action.callbacks import PredictionWriter
from lightning_action.cli import run_verb
from lightning_action.cli.support.data_section import build_data
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.evaluation.known_state import position_reader
from lightning_action.evaluation.metrics.inverse_dynamics_model import (
    InverseDynamicsModel,
    columns_of,
    save_inverse_dynamics,
)
from lightning_action.evaluation.obedience import ObedienceTest
from tests.support import sprite_module
from tests.support.worldproof_reader import read_frames
from tests.support.written_videos import write_video

pytestmark = pytest.mark.usefixtures("few_draws")
DATA = sprite_module.data(test_size=9, num_latents=4)
BATCH = DATA.dataset("test").batch(range(9))
CONFIG = {
    "data": {
        "class_path": "lightning_action.SpriteDataModule",
        "init_args": {
            "world": {
                "class_path": "lightning_action.MovingSpriteWorld",
                "init_args": {"image_size": 16, "sprite_radius": 3.0},
            },
            "batch_size": 3,
            "eval_batch_size": 4,
            "num_latents": 4,
            "test_size": 9,
        },
    }
}


def played(action: Tensor) -> Tensor:
    return to_bytes(DATA.simulate({**BATCH, "action": action}, "test")[0])


def write_pictures(folder: Path, videos: Tensor) -> None:
    for index, video in enumerate(videos):
        (folder / f"episode_{index}").mkdir(parents=True)
        for number, frame in enumerate(video.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(frame).save(folder / f"episode_{index}" / f"frame_{number:05d}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What another program leaves: videos under the true actions, those of the sample before, and none."""
    folder, action = tmp_path_factory.mktemp("made"), BATCH["action"]
    write_pictures(folder / "own", played(action))
    write_pictures(folder / "other", played(action.roll(1, dims=0)))
    write_pictures(folder / "null", played(0 * action))
    np.savez(folder / "other.npz", **{f"episode_{i}": rows.numpy() for i, rows in enumerate(action.roll(1, dims=0))})
    np.savez(folder / "actions.npz", **{f"episode_{i}": rows.numpy() for i, rows in enumerate(action)})
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


def evaluate(made: Path, output: Path, *arguments: str) -> dict[str, Any]:
    words = [str(made / word) if (made / word).exists() else word for word in arguments]
    assert run_verb(["evaluate", "--videos", str(made / "own"), "--output", str(output), *words]) == 0
    assert (output / "report.html").is_file()
    report: dict[str, Any] = json.loads((output / "report.json").read_text())
    return report


def test_an_obedient_program_obeys(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = evaluate(made, tmp_path / "out", "--config", "config.yaml", "--other", "other", "--null", "null")
    assert report["verdict"]["label"] == "obeys"
    # Files hold 8 bits.
    assert report["counterfactual_ratio"] < 0.05 and report["cross_swap_accuracy"] == 1 and report["psnr_db"] > 50
    assert report["baselines"].keys() == {"copy_first_frame", "ignore_actions"}
    assert report["sample_ids"] == list(range(9)) and report["rollout"] == "made by another program"
    assert report["provenance"]["data"]["class"] == "SpriteDataModule"
    assert report["provenance"]["videos"]["other"] == str(made / "other")
    printed = capsys.readouterr().out
    assert "verdict: obeys" in printed and "report.html" in printed and "given frames" not in printed
    named = evaluate(
        made, tmp_path / "named", "--config", "config.yaml", "--other", "other", "--other_actions", "other.npz"
    )
    assert named["counterfactual_ratio"] == report["counterfactual_ratio"]
    truth = evaluate(made, tmp_path / "truth", "--config", "config.yaml", "--other", "other", "--other_truth", "other")
    assert truth["counterfactual_ratio"] == pytest.approx(report["counterfactual_ratio"], abs=0.01)


def test_the_truth_may_be_files(made: Path, tmp_path: Path) -> None:
    """A true object of one colour is found by it; without one, nobody knows where things are."""
    color = (220, 30, 30)
    for name, action in (("truth", BATCH["position"]), ("own", BATCH["position"])):
        write_pictures(tmp_path / name, disks(action, color))
    write_pictures(tmp_path / "other", disks(BATCH["position"].roll(1, dims=0), color))
    common = ["--truth", "truth", "--actions", str(made / "actions.npz")]
    report = evaluate(tmp_path, tmp_path / "a", *common, "--object_color", *map(str, color))
    assert report["verdict"]["label"] == "obeys" and report["gain_x"] == pytest.approx(1)
    assert report["baselines"].keys() == {"copy_first_frame"} and report["provenance"]["data"]["class"] == "files"
    blind = evaluate(tmp_path, tmp_path / "b", *common, "--other", "own")
    assert blind["verdict"]["label"] == "ignores" and "gain_x" not in blind
    other = ["--other", "other", "--other_truth", "other"]
    assert evaluate(tmp_path, tmp_path / "c", *common, *other)["counterfactual_ratio"] == 0


def test_actions_are_read_off_videos_where_nobody_knows_positions(made: Path, tmp_path: Path) -> None:
    schema = DATA.action_schema
    model = InverseDynamicsModel(schema, columns_of(schema, BATCH["action"].flatten(0, 1)), channels=(8, 8))
    save_inverse_dynamics(tmp_path / "reads", model, {})
    write_pictures(tmp_path / "truth", played(BATCH["action"]))
    reads = ["--inverse_dynamics", str(tmp_path / "reads")]
    files = ["--truth", str(tmp_path / "truth"), "--actions", "actions.npz"]
    other = ["--other", "other", "--other_actions", "other.npz"]
    report = evaluate(made, tmp_path / "files", *files, *other, *reads)
    test = ObedienceTest(
        lambda batch, *_: to_unit_range(DATA.simulate(batch, "test")[0]),
        lambda batch: to_unit_range(batch["video"]),
        schema,
        1,
        inverse_dynamics=model.eval(),
    )
    test.add_model(BATCH, {})
    expected = {name: value for name, value in test.compute("model").items() if name.startswith("idm_")}
    assert len(expected) > 10
    for name, value in expected.items():
        # Files hold 8 bits.
        assert report[name] == (pytest.approx(value, abs=0.02) if math.isfinite(value) else None), name
    assert report["verdict"]["label"] == "cannot tell" and "inverse-dynamics model does not" in str(report["verdict"])
    assert report["provenance"]["inverse_dynamics"]["path"] == str(tmp_path / "reads")
    alone = evaluate(made, tmp_path / "alone", *files, *reads)
    assert alone["idm_gain_other_move_0"] is None and alone["idm_gain_move_0"] == report["idm_gain_move_0"]
    of_data = evaluate(made, tmp_path / "data", "--config", "config.yaml", *other, *reads)
    assert of_data["idm_gain_other_move_1"] == pytest.approx(report["idm_gain_other_move_1"], abs=0.02)
    with pytest.raises(UsageError, match="--inverse_dynamics reads actions, and needs true ones .* give --actions"):
        evaluate(made, tmp_path / "none", "--truth", str(tmp_path / "truth"), *reads)
    np.savez(tmp_path / "half.npz", **{f"episode_{index}": np.ones((26, 2)) for index in range(9)})
    with pytest.raises(ValueError, match=r"reads actions \[1, 12, 2\] .* those given are \[1, 26, 2\]"):
        evaluate(made, tmp_path / "half", *files[:2], "--actions", str(tmp_path / "half.npz"), *reads)


def disks(positions: Tensor, color: tuple[int, int, int]) -> Tensor:
    """Grey videos `[B, T, 3, 16, 16]` with a square of a colour."""
    pixels = torch.arange(16) + 0.5
    inside = ((positions[..., 0, None, None] - pixels).abs() < 2) & (
        (positions[..., 1, None, None] - pixels[:, None]).abs() < 2
    )
    video = torch.where(inside[:, :, None], torch.tensor(color)[:, None, None], 128)
    return video.to(torch.uint8)


def test_predictions_that_were_written_have_the_figures_of_the_model(tmp_path: Path) -> None:
    module, _ = sprite_module.ready()
    data = sprite_module.data(num_latents=4, predict_size=3)
    writer = PredictionWriter(str(tmp_path / "own"))
    sprite_module.trainer(tmp_path, callbacks=[writer]).predict(module, data, return_predictions=False)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    found = evaluate(tmp_path, tmp_path / "out", "--config", "config.yaml", "--split=predict", "--data.predict_size=3")
    test = module.obedience_test(position_reader(data, "predict"))
    for batch in data.predict_dataloader():
        test.add_model(batch, {})
    expected = test.compute("model")
    same = [name for name, value in expected.items() if found.get(name) is not None and "speed" not in name]
    assert {"psnr_db", "ssim", "ade_px", "motion_ratio"} <= set(same) and len(same) > 20
    for name in ("psnr_db", "ssim", "psnr_moving_db", "ade_px", "fde_px", "motion_ratio"):
        # Files hold 8 bits.
        assert found[name] == pytest.approx(expected[name], rel=5e-3), name


def test_videos_may_be_scaled_when_one_says_so(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "made")
    video = read_frames(tmp_path / "made" / "own" / "episode_2")
    shutil.rmtree(tmp_path / "made" / "own" / "episode_2")
    write_video(tmp_path / "made" / "own" / "episode_2.mp4", video.repeat(2, axis=1).repeat(2, axis=2))
    with pytest.raises(ValueError, match="episode_2.mp4 is 32 x 32, the true videos are 16 x 16: .* give --resize"):
        evaluate(tmp_path / "made", tmp_path / "out", "--config", "config.yaml")
    assert not (tmp_path / "out").exists()
    report = evaluate(tmp_path / "made", tmp_path / "out", "--config", "config.yaml", "--resize")
    assert report["verdict"]["label"] == "obeys" and report["psnr_db"] > 30


def test_a_manifest_says_what_is_what(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = "".join(f"episode_{index},{(index + 1) % 9}\n" for index in range(9))
    (tmp_path / "right.csv").write_text("videos,sample_id\n" + "".join(f"episode_{i},{i}\n" for i in range(9)))
    (tmp_path / "wrong.csv").write_text("videos,sample_id\n" + turned)
    right = evaluate(made, tmp_path / "a", "--config", "config.yaml", "--manifest", str(tmp_path / "right.csv"))
    assert right["verdict"]["label"] == "obeys"
    capsys.readouterr()
    wrong = evaluate(made, tmp_path / "b", "--config", "config.yaml", "--manifest", str(tmp_path / "wrong.csv"))
    assert wrong["verdict"]["label"] != "obeys"
    assert "the given frames are not like the true ones" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ([], UsageError, "what is true. Give --truth, a folder of videos, or --config"),
        (["--config", "config.yaml", "--truth", "own"], UsageError, "what is true"),
        (["--config", "config.yaml", "--actions", "actions.npz"], UsageError, "--actions and --object_color are for"),
        (
            ["--truth", "own", "--other_truth", "other"],
            UsageError,
            "--other_actions and --other_truth say what --other",
        ),
        (["--truth", "own", "--data.test_size=3"], UsageError, "--data.test_size=3 is for the data of --config"),
        (["--truth", "own", "--split", "predict"], UsageError, "--split is for the data of --config"),
        (["--truth", "own", "--num_initial_frames", "0"], ValueError, "num_initial_frames"),
        (
            ["--truth", "other", "--num_initial_frames", "10"],
            ValueError,
            "of 13 frames 10 are given, so that fewer than 4",
        ),
        (["--config", "config.yaml", "--data.num_latents=3"], ValueError, "has 13 frames, the true videos have 9"),
        (
            ["--config", "config.yaml", "--data.test_size=8"],
            ValueError,
            "own has 8, to which nothing belongs. Expected",
        ),
        (
            ["--config", "config.yaml", "--data.test_size", "11"],
            ValueError,
            "own has no 9, 10. Expected a video of each",
        ),
        (["--config", "config.yaml", "--data.size=11"], UsageError, "there is no argument 'size'"),
        (["--truth", "own"], UsageError, "--videos and --truth are the same folder"),
        (
            ["--truth", "other", "--object_color", "0", "0", "255"],
            ValueError,
            "episode_0 is a true video, and nothing in",
        ),
        (
            ["--truth", "other", "--actions", "short.npz"],
            ValueError,
            "--actions, episode_0: 5 rows for 13 frames; expected one for each step between them .12.",
        ),
        (["--truth", "other", "--manifest", "header.csv"], ValueError, "header.csv names no videos: expected a line"),
        (["--truth", "other", "--null", "nowhere"], FileNotFoundError, "no folder at nowhere"),
        (
            ["--truth", "null", "--actions", "actions.npz", "--other", "other", "--other_actions", "actions.npz"],
            ValueError,
            "the other actions of episode_. are its true ones",
        ),
        (
            ["--config", "config.yaml", "--other", "other", "--other_actions", "short.npz"],
            ValueError,
            "expected .12, 2.",
        ),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_written(
    made: Path, tmp_path: Path, arguments: list[str], error: type[Exception], told: str
) -> None:
    (made / "header.csv").write_text("videos,truth\n")
    np.savez(made / "short.npz", **{f"episode_{index}": np.ones((5, 2)) for index in range(9)})
    with pytest.raises(error, match=told):
        evaluate(made, tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("has_locator", [True, False])
def test_recordings_are_compared_window_by_window(tmp_path: Path, has_locator: bool) -> None:
    (tmp_path / "kitchen").mkdir()
    for take, video in enumerate(disks(BATCH["position"], (220, 30, 30))):
        write_video(tmp_path / "kitchen" / f"{take}.mp4", video.permute(0, 2, 3, 1).numpy(), qp="0")
        if take != 3:
            np.save(tmp_path / "kitchen" / f"{take}.npy", BATCH["action"][take].numpy())
    arguments: dict[str, Any] = {"root": str(tmp_path / "kitchen"), "num_latents": 3, "test_share": 0.9}
    locator = {"class_path": "lightning_action.ColorLocator", "init_args": {"color": [220, 30, 30]}}
    arguments |= {"validation_share": 0, "batch_size": 1, **({"locator": locator} if has_locator else {})}
    config = {"data": {"class_path": "lightning_action.VideoFolderDataModule", "init_args": arguments}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    data = build_data([tmp_path / "config.yaml"])
    data.setup("test")
    for batch in data.test_dataloader():
        for sample, video in zip(batch["sample_id"].tolist(), to_bytes(batch["video"]), strict=True):
            (tmp_path / "own").mkdir(exist_ok=True)
            torch.save({"video": video.clone()}, tmp_path / "own" / f"window_{sample}.pt")
    report = evaluate(tmp_path, tmp_path / "out", "--config", "config.yaml", "--other", "own")
    assert report["psnr_db"] == 100 and report["delta_psnr_db"] == 0 and "counterfactual_ratio" not in report
    assert report["verdict"]["label"] == "ignores", report["verdict"]
    alone = evaluate(tmp_path, tmp_path / "alone", "--config", "config.yaml")
    assert alone["verdict"]["label"] == ("obeys" if has_locator else "cannot tell"), alone["verdict"]
