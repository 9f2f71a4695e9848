"""Two models beside each other, episode by episode: which figures differ by more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_action.evaluation.figures import FIGURES, Figure, is_number
from lightning_action.evaluation.paired import MeanDifference, holm, paired_test, unpaired_test

Report = Mapping[str, Any]
Outcome = Literal["better", "worse", "no more than noise", "not tested"]
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Change:
    """What becomes of a figure from a first report to a second one.

    Args:
        figure: Figure in question.
        first: Value of the first report, over all its episodes.
        second: Value of the second one.
        tested: Mean difference over episodes, second - first; of distances from the ideal where nearer is better. None
            where nothing can be tested.
        p_value: The p-value of that, corrected for the number of figures (`holm`).
        outcome: What the second one is.
    """

    figure: Figure
    first: float | None
    second: float | None
    tested: MeanDifference | None
    p_value: float
    outcome: Outcome


@dataclass(frozen=True)
class Comparison:
    """Two reports beside each other.

    Args:
        names: Names of the reports.
        verdicts: Label of the verdict of each.
        is_paired: Whether both have the same episodes.
        changes: Figures that both have.
    """

    names: tuple[str, str]
    verdicts: tuple[str, str]
    is_paired: bool
    changes: tuple[Change, ...]

    def titles(self, outcome: Outcome) -> list[str]:
        """Name the figures of one outcome."""
        return [change.figure.title for change in self.changes if change.outcome == outcome]

    def method(self) -> str:
        """Say how it was tested."""
        how = (
            "Paired over the same episodes: sign-flip permutation"
            if self.is_paired
            else "Unpaired, for the episodes are not the same: permutation of who belongs to whom"
        )
        tests = sum(change.tested is not None and _differs(change.tested) for change in self.changes)
        return (
            f"{how}; intervals are 95 % of a bootstrap over episodes; p-values are corrected for {tests} tests (Holm), "
            f"and below {SIGNIFICANT} is more than noise"
        )

    def summary(self) -> str:
        """Say in a line which figures got better, and which worse."""
        better, worse = (", ".join(self.titles(outcome)) or "nothing" for outcome in ("better", "worse"))
        noise, unknown = (len(self.titles(outcome)) for outcome in ("no more than noise", "not tested"))
        return (
            f"{self.names[1]} is better in {better}, and worse in {worse}; {noise} others differ by no more than "
            f"noise, and {unknown} could not be tested"
        )


def compare(first: Report, second: Report, names: tuple[str, str]) -> Comparison:
    """Compare two reports figure by figure.

    Where both name the same episodes in `sample_ids`, of data with the same fingerprint as far as they say, each
    episode is compared with itself. Figures are those that both have, that have a direction, and that break no other
    figure down.
    """
    is_paired = _same_episodes(first, second)
    order = _order(first["sample_ids"], second["sample_ids"]) if is_paired else None
    figures = [
        figure
        for key, figure in FIGURES.items()
        if figure.better and not figure.detail and key in first and key in second
    ]
    tested = [_tested(figure, _episodes(first), _episodes(second), is_paired, order) for figure in figures]
    corrected = holm([each.p_value if each and _differs(each) else math.nan for each in tested])
    changes = [
        Change(
            figure,
            first[figure.key],
            second[figure.key],
            each,
            p if each is None or _differs(each) else 1.0,
            "not tested" if each is None else outcome_of(figure, each.difference, p),
        )
        for figure, each, p in zip(figures, tested, corrected, strict=True)
    ]
    verdicts = tuple((report.get("verdict") or {}).get("label", "no verdict") for report in (first, second))
    return Comparison(names, (verdicts[0], verdicts[1]), is_paired, tuple(changes))


def paired_tests(report: Report) -> dict[str, dict[str, Any]]:
    """Test the figures of the model against those of each baseline, over the episodes that both have.

    Returns:
        By figure and baseline: `difference` (model - baseline; of distances from the ideal where nearer is better),
        `interval`, `p_value`, `episodes`.
    """
    own, found = _episodes(report), {}
    for key, figure in FIGURES.items():
        if figure.better is None or figure.detail or key not in own:
            continue
        of_baselines = {
            name: _tested(figure, episodes, own, True, None)
            for name, episodes in report.get("baselines_per_episode", {}).items()
            if len(episodes.get(key, ())) == len(own[key])
        }
        told = {
            name: {
                "difference": tested.difference,
                "interval": list(tested.interval),
                "p_value": tested.p_value,
                "episodes": tested.episodes,
            }
            for name, tested in of_baselines.items()
            if tested is not None
        }
        if told:
            found[key] = told
    return found


def _episodes(report: Report) -> Mapping[str, Sequence[float | None]]:
    episodes: Mapping[str, Sequence[float | None]] = report.get("per_episode") or {}
    return episodes


def _same_episodes(first: Report, second: Report) -> bool:
    ids = [sorted(map(str, report.get("sample_ids") or ())) for report in (first, second)]
    data = [((report.get("provenance") or {}).get("data") or {}).get("fingerprint") for report in (first, second)]
    return bool(ids[0]) and ids[0] == ids[1] and (None in data or data[0] == data[1])


def _order(first: Sequence[Any], second: Sequence[Any]) -> list[int]:
    """Places in the second report of the episodes of the first."""
    places = {str(each): place for place, each in enumerate(second)}
    return [places[str(each)] for each in first]


def _tested(
    figure: Figure,
    first: Mapping[str, Sequence[float | None]],
    second: Mapping[str, Sequence[float | None]],
    is_paired: bool,
    order: Sequence[int] | None,
) -> MeanDifference | None:
    if figure.key not in first or figure.key not in second:
        return None
    one, other = (_distances(figure, each[figure.key]) for each in (first, second))
    if not is_paired:
        return unpaired_test(one, other)
    if len({len(one), len(other), len(one if order is None else order)}) > 1:
        return None  # of some of the episodes alone
    return paired_test(one, other if order is None else [other[place] for place in order])


def _distances(figure: Figure, values: Sequence[float | None]) -> list[float]:
    """Values of the episodes; their distance from the ideal where nearer is better, NaN where undefined."""
    numbers = [float(value) if value is not None and is_number(value) else math.nan for value in values]
    if figure.better != "nearer" or figure.ideal is None:
        return numbers
    return [abs(number - figure.ideal) for number in numbers]


def _differs(tested: MeanDifference) -> bool:
    """Whether any episode differs: a test that cannot come out need not be corrected for (Tarone 1990)."""
    return tested.interval != (0.0, 0.0)


def outcome_of(figure: Figure, difference: float, p_value: float) -> Outcome:
    """Say what a difference means: of distances from the ideal where nearer is better."""
    if not p_value < SIGNIFICANT:
        return "no more than noise"
    return "better" if (difference > 0) == (figure.better == "higher") else "worse"
