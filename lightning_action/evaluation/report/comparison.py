"""Two models beside each other, episode by episode: which figures differ by more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lightning_action.evaluation.metrics.paired import MeanDifference, holm, paired_test, unpaired_test
from lightning_action.evaluation.report.figures import Figure, figures_of, is_number
from lightning_action.evaluation.report.provenance import told_fingerprint

Report = Mapping[str, Any]
Outcome = Literal["better", "worse", "no more than noise", "not tested"]
SIGNIFICANT = 0.05
# How the names of figures begin that an inverse-dynamics model tells.
READ = "idm_"


@dataclass(frozen=True)
class Change:
    """Change of a figure from a first report to a second one.

    Args:
        figure: Figure in question.
        first: Value of the first report, over all its episodes.
        second: Value of the second one.
        tested: Mean difference over episodes, second - first; of distances from the ideal where nearer is better. None
            where nothing can be tested.
        p_value: The p-value of that, corrected for the number of figures of its family (`holm`).
        outcome: Judgement of the second one.
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
        is_paired: True if both have the same episodes.
        changes: Figures that both have.
        details: Figures that break others down, and are corrected for among themselves.
        reads_alike: True if the same inverse-dynamics model has read the actions of both, as far as they say.
    """

    names: tuple[str, str]
    verdicts: tuple[str, str]
    is_paired: bool
    changes: tuple[Change, ...]
    details: tuple[Change, ...]
    reads_alike: bool

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
        alone = [
            change.figure.title
            for change in (*self.changes, *self.details)
            if self.is_paired and change.tested and not change.tested.is_paired
        ]
        remarks = [
            *([f"unpaired: {', '.join(alone)}, measured of other episodes"] if alone else []),
            *([] if self.reads_alike else ["what different inverse-dynamics models read off is not compared"]),
        ]
        told = (
            f"{how}; n is the number of episodes; intervals are 95 % of a bootstrap over them; p-values are corrected "
            f"for {tests} tests (Holm), and below {SIGNIFICANT} is more than noise"
        )
        return "; ".join([told, *remarks])

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
    episode is compared with itself; a figure that was measured of none of the same ones is compared between groups.
    Figures are those that both have, and that have a direction.
    """
    is_paired = _same_episodes(first, second)
    shared = [figure for key, figure in figures_of(first).items() if figure.better and key in second]
    families = [[figure for figure in shared if figure.detail == detail] for detail in (False, True)]
    changes, details = (tuple(_changes(figures, first, second, is_paired)) for figures in families)
    verdicts = tuple((report.get("verdict") or {}).get("label", "no verdict") for report in (first, second))
    reads_alike = _same_origin("inverse_dynamics", first, second)
    return Comparison(names, (verdicts[0], verdicts[1]), is_paired, changes, details, reads_alike)


def _changes(figures: Sequence[Figure], first: Report, second: Report, is_paired: bool) -> list[Change]:
    """Test figures that are corrected for together."""
    order = _order(first["sample_ids"], second["sample_ids"]) if is_paired else None
    reads_alike = _same_origin("inverse_dynamics", first, second)
    tested = [
        _tested(figure, _episodes(first), _episodes(second), is_paired, order)
        if reads_alike or not figure.key.startswith(READ)
        else None
        for figure in figures
    ]
    corrected = holm([each.p_value if each and _differs(each) else math.nan for each in tested])
    return [
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


def paired_tests(report: Report) -> dict[str, dict[str, Any]]:
    """Test the figures of the model against those of each baseline, over the episodes that both have.

    Returns:
        Entries by figure and baseline: `difference` (model - baseline; of distances from the ideal where nearer is
        better), `interval`, `p_value`, `episodes`.
    """
    own = _episodes(report)
    found: dict[str, dict[str, Any]] = {}
    for key, figure in figures_of(own).items():
        if figure.better is None or figure.detail:
            continue
        for name, episodes in report.get("baselines_per_episode", {}).items():
            if tested := _tested(figure, episodes, own, True, None):
                told = asdict(tested)
                del told["is_paired"]
                found.setdefault(key, {})[name] = told
    return found


def _episodes(report: Report) -> Mapping[str, Sequence[float | None]]:
    return report.get("per_episode") or {}


def _same_episodes(first: Report, second: Report) -> bool:
    ids = [sorted(map(str, report.get("sample_ids") or ())) for report in (first, second)]
    return bool(ids[0]) and ids[0] == ids[1] and _same_origin("data", first, second)


def _same_origin(part: str, first: Report, second: Report) -> bool:
    """Tell whether a part of both provenances has one fingerprint, as far as they say."""
    prints = [told_fingerprint(report, part) for report in (first, second)]
    return None in prints or prints[0] == prints[1]


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
    return paired_test(one, other if order is None else [other[place] for place in order]) or unpaired_test(one, other)


def _distances(figure: Figure, values: Sequence[float | None]) -> list[float]:
    """Values of the episodes; their distance from the ideal where nearer is better, NaN where undefined."""
    numbers = [float(value) if value is not None and is_number(value) else math.nan for value in values]
    if figure.better != "nearer" or figure.ideal is None:
        return numbers
    return [abs(number - figure.ideal) for number in numbers]


def _differs(tested: MeanDifference) -> bool:
    """Tell whether any episode differs: a test that cannot come out need not be corrected for (Tarone 1990)."""
    return tested.interval != (0.0, 0.0)


def outcome_of(figure: Figure, difference: float, p_value: float) -> Outcome:
    """Say what a difference means: of distances from the ideal where nearer is better."""
    if not p_value < SIGNIFICANT:
        return "no more than noise"
    return "better" if (difference > 0) == (figure.better == "higher") else "worse"
