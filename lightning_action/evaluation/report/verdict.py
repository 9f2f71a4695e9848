"""Verdict on obedience: the figures of a report in one word, with reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

from lightning_action.evaluation.report.figures import is_number

Label = Literal["obeys", "partly", "ignores", "cannot tell"]
Figures = Mapping[str, Any]
_OTHER = {"x": "y", "y": "x"}


@dataclass(frozen=True)
class Thresholds:
    """Figures that an obedient model reaches; the report holds them beside the verdict.

    Their values are this project's own.

    Args:
        gain_low: Lowest gain of each axis.
        gain_high: Highest gain of each axis.
        gain_ignored: Gain, of either sign, below which an axis does not respond.
        gain_slow: Lowest gain in the slowest quartile, and of each held action.
        sign_accuracy: Lowest share of displacements in the right direction.
        lag_correlation: Lowest correlation with the true motion at which a lag means something.
        cross_talk: Largest motion along one axis for each pixel that was commanded along the other.
        win_rate: Lowest share of samples that the model predicts better under their own actions, in the whole frame or
            where something moves.
        counterfactual_ratio: Largest wrong part of what other actions change; a copy of the first frame has 1.
        drift: Largest drift under zero actions that are held over the video, as a share of what the fastest quartile
            moves over one latent frame.
        static_rate: Largest share of videos that stand still although the true ones move.
        missing_rate: Largest share of frames in which the object is not found.
        no_difference: Largest mean difference of pixels, in [0, 1], between videos under different actions that counts
            as none: half a step of 8 bits, where the true video moves.
        episodes: Smallest number of episodes that a verdict is given on.
        read_correlation: Lowest correlation of a column of actions that is read off real videos with what was given;
            below it nothing is known of that column.
        read_ignored: Gain, of either sign, below which a column that is read off videos does not respond: chance alone
            makes 0.1 of a dozen videos.
        read_gain_low: Lowest gain of a column that is read off videos. What is read shrinks where videos are less sharp
            than the real ones.
        read_gain_high: Highest gain of such a column.
        read_share: Lowest share of that correlation that generated videos reach.
        read_cross_talk: Largest part of a column that is read off generated videos where another was given.
        flow_cosine: Lowest cosine between generated and true flow at which its gain, with the limits of what is read,
            tells how far things move: below, other things are where the true ones move.
    """

    gain_low: float = 0.8
    gain_high: float = 1.25
    gain_ignored: float = 0.2
    gain_slow: float = 0.6
    sign_accuracy: float = 0.9
    lag_correlation: float = 0.5
    cross_talk: float = 0.1
    win_rate: float = 0.6
    counterfactual_ratio: float = 1.0
    drift: float = 0.25
    static_rate: float = 0.05
    missing_rate: float = 0.5
    no_difference: float = 0.002
    episodes: int = 8
    read_correlation: float = 0.5
    read_ignored: float = 0.3
    read_gain_low: float = 0.7
    read_gain_high: float = 1.4
    read_share: float = 0.7
    read_cross_talk: float = 0.3
    flow_cosine: float = 0.9


@dataclass(frozen=True)
class Verdict:
    """A verdict, and why.

    Args:
        label: `obeys`; `partly`, which names what is wrong; `ignores`; or `cannot tell`.
        reasons: Findings, a sentence each.
    """

    label: Label
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.label}: {'; '.join(self.reasons)}"


def judge(figures: Figures, limits: Thresholds = Thresholds()) -> Verdict:
    """Judge the figures that a report has of a model.

    Where positions are known, they decide. Where they are not, actions that are read off the videos do, if the same
    model reads them off real videos. Without one, losses and videos can only show that actions are ignored: that they
    matter does not say that the right thing happens.

    A response whose interval holds none is none, and where an interval holds both none and a full one, nothing is told.

    Args:
        figures: Figures by the names of the report, and their `intervals`; one without an interval counts as it is.
        limits: Figures that an obedient model reaches.
    """
    if "gain_x" not in figures:
        reads = "idm_correlation_real" in figures
        return _of_read_actions(figures, limits) if reads else _of_unknown_state(figures, limits)
    cannot = list(_what_cannot_be_told(figures, limits))
    if cannot:
        return Verdict("cannot tell", tuple(cannot))
    gains = {axis: figures[f"gain_{axis}"] for axis in "xy" if is_number(figures[f"gain_{axis}"])}
    told = ", ".join(f"gain {axis} {gain:.2f}" for axis, gain in gains.items())
    moves_across = any(_acts(figures, name, limits.gain_ignored) for name in _CROSS_TALK)
    if lag := _lag(figures, limits, ""):
        return Verdict("partly", (lag,))
    if unclear := _unclear(figures, {axis: f"gain_{axis}" for axis in gains}, limits.gain_low):
        return Verdict("cannot tell", unclear)
    if not moves_across and not any(_acts(figures, f"gain_{axis}", limits.gain_ignored) for axis in gains):
        return _without_response(figures, limits, "nothing moves as the actions say", told)
    if _is_same(figures, limits):
        return Verdict("ignores", (f"videos go on as recorded ({told}), and are the same under other actions",))
    # What else is wrong with an axis that does not follow, follows from that.
    faults = tuple(_faults(figures, gains, limits)) or tuple(_faults_of_videos(figures, limits))
    if faults:
        return Verdict("partly", faults)
    return Verdict("obeys", (f"{told}, right direction in {figures['sign_accuracy']:.0%}, lag 0",))


def _lag(figures: Figures, limits: Thresholds, prefix: str) -> str:
    """Say how late motion comes, if it does; what it seems to do otherwise follows from that."""
    lag = _number(figures, f"{prefix}lag_frames")
    if (
        _may_be(figures, f"{prefix}lag_frames", 0)
        or _number(figures, f"{prefix}lag_correlation") < limits.lag_correlation
    ):
        return ""
    return f"motion comes {abs(lag):.0f} frames {'late' if lag > 0 else 'early'}"


def _without_response(
    figures: Figures, limits: Thresholds, what: str, told: str, remarks: tuple[str, ...] = ()
) -> Verdict:
    """Judge videos that do not answer to the actions: losses may still know them."""
    stands, (win_rate, is_more) = tuple(_what_stands_still(figures, limits)), _win_rate(figures)
    if is_more and win_rate >= limits.win_rate:
        knows = f"losses are lower under the true actions in {win_rate:.0%}, but rollouts do not follow them"
        return Verdict("partly", (f"{knows} ({told})", *stands, *remarks))
    told += f", win rate {win_rate:.2f}" if is_number(win_rate) else ""
    return Verdict("ignores", (f"{what} ({told})", *stands, *remarks))


def _may_be(figures: Figures, name: str, value: float) -> bool:
    """Tell whether a figure is a value, as far as chance allows to say."""
    low, high = _interval(figures, name)
    return low <= value <= high


def _acts(figures: Figures, name: str, none: float) -> bool:
    """Tell whether a response is larger than one that counts as none, and more than chance."""
    return abs(_number(figures, name)) >= none and not _may_be(figures, name, 0)


def _unclear(figures: Figures, names: Mapping[str, str], full: float) -> tuple[str, ...]:
    """Say of which responses chance alone may make none or a full one."""
    found = {told: _interval(figures, name) for told, name in names.items()}
    return tuple(
        f"{told} is not told by these episodes: gain {_number(figures, names[told]):.2f}, {low:.2f} to {high:.2f}"
        for told, (low, high) in found.items()
        if low <= 0 <= high and max(-low, high) >= full
    )


def _interval(figures: Figures, name: str) -> tuple[float, float]:
    """Interval of a figure; where there is none, the figure itself."""
    value, bounds = _number(figures, name), (figures.get("intervals") or {}).get(name)
    if bounds is None or not all(map(is_number, bounds)):
        return value, value
    low, high = bounds
    return low, high


_CROSS_TALK = ("cross_talk_x_to_y", "cross_talk_y_to_x")


def _what_cannot_be_told(figures: Figures, limits: Thresholds) -> Iterator[str]:
    if few := _few(figures, limits):
        yield few
    if not is_number(figures["sign_accuracy"]):
        yield "nothing should move by more than a pixel"
    elif not any(is_number(figures[f"gain_{axis}"]) for axis in "xy"):
        yield "all should move alike at all times, so that nothing tells following from drifting"
    elif figures["missing_rate"] > limits.missing_rate:
        yield f"the object is not found in {figures['missing_rate']:.0%} of the frames"


def _few(figures: Figures, limits: Thresholds) -> str:
    episodes = figures["episodes"]
    return f"{episodes:.0f} episodes are fewer than {limits.episodes}" if episodes < limits.episodes else ""


def _faults(figures: Figures, gains: Mapping[str, float], limits: Thresholds) -> Iterator[str]:
    swapped = all(_number(figures, name) > 0.5 for name in _CROSS_TALK)
    if swapped and all(abs(gain) < 0.5 for gain in gains.values()):
        yield "x and y are swapped"
        return
    for axis, gain in gains.items():
        if not _acts(figures, f"gain_{axis}", limits.gain_ignored):
            yield f"{axis} does not respond (gain {gain:.2f})"
        elif gain < 0:
            yield f"{axis} moves the wrong way (gain {gain:.2f})"
        elif not limits.gain_low <= gain <= limits.gain_high:
            yield f"{axis} moves too {'little' if gain < 1 else 'far'} (gain {gain:.2f})"
        leak = f"cross_talk_{axis}_to_{_OTHER[axis]}"
        if _acts(figures, leak, limits.cross_talk):
            yield f"{axis} leaks into {_OTHER[axis]} ({figures[leak]:.2f} px for each)"
    yield from _faults_in_time_and_speed(figures, limits)


def _faults_in_time_and_speed(figures: Figures, limits: Thresholds) -> Iterator[str]:
    phases = [value for name, value in figures.items() if name.startswith("response_phase_")]
    if len(phases) > 1 and all(map(is_number, phases)):
        *earlier, last = phases
        if last > 0.5 and all(abs(phase) < limits.gain_ignored for phase in earlier):
            yield f"only the last of {len(phases)} actions of a latent frame acts"
    slow, fast = _number(figures, "gain_speed_q1"), _number(figures, "gain_speed_q4")
    if 0 < slow < limits.gain_slow <= fast:
        yield f"slow actions ({figures['speed_q1_px']:.1f} px a latent frame) are followed less (gain {slow:.2f})"
    if figures["sign_accuracy"] < limits.sign_accuracy:
        yield f"the direction is right in {figures['sign_accuracy']:.0%} alone"


def _faults_of_videos(figures: Figures, limits: Thresholds) -> Iterator[str]:
    gains = {name.removeprefix("held_gain_"): value for name, value in figures.items() if name.startswith("held_gain_")}
    weak = [size for size, gain in gains.items() if is_number(gain) and gain < limits.gain_slow]
    if weak:
        yield f"held actions of {', '.join(weak)} of the largest go too little (gain {gains[weak[0]]:.2f})"
    drift, fast = _number(figures, "held_drift_px"), _number(figures, "speed_q4_px")
    if drift > limits.drift * fast > 0:
        yield f"zero actions drift by {drift:.1f} px, where a fast latent frame is {fast:.1f} px"
    if (ratio := _number(figures, "counterfactual_ratio")) >= limits.counterfactual_ratio:
        yield f"what other actions change is no more right than in a copy of the first frame (ratio {ratio:.2f})"
    yield from _what_stands_still(figures, limits)


def _what_stands_still(figures: Figures, limits: Thresholds) -> Iterator[str]:
    if (rate := _number(figures, "static_rate")) > limits.static_rate:
        yield f"{rate:.0%} of the videos stand still"


def _win_rate(figures: Figures) -> tuple[float, bool]:
    """Share of samples, of the whole frame or of the moving region, whichever tells actions apart more; NaN if unknown.

    And whether it tells them apart by more than chance.
    """
    names = [name for name in ("swapped_win_rate", "swapped_win_rate_moving") if is_number(figures.get(name))]
    if not names:
        return math.nan, False
    name = max(names, key=lambda each: abs(figures[each] - 0.5))
    return figures[name], not _may_be(figures, name, 0.5)


def _of_read_actions(figures: Figures, limits: Thresholds) -> Verdict:
    """Judge by actions that were read off the videos."""
    real = _by_column(figures, "idm_correlation_real_")
    if few := _few(figures, limits):
        return Verdict("cannot tell", (few,))
    readable = [
        column
        for column, value in real.items()
        if value >= limits.read_correlation and not _may_be(figures, f"idm_correlation_real_{column}", 0)
    ]
    still = [column for column in real if not is_number(figures[f"idm_correlation_real_{column}"])]
    if len(still) == len(real):
        return Verdict("cannot tell", ("the actions never change in these episodes",))
    if not readable:
        best = max(real.values(), default=0.0)
        why = f"the inverse-dynamics model does not read the actions off real videos either (correlation {best:.2f} at"
        return Verdict("cannot tell", (f"{why} best, below {limits.read_correlation:g}): train it longer, or on more",))
    unread = [column for column in real if column not in (*readable, *still)]
    remarks = (
        *([f"nothing is known of {', '.join(unread)}: not read off real videos either"] if unread else []),
        *([f"nothing is known of {', '.join(still)}: it never changes in these episodes"] if still else []),
    )
    if lag := _lag(figures, limits, "idm_"):
        return Verdict("partly", (lag, *remarks))
    gains = {column: figures[f"idm_gain_{column}"] for column in readable}
    told = ", ".join(f"gain {column} {gain:.2f}" for column, gain in gains.items())
    faults = list(_faults_of_reading(figures, gains, limits))
    names = {column: f"idm_gain_other_{column}" for column in readable}
    others = {column: figures[name] for column, name in names.items() if is_number(figures.get(name))}
    # Both are taken together where they should be 0: of few episodes, one alone is far from it by chance.
    answers = [(gain + others.get(column, gain)) / 2 for column, gain in gains.items()]
    crossed = _crossed(figures, limits)
    if unclear := _unclear(figures, {column: f"idm_gain_{column}" for column in readable}, limits.read_gain_low):
        return Verdict("cannot tell", (*unclear, *remarks))
    if all(abs(gain) < limits.read_ignored for gain in answers) and not crossed:
        return _without_response(figures, limits, "what is read off the videos is not what was given", told, remarks)
    if others and all(abs(gain) < limits.read_ignored for gain in others.values()) and not crossed:
        why = f"videos go on as recorded ({told}), whatever actions are given: under another sample's, "
        return Verdict("ignores", (why + ", ".join(f"gain {c} {gain:.2f}" for c, gain in others.items()), *remarks))
    if faults or (faults := list(_what_stands_still(figures, limits))):
        return Verdict("partly", (*faults, *remarks))
    return Verdict("obeys", (f"{told}, as read off the videos, lag 0", *remarks))


def _by_column(figures: Figures, prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): _number(figures, name) for name in figures if name.startswith(prefix)}


def _crossed(figures: Figures, limits: Thresholds) -> dict[tuple[str, str], float]:
    """Columns that are read where others were given, as pairs (given, read)."""
    columns = _by_column(figures, "idm_correlation_real_")
    names = {pair: "idm_cross_talk_{}_to_{}".format(*pair) for pair in permutations(columns, 2)}
    certain = {pair: _number(figures, name) for pair, name in names.items() if not _may_be(figures, name, 0)}
    return {pair: value for pair, value in certain.items() if abs(value) > limits.read_cross_talk}


def _faults_of_reading(figures: Figures, gains: Mapping[str, float], limits: Thresholds) -> Iterator[str]:
    crossed = {pair: value for pair, value in _crossed(figures, limits).items() if pair[1] in gains}
    swapped = {pair for pair, value in crossed.items() if value > 0.5 and crossed.get(pair[::-1], 0) > 0.5}
    yield from (f"{given} and {read} are swapped" for given, read in swapped if given < read)
    for column, gain in gains.items():
        if any(column in pair for pair in swapped):
            continue
        share = figures[f"idm_correlation_{column}"] / figures[f"idm_correlation_real_{column}"]
        if abs(gain) < limits.read_ignored:
            yield f"{column} does not respond (gain {gain:.2f})"
        elif gain < 0:
            yield f"{column} goes the wrong way (gain {gain:.2f})"
        elif not limits.read_gain_low <= gain <= limits.read_gain_high:
            yield f"{column} responds too {'little' if gain < 1 else 'much'} (gain {gain:.2f})"
        elif share < limits.read_share:
            yield f"{column} is followed loosely ({share:.0%} of the correlation on real videos)"
    # What is read saturates: half the motion may be read as three quarters.
    flow = _number(figures, "flow_gain")
    if (
        _number(figures, "flow_cosine") >= limits.flow_cosine
        and not limits.read_gain_low <= flow <= limits.read_gain_high
    ):
        yield f"things move too {'little' if flow < 1 else 'far'} (flow gain {flow:.2f})"
    for (given, read), value in crossed.items():
        if (given, read) not in swapped:
            yield f"{given} leaks into {read} ({value:.2f})"


def _of_unknown_state(figures: Figures, limits: Thresholds) -> Verdict:
    (win_rate, is_more), delta = _win_rate(figures), _number(figures, "delta_psnr_all_frames_db")
    is_compared = is_number(figures.get("delta_psnr_all_frames_db"))
    losses = [f"win rate {win_rate:.2f}"] if is_number(win_rate) else []
    videos = [f"PSNR {delta:+.2f} dB against other actions"] if is_compared else []
    told = ", ".join([*losses, *videos])
    stands = tuple(_what_stands_still(figures, limits))
    few = _few(figures, limits)
    if not told or few:
        nothing = "nobody knows where things are in this data, and nothing was made under other actions"
        return Verdict("cannot tell", (few or nothing, *stands))
    matters = is_more and abs(win_rate - 0.5) >= limits.win_rate - 0.5
    if _is_same(figures, limits) and not matters:
        blind = "neither losses nor videos depend" if losses else "the videos do not depend"
        return Verdict("ignores", (f"{blind} on the actions ({told})", *stands))
    return Verdict("cannot tell", (f"nobody knows where things are in this data ({told})", *stands))


def _is_same(figures: Figures, limits: Thresholds) -> bool:
    """Tell whether videos are the same under other actions: where something moves, for what moves may be small."""
    names = ("generated_difference_moving", "generated_difference")
    told = [figures[name] for name in names if is_number(figures.get(name))]
    return bool(told) and told[0] <= limits.no_difference


def _number(figures: Figures, name: str) -> float:
    """A figure, 0 where it is undefined."""
    value = figures.get(name)
    return float(value) if value is not None and is_number(value) else 0.0
