"""Videos that are there already, made by the simulator itself, right and wrong on purpose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.batch import Batch, to_unit_range
from lightning_action.data.sprite_data import SpriteDataModule
from lightning_action.data.sprite_world import MovingSpriteWorld
from lightning_action.evaluation.evaluator import Seen
from lightning_action.evaluation.given_videos import GivenEpisodes, GivenVideosTest
from lightning_action.evaluation.known_state import position_reader, simulator
from lightning_action.evaluation.report.report import Report, format_table
from lightning_action.evaluation.report.report_page import report_page

pytestmark = pytest.mark.usefixtures("few_draws")
# 4 latent frames at ratio 3; two batches, of 5 and 4 videos.
DATA = SpriteDataModule(
    MovingSpriteWorld(image_size=24, sprite_radius=3.5, hold_probability=0.9),
    num_latents=4,
    temporal_compression_ratio=3,
    test_size=14,
    eval_batch_size=5,
)
BATCHES = list(DATA.test_dataloader())
read, simulate = position_reader(DATA, "test"), simulator(DATA, "test")
assert read is not None and simulate is not None


def shown(batch: Batch, action: Tensor) -> Tensor:
    return simulate({**batch, "action": action})[0]


def episodes(batch: Batch, own: Tensor, other: Tensor | None = None, null: Tensor | None = None) -> GivenEpisodes:
    truth = Seen(to_unit_range(batch["video"]), batch["position"])
    true_other = None if other is None else Seen(*simulate({**batch, "action": -batch["action"]}))
    return GivenEpisodes(batch["sample_id"], truth, own, other, null, true_other, lambda seen: read(seen, batch))


def measured(*given: GivenEpisodes) -> GivenVideosTest:
    test = GivenVideosTest(3, 1)
    for each in given:
        test.add(each)
    return test


def test_videos_of_the_simulator_obey() -> None:
    test = measured(
        *(
            episodes(
                batch, shown(batch, batch["action"]), shown(batch, -batch["action"]), shown(batch, batch["action"] * 0)
            )
            for batch in BATCHES
        )
    )
    report = test.report()
    assert report["verdict"]["label"] == "obeys", report["verdict"]
    assert report["counterfactual_ratio"] == 0 and report["cross_swap_accuracy"] == 1 and report["psnr_db"] > 99
    assert report["baselines"].keys() == {"copy_first_frame", "ignore_actions"}
    assert report["baselines"]["copy_first_frame"]["gain_x"] == 0
    assert report["sample_ids"] == list(range(14)) and report["episodes"] == 14 and report["num_frames"] == 10
    assert not any(name.endswith("win_rate") for name in report) and report["loss_by_noise_level"] == {}
    pictures = test.pictures()
    assert {name: list(video.shape) for name, video in pictures.items()} == dict.fromkeys(
        ("truth", "model", "other", "null"), [4, 10, 3, 24, 24]
    )
    assert torch.equal(pictures["truth"], pictures["model"]) and test.unlike == []
    assert "gain x" in format_table(report) and "obeys" in report_page(report, pictures)
    assert "the same noise for a sample" not in report_page(report, pictures)


def test_wrong_videos_are_told() -> None:
    inverted = measured(*(episodes(batch, shown(batch, -batch["action"])) for batch in BATCHES)).report()
    assert inverted["verdict"]["label"] == "partly" and "wrong way" in inverted["verdict"]["reasons"][0]
    assert "delta_psnr_db" not in inverted and inverted["baselines"].keys() == {"copy_first_frame"}
    still = measured(*(episodes(batch, shown(batch, batch["action"] * 0)) for batch in BATCHES)).report()
    assert still["verdict"]["label"] == "ignores" and "win rate" not in still["verdict"]["reasons"][0]


def test_where_nobody_knows_positions_only_blindness_is_told() -> None:
    batch = DATA.dataset("test").batch(range(9))
    truth, own, other = (to_unit_range(batch["video"]), *(shown(batch, sign * batch["action"]) for sign in (1, -1)))

    def label(under_other: Tensor | None) -> Report:
        given = GivenEpisodes(batch["sample_id"], Seen(truth), own, under_other)
        report: Report = measured(given).report()["verdict"]
        return report

    alone = label(None)
    assert alone["label"] == "cannot tell" and "nothing was made under other actions" in alone["reasons"][0]
    assert label(other)["label"] == "cannot tell" and "dB against other actions" in label(other)["reasons"][0]
    assert label(own)["label"] == "ignores" and "the videos do not depend on the actions" in label(own)["reasons"][0]


def test_episodes_that_begin_otherwise_are_named() -> None:
    batch = BATCHES[0]
    own = shown(batch, batch["action"])
    own[2] = 1 - own[2]
    assert measured(episodes(batch, own)).unlike == [2]
