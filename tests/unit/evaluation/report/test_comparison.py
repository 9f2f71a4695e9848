"""Two reports beside each other."""

from __future__ import annotations

import math
from typing import Any

import pytest

from lightning_action.evaluation.report.comparison import compare, paired_tests
from lightning_action.evaluation.report.figures import FIGURES
from tests.support import made_up_report

NAMES = ("A", "B")


def outcomes(first: dict[str, Any], second: dict[str, Any]) -> dict[str, str]:
    return {change.figure.key: change.outcome for change in compare(first, second, NAMES).changes}


def test_a_model_is_no_better_than_itself() -> None:
    report = made_up_report.report()
    found = compare(report, report, NAMES)
    assert found.is_paired and found.verdicts == ("obeys", "obeys")
    assert {change.outcome for change in found.changes} == {"no more than noise", "not tested"}
    assert "B is better in nothing, and worse in nothing; 6 others differ" in found.summary()


def test_what_is_better_is_told_by_the_direction_of_its_figure() -> None:
    bad, good = made_up_report.report(0.6), made_up_report.report(1.0)
    expected = dict.fromkeys(("gain_x", "gain_y", "sign_accuracy", "ade_px"), "better")
    assert outcomes(bad, good).items() >= expected.items()
    assert outcomes(good, bad).items() >= dict.fromkeys(expected, "worse").items()
    assert outcomes(bad, good)["lag_frames"] == "not tested"  # not known of each episode
    change = next(each for each in compare(bad, good, NAMES).changes if each.figure.key == "ade_px")
    assert change.tested is not None and change.tested.difference < 0


def test_a_gain_that_is_too_large_is_worse() -> None:
    right, too_far = made_up_report.report(1.0), made_up_report.report(1.5)
    assert outcomes(right, too_far)["gain_x"] == "worse"
    assert outcomes(right, too_far)["r2_x"] == "not tested"


def test_episodes_are_matched_by_their_ids() -> None:
    report = made_up_report.report()
    turned = {
        **report,
        "sample_ids": report["sample_ids"][::-1],
        "per_episode": {name: values[::-1] for name, values in report["per_episode"].items()},
    }
    for change in compare(report, turned, NAMES).changes:
        assert change.tested is None or change.tested.interval == (0, 0)


@pytest.mark.parametrize(
    "other",
    [
        {"sample_ids": list(range(1, 13))},
        {"sample_ids": None},
        {"provenance": {"data": {"fingerprint": "of other data"}}},
    ],
)
def test_other_episodes_are_compared_as_groups(other: dict[str, Any]) -> None:
    report = made_up_report.report()
    found = compare(report, {**report, **other}, NAMES)
    assert not found.is_paired and "Unpaired" in found.method()


def test_a_figure_of_some_episodes_alone_is_not_paired() -> None:
    report = made_up_report.report()
    few = {**report, "per_episode": {**report["per_episode"], "gain_x": [1.0, 0.9]}}
    assert outcomes(report, few)["gain_x"] == outcomes(few, few)["gain_x"] == "not tested"
    assert outcomes(report, few)["gain_y"] == "no more than noise"


def test_a_figure_of_some_of_the_episodes_is_compared_over_those_that_both_have() -> None:
    report = made_up_report.report()
    values = report["per_episode"]["ade_px"]
    some, worse = [*values[:9], None, None, None], [None, None, *(value + 1 for value in values[2:])]
    first = {**report, "per_episode": {**report["per_episode"], "ade_px": some}}
    second = {**report, "per_episode": {**report["per_episode"], "ade_px": worse}}
    change = next(each for each in compare(first, second, NAMES).changes if each.figure.key == "ade_px")
    assert change.tested is not None and (change.tested.episodes, change.tested.is_paired) == (7, True)
    assert change.tested.difference == pytest.approx(1) and change.outcome == "worse"


def test_a_figure_of_other_episodes_is_compared_between_groups_and_named() -> None:
    report = made_up_report.report()
    values = report["per_episode"]["ade_px"]
    first, second = (
        {**report, "per_episode": {**report["per_episode"], "ade_px": each}}
        for each in ([*values[:6], *[None] * 6], [*[None] * 6, *(value + 5 for value in values[6:])])
    )
    found = compare(first, second, NAMES)
    change = next(each for each in found.changes if each.figure.key == "ade_px")
    assert change.tested is not None and not change.tested.is_paired and change.outcome == "worse"
    assert found.is_paired and "unpaired: position error, measured of other episodes" in found.method()
    assert "unpaired" not in compare(report, report, NAMES).method()


def test_details_are_corrected_for_among_themselves() -> None:
    bad, good = made_up_report.report(0.6), made_up_report.report(1.0)
    expected = compare(bad, good, NAMES).changes
    for report in (bad, good):
        report["per_episode"] |= {"fde_px": report["per_episode"]["ade_px"]}
        report["fde_px"] = report["ade_px"]
    found = compare(bad, good, NAMES)
    # As text, where NaN is NaN.
    assert str(found.changes) == str(expected)
    (change,) = [each for each in found.details if each.tested is not None]
    assert change.figure.key == "fde_px" and change.outcome == "better"
    assert change.p_value == change.tested.p_value if change.tested else False


def test_what_other_models_read_off_is_not_compared() -> None:
    def read_by(fingerprint: str, gain: float) -> dict[str, Any]:
        report = made_up_report.report()
        read = {"idm_gain_arm": gain, "idm_correlation": gain}
        return {
            **report,
            **read,
            "per_episode": {**report["per_episode"], **{name: [value] * 12 for name, value in read.items()}},
            "provenance": {**report["provenance"], "inverse_dynamics": {"fingerprint": fingerprint}},
        }

    same, other = (compare(read_by("one", 0.5), read_by(name, 0.9), NAMES) for name in ("one", "two"))
    assert {"gain arm", "actions read back"} <= set(same.titles("better")) and same.reads_alike
    assert {"gain arm", "actions read back"} <= set(other.titles("not tested")) and "gain x" in other.titles(
        "no more than noise"
    )
    assert "what different inverse-dynamics models read off is not compared" in other.method()


def test_many_figures_are_corrected_for() -> None:
    bad, good = made_up_report.report(0.6), made_up_report.report(1.0)
    found = compare(bad, good, NAMES)
    tested = [change for change in found.changes if change.tested is not None]
    for change in tested:
        assert change.tested is not None and change.p_value >= change.tested.p_value
    assert f"corrected for {len(tested)} tests (Holm)" in found.method()


def test_figures_in_which_no_episode_differs_are_not_corrected_for() -> None:
    first, second = made_up_report.report(), made_up_report.report()
    second["per_episode"] = {**first["per_episode"], "ade_px": [value + 1 for value in first["per_episode"]["ade_px"]]}
    found = compare(first, second, NAMES)
    by_key = {change.figure.key: change for change in found.changes}
    assert by_key["ade_px"].p_value == pytest.approx(2 / 2**12) and by_key["ade_px"].outcome == "worse"
    assert by_key["gain_x"].p_value == 1 and by_key["gain_x"].outcome == "no more than noise"
    assert "corrected for 1 tests" in found.method()


def test_reports_of_earlier_versions_have_nothing_to_test() -> None:
    old = {"gain_x": 0.9, "psnr_db": 25.0, "baselines": {}}
    found = compare(old, {**old, "gain_x": 1.0}, NAMES)
    assert [change.outcome for change in found.changes] == ["not tested", "not tested"]
    assert found.verdicts == ("no verdict", "no verdict")


def test_a_model_is_tested_against_each_baseline() -> None:
    report = made_up_report.report()
    found = paired_tests(report)
    assert found.keys() == {"gain_x", "psnr_db"}
    assert found["psnr_db"].keys() == {"copy_first_frame", "ignore_actions"}
    tested = found["gain_x"]["copy_first_frame"]
    # Distance from 1: of the model some hundredths, of the baseline 1.
    assert tested["difference"] == pytest.approx(-1, abs=0.05)
    assert tested["p_value"] == pytest.approx(2 / 2**12) and tested["episodes"] == 12
    undefined = [None, math.nan, *report["per_episode"]["gain_x"][2:]]
    report["per_episode"]["gain_x"] = undefined
    assert paired_tests(report)["gain_x"]["copy_first_frame"]["episodes"] == 10
    assert paired_tests({"gain_x": 1.0}) == {}
    assert all(FIGURES[key].better for key in found)
