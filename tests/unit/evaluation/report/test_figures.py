"""The registry of figures names what the metrics compute."""

from __future__ import annotations

import torch

from lightning_action.evaluation.metrics.action_following import ActionFollowing
from lightning_action.evaluation.metrics.loss_gap import LossGap
from lightning_action.evaluation.metrics.video_quality import DeltaPsnr, VideoQuality
from lightning_action.evaluation.report.figures import FAMILIES, FIGURES, GROUPS, figures_of, format_value, is_number


def test_every_figure_of_the_metrics_is_in_the_registry() -> None:
    following, quality, gap, delta = ActionFollowing(), VideoQuality(), LossGap("swapped"), DeltaPsnr()
    paths = torch.randn(2, 9, 2).cumsum(dim=1)
    following.update(paths, paths, torch.ones(2, 9, dtype=torch.bool))
    video = torch.rand(2, 6, 3, 16, 17)
    quality.update(video, video.roll(1, dims=1))
    gap.update(torch.rand(2, 3), torch.rand(2, 3), 1000 * torch.rand(2, 3))
    delta.update(video, video, video)
    computed = {name for metric in (following, quality, gap, delta) for name in metric.compute()} - {"episodes"}
    assert computed - FIGURES.keys() == set()


def test_the_registry_is_consistent() -> None:
    for key, figure in FIGURES.items():
        assert key == figure.key and figure.group in GROUPS
        assert figure.better != "nearer" or figure.ideal is not None, key
        assert not (figure.printed and figure.detail), key
        # What real videos allow is of no model.
        assert figure.detail or figure.better or key == "idm_correlation_real", key
        assert not figure.printed or len(figure.heading) < 32, key


def test_no_figure_is_defined_twice() -> None:
    assert [figure.key for family in FAMILIES for figure in family()] == list(FIGURES)


def test_columns_of_actions_have_figures_of_their_own() -> None:
    keys = ["idm_gain_other_arm", "idm_gain_arm", "idm_cross_talk_arm_to_grip", "idm_correlation_real_arm", "ade_px"]
    found = figures_of([*keys, "idm_gain_", "a_figure_of_its_own", "psnr_db"])
    assert list(found) == ["ade_px", *keys[:4], "psnr_db"] and all(figure.key == key for key, figure in found.items())
    titles = ["gain arm, other actions", "gain arm", "leak of arm into grip", "arm read off real frames"]
    assert [figure.title for figure in found.values()][1:5] == titles
    assert [figure.better for figure in found.values()][:5] == ["lower", "nearer", "nearer", "nearer", None]


def test_headings_say_what_chance_gives_or_else_what_is_ideal() -> None:
    assert FIGURES["sign_accuracy"].heading == "sign accuracy (chance 0.5)"
    assert FIGURES["gain_x"].heading == "gain x (ideal 1)"
    assert FIGURES["ade_px"].heading == "position error, px"


def test_what_is_undefined_is_a_dash() -> None:
    assert [format_value(value) for value in (0.12345, None, float("nan"), True)] == ["0.123", "-", "-", "-"]
    assert is_number(1) and not is_number("1")
