"""Does it obey? The figures of a report in one word, with reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Label = Literal["obeys", "partly", "ignores", "cannot tell"]
_OTHER = {"x": "y", "y": "x"}


@dataclass(frozen=True)
class Thresholds:
    """What the figures of an obedient model are; the report holds them beside the verdict.

    Args:
        gain_low: Lowest gain of each axis.
        gain_high: Highest gain of each axis.
        gain_ignored: Gain, of either sign, below which an axis does not respond.
        gain_slow: Lowest gain in the slowest quartile.
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
        episodes: Smallest number of episodes that a verdict is given on.
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
    episodes: int = 8


@dataclass(frozen=True)
class Verdict:
    """A verdict, and why.

    Args:
        label: `obeys`; `partly`, which names what is wrong; `ignores`; or `cannot tell`.
        reasons: What was found, a sentence each.
    """

    label: Label
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.label}: {'; '.join(self.reasons)}"


def judge(figures: Mapping[str, Any], limits: Thresholds = Thresholds()) -> Verdict:
    """Judge the figures that a report has of a model.

    Where positions are known, they decide. Where they are not, losses and videos can only show that actions are
    ignored: that they matter does not say that the right thing happens.

    Args:
        figures: Figures by the names of the report.
        limits: What an obedient model reaches.
    """
    if "gain_x" not in figures:
        return _of_unknown_state(figures, limits)
    cannot = list(_what_cannot_be_told(figures, limits))
    if cannot:
        return Verdict("cannot tell", tuple(cannot))
    gains = {axis: figures[f"gain_{axis}"] for axis in "xy" if _is_number(figures[f"gain_{axis}"])}
    moves_across = any(abs(_number(figures, name)) > limits.cross_talk for name in _CROSS_TALK)
    if lag := _lag(figures, limits):
        return Verdict("partly", (f"motion comes {abs(lag):.0f} frames {'late' if lag > 0 else 'early'}",))
    if all(abs(gain) < limits.gain_ignored for gain in gains.values()) and not moves_across:
        told = ", ".join(f"gain {axis} {gain:.2f}" for axis, gain in gains.items())
        stands = tuple(_what_stands_still(figures, limits))
        win_rate = _win_rate(figures)
        if win_rate >= limits.win_rate:
            knows = f"losses are lower under the true actions in {win_rate:.0%}, but rollouts do not follow them"
            return Verdict("partly", (f"{knows} ({told})", *stands))
        told += f", win rate {win_rate:.2f}" if win_rate else ""
        return Verdict("ignores", (f"nothing moves as the actions say ({told})", *stands))
    # What else is wrong with an axis that does not follow, follows from that.
    faults = tuple(_faults(figures, gains, limits)) or tuple(_faults_of_videos(figures, limits))
    if faults:
        return Verdict("partly", faults)
    told = ", ".join(f"gain {axis} {gain:.2f}" for axis, gain in gains.items())
    return Verdict("obeys", (f"{told}, right direction in {figures['sign_accuracy']:.0%}, lag 0",))


def _lag(figures: Mapping[str, Any], limits: Thresholds) -> float:
    """Frames by which motion comes late; what it seems to do otherwise follows from that."""
    is_told = _number(figures, "lag_correlation") >= limits.lag_correlation
    return _number(figures, "lag_frames") if is_told else 0.0


_CROSS_TALK = ("cross_talk_x_to_y", "cross_talk_y_to_x")


def _what_cannot_be_told(figures: Mapping[str, Any], limits: Thresholds) -> Iterator[str]:
    if figures["episodes"] < limits.episodes:
        yield f"{figures['episodes']:.0f} episodes are fewer than {limits.episodes}"
    if not _is_number(figures["sign_accuracy"]):
        yield "nothing should move by more than a pixel"
    elif figures["missing_rate"] > limits.missing_rate:
        yield f"the object is not found in {figures['missing_rate']:.0%} of the frames"


def _faults(figures: Mapping[str, Any], gains: Mapping[str, float], limits: Thresholds) -> Iterator[str]:
    swapped = all(_number(figures, name) > 0.5 for name in _CROSS_TALK)
    if swapped and all(abs(gain) < 0.5 for gain in gains.values()):
        yield "x and y are swapped"
        return
    for axis, gain in gains.items():
        if abs(gain) < limits.gain_ignored:
            yield f"{axis} does not respond (gain {gain:.2f})"
        elif gain < 0:
            yield f"{axis} moves the wrong way (gain {gain:.2f})"
        elif not limits.gain_low <= gain <= limits.gain_high:
            yield f"{axis} moves too {'little' if gain < 1 else 'far'} (gain {gain:.2f})"
        leak = _number(figures, f"cross_talk_{axis}_to_{_OTHER[axis]}")
        if abs(leak) > limits.cross_talk:
            yield f"{axis} leaks into {_OTHER[axis]} ({leak:.2f} px for each)"
    yield from _faults_in_time_and_speed(figures, limits)


def _faults_in_time_and_speed(figures: Mapping[str, Any], limits: Thresholds) -> Iterator[str]:
    phases = [value for name, value in figures.items() if name.startswith("response_phase_")]
    if len(phases) > 1 and all(map(_is_number, phases)):
        *earlier, last = phases
        if last > 0.5 and all(abs(phase) < limits.gain_ignored for phase in earlier):
            yield f"only the last of {len(phases)} actions of a latent frame acts"
    slow, fast = _number(figures, "gain_speed_q1"), _number(figures, "gain_speed_q4")
    if 0 < slow < limits.gain_slow <= fast:
        yield f"slow actions ({figures['speed_q1_px']:.1f} px a latent frame) are followed less (gain {slow:.2f})"
    if figures["sign_accuracy"] < limits.sign_accuracy:
        yield f"the direction is right in {figures['sign_accuracy']:.0%} alone"


def _faults_of_videos(figures: Mapping[str, Any], limits: Thresholds) -> Iterator[str]:
    gains = {name.removeprefix("held_gain_"): value for name, value in figures.items() if name.startswith("held_gain_")}
    weak = [size for size, gain in gains.items() if _is_number(gain) and gain < limits.gain_slow]
    if weak:
        yield f"held actions of {', '.join(weak)} of the largest go too little (gain {gains[weak[0]]:.2f})"
    drift, fast = _number(figures, "held_drift_px"), _number(figures, "speed_q4_px")
    if drift > limits.drift * fast > 0:
        yield f"zero actions drift by {drift:.1f} px, where a fast latent frame is {fast:.1f} px"
    if (ratio := _number(figures, "counterfactual_ratio")) >= limits.counterfactual_ratio:
        yield f"what other actions change is no more right than in a copy of the first frame (ratio {ratio:.2f})"
    yield from _what_stands_still(figures, limits)


def _what_stands_still(figures: Mapping[str, Any], limits: Thresholds) -> Iterator[str]:
    if (rate := _number(figures, "static_rate")) > limits.static_rate:
        yield f"{rate:.0%} of the videos stand still"


def _win_rate(figures: Mapping[str, Any]) -> float:
    """Share of samples, of the whole frame or of the moving region, whichever tells actions apart more."""
    rates = [_number(figures, name) for name in ("swapped_win_rate", "swapped_win_rate_moving")]
    return max((rate for rate in rates if rate), key=lambda rate: abs(rate - 0.5), default=0.0)


def _of_unknown_state(figures: Mapping[str, Any], limits: Thresholds) -> Verdict:
    win_rate, delta = _win_rate(figures), _number(figures, "delta_psnr_all_frames_db")
    is_compared = _is_number(figures.get("delta_psnr_all_frames_db"))
    losses = [f"win rate {win_rate:.2f}"] if win_rate else []
    videos = [f"PSNR {delta:+.2f} dB against other actions"] if is_compared else []
    told = ", ".join([*losses, *videos])
    stands = tuple(_what_stands_still(figures, limits))
    if not told:
        nothing = "nobody knows where things are in this data, and nothing was made under other actions"
        return Verdict("cannot tell", (nothing, *stands))
    if not (losses and abs(win_rate - 0.5) >= limits.win_rate - 0.5) and abs(delta) < 0.05:
        blind = "neither losses nor videos depend" if losses else "the videos do not depend"
        return Verdict("ignores", (f"{blind} on the actions ({told})", *stands))
    return Verdict("cannot tell", (f"nobody knows where things are in this data ({told})", *stands))


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _number(figures: Mapping[str, Any], name: str) -> float:
    """A figure, 0 where it is undefined."""
    value = figures.get(name)
    return float(value) if value is not None and _is_number(value) else 0.0
