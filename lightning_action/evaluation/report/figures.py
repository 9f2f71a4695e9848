"""The figures of a report: what each is called, what is ideal, what chance gives, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_action.evaluation.metrics.loss_gap import LEVELS

Better = Literal["higher", "lower", "nearer"]

FOLLOWING = "Does it go where the actions say?"
DIFFERENCE = "Do the actions make a difference?"
QUALITY = "Is the video good?"
GROUPS = (FOLLOWING, DIFFERENCE, QUALITY)
OTHER_ACTIONS_TOLD = {"swapped": "another sample's actions", "shuffled": "shuffled actions", "null": "no action"}


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Args:
        key: Name in `report.json`.
        title: Name for people.
        group: Question that it answers, one of `GROUPS`.
        better: Direction that is better: `higher`, `lower`, or `nearer` to the ideal; None where neither is.
        ideal: Value of a perfect model, if there is one.
        chance: Value of a model that guesses, or is blind to its actions, if it is known beforehand.
        unit: Unit, such as px or dB.
        says: Sentence about it, in plain words.
        printed: True if the table that `test` prints has it.
        detail: True if it breaks another figure down, so that it is shown folded and not tested.
    """

    key: str
    title: str
    group: str
    better: Better | None = None
    ideal: float | None = None
    chance: float | None = None
    unit: str = ""
    says: str = ""
    printed: bool = False
    detail: bool = False

    @property
    def name(self) -> str:
        """Title with the unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def heading(self) -> str:
        """Name with what chance gives, or else with what is ideal."""
        if self.chance is not None:
            return f"{self.name} (chance {self.chance:g})"
        return self.name if self.ideal is None else f"{self.name} (ideal {self.ideal:g})"


def _following() -> Iterator[Figure]:
    says = "Share of motions, larger than a pixel, in the right direction."
    yield Figure("sign_accuracy", "sign accuracy", FOLLOWING, "higher", 1, 0.5, says=says, printed=True)
    says = "Share of the commanded motion that happens: 0.5 is half of it, below 0 the wrong way."
    for axis in "xy":
        yield Figure(f"gain_{axis}", f"gain {axis}", FOLLOWING, "nearer", 1, says=says, printed=True)
    says = "Part of the motion that the commands explain."
    for axis in "xy":
        yield Figure(f"r2_{axis}", f"R2 {axis}", FOLLOWING, "higher", 1, says=says, printed=True)
    says = "Frames by which motion comes late."
    yield Figure("lag_frames", "lag in pixel frames", FOLLOWING, "nearer", 0, says=says, printed=True)
    for axis, other in ("xy", "yx"):
        says = f"Pixels along {other} for each that was commanded along {axis}."
        yield Figure(f"cross_talk_{axis}_to_{other}", f"leak of {axis} into {other}", FOLLOWING, "nearer", 0, says=says)
    says = "Mean distance from where the object should be."
    yield Figure("ade_px", "position error", FOLLOWING, "lower", unit="px", says=says, printed=True)
    says = "Share of frames in which the object is not found."
    yield Figure("missing_rate", "object missing", FOLLOWING, "lower", 0, says=says, printed=True)
    for size in ("0.04", "0.08", "0.15"):
        says = f"Gain of an action that never changes, {size} of the largest."
        yield Figure(f"held_gain_{size}", f"held gain at {size}", FOLLOWING, "nearer", 1, says=says, printed=True)
    says = "Distance from where it should stand at the end, under zero actions."
    yield Figure("held_drift_px", "drift held still", FOLLOWING, "lower", 0, unit="px", says=says, printed=True)
    says = "From one episode's start under another's actions: share that moves as the other one did."
    yield Figure("cross_swap_accuracy", "follows the actions' owner", FOLLOWING, "higher", 1, 0.5, says=says)
    says = "Correlation of actions that an inverse-dynamics model reads off the video with those that were given."
    yield Figure("idm_correlation", "actions read back", FOLLOWING, "higher", chance=0, says=says, printed=True)
    says = "The same on real frames, which is the ceiling."
    yield Figure("idm_correlation_real", "read off real frames", FOLLOWING, chance=0, says=says, printed=True)
    says = "Accuracy of an inverse-dynamics model, between chance (0) and what it gets on real frames (1)."
    yield Figure("idm_normalised", "actions read off the video", FOLLOWING, "higher", 1, 0, says=says)
    says = "Frames by which motion comes late, as read off the video."
    yield Figure("idm_lag_frames", "lag read back, frames", FOLLOWING, "nearer", 0, says=says, printed=True)


def _following_in_detail() -> Iterator[Figure]:
    yield Figure("fde_px", "final position error", FOLLOWING, "lower", unit="px", detail=True)
    for axis in "xy":
        says = "R2 where a wrong gain counts too."
        yield Figure(f"identity_r2_{axis}", f"R2 {axis} without a line", FOLLOWING, "higher", 1, says=says, detail=True)
    for axis in "xy":
        yield Figure(f"sign_accuracy_{axis}", f"sign accuracy {axis}", FOLLOWING, "higher", 1, 0.5, detail=True)
    yield Figure("lag_correlation", "correlation at that lag", FOLLOWING, "higher", 1, detail=True)
    for quartile in range(1, 5):
        name = f"speed_q{quartile}"
        yield Figure(f"{name}_px", f"speed, quartile {quartile}", FOLLOWING, unit="px", detail=True)
        yield Figure(f"gain_{name}", f"gain, speed quartile {quartile}", FOLLOWING, "nearer", 1, detail=True)
        yield Figure(f"r2_{name}", f"R2, speed quartile {quartile}", FOLLOWING, "higher", 1, detail=True)
        title = f"sign accuracy, speed quartile {quartile}"
        yield Figure(f"sign_accuracy_{name}", title, FOLLOWING, "higher", 1, 0.5, detail=True)
    for phase in range(1, 9):
        title = f"response to action {phase} of a latent frame"
        yield Figure(f"response_phase_{phase}", title, FOLLOWING, "nearer", 1, detail=True)
    yield Figure("gain_at_scale_0", "gain at guidance 0", FOLLOWING, "nearer", 0, detail=True)
    yield Figure("gain_at_scale_1", "gain at guidance 1", FOLLOWING, "nearer", 1, detail=True)
    yield Figure("gain_at_scale_1_5", "gain at guidance 1.5", FOLLOWING, detail=True)
    yield Figure("gain_at_scale_2", "gain at guidance 2", FOLLOWING, detail=True)
    yield Figure("gain_rises", "gain rises with guidance", FOLLOWING, "higher", 1, detail=True)
    yield Figure("saturates_at_scale", "guidance beyond which nothing is gained", FOLLOWING, detail=True)
    yield Figure("error_to_action_owner_px", "distance from the actions' owner", FOLLOWING, unit="px", detail=True)
    yield Figure("error_to_start_owner_px", "distance from the start's owner", FOLLOWING, unit="px", detail=True)
    yield Figure("idm_accuracy", "inverse dynamics: accuracy on generated frames", FOLLOWING, detail=True)
    yield Figure("idm_accuracy_real", "inverse dynamics: accuracy on real frames", FOLLOWING, detail=True)
    yield Figure("idm_chance", "inverse dynamics: chance", FOLLOWING, detail=True)
    yield Figure("idm_p_value", "inverse dynamics: p of chance on real frames", FOLLOWING, detail=True)
    yield Figure("idm_is_informative", "inverse dynamics: tells anything", FOLLOWING, detail=True)
    yield Figure("idm_lag_correlation", "inverse dynamics: correlation at that lag", FOLLOWING, detail=True)


def _flow() -> Iterator[Figure]:
    says = "Share of the true motion of pixels that happens, where the true video moves."
    yield Figure("flow_gain", "flow gain", FOLLOWING, "nearer", 1, says=says, printed=True)
    says = "Cosine of the angle between generated and true motion of pixels, where the true video moves."
    yield Figure("flow_cosine", "flow direction", FOLLOWING, "higher", 1, 0, says=says, printed=True)
    says = "Distance between generated and true motion of pixels a frame, where the true video moves."
    title = "flow error where it moves"
    yield Figure("flow_epe_moving_px", title, FOLLOWING, "lower", unit="px", says=says, printed=True)
    title, says = "onset of divergence of the flow", "Generated frames before the flow goes astray."
    yield Figure("flow_onset_frames", title, FOLLOWING, "higher", unit="frames", says=says, detail=True)
    yield Figure("flow_diverged_rate", "videos whose flow diverges", FOLLOWING, "lower", 0, detail=True)
    yield Figure("flow_true_px", "true flow", FOLLOWING, unit="px", detail=True)
    yield Figure("flow_epe_px", "flow error, everywhere", FOLLOWING, unit="px", detail=True)
    yield Figure("flow_true_moving_px", "true flow, moving region", FOLLOWING, unit="px", detail=True)


def _difference() -> Iterator[Figure]:
    says = "What the right actions add to the likeness with the truth, at frame 4."
    yield Figure("delta_psnr_db", "PSNR true - other actions", DIFFERENCE, "higher", unit="dB", says=says, printed=True)
    # Reports of earlier versions say `shuffle`.
    for kind in ("swapped", "shuffle"):
        says = "Share of samples that the model predicts better under their own actions than under another's."
        yield Figure(f"{kind}_win_rate", "swapped win rate", DIFFERENCE, "higher", 1, 0.5, says=says, printed=True)
        says = "By how much the loss rises under another sample's actions."
        yield Figure(f"{kind}_relative_gap", "relative loss gap", DIFFERENCE, "higher", chance=0, says=says)
    says = "Wrong part of what other actions change, over what they change in the simulator."
    yield Figure("counterfactual_ratio", "counterfactual ratio", DIFFERENCE, "lower", 0, 1, says=says, printed=True)
    says = "Mean |(g - g') - (x - x')| of pixels in [0, 1], over videos under two actions."
    yield Figure("counterfactual_divergence", "counterfactual divergence", DIFFERENCE, "lower", 0, says=says)
    says = "Share of the variance of how a video ends that is between actions, not between noises."
    yield Figure("action_share", "decided by actions", DIFFERENCE, "higher", 1, 0, says=says, printed=True)
    says = "Variance between actions over that between noises."
    yield Figure("controllability_ratio", "controllability ratio", DIFFERENCE, "higher", says=says)


def _difference_in_detail() -> Iterator[Figure]:
    title = "PSNR true - other, all frames"
    yield Figure("delta_psnr_all_frames_db", title, DIFFERENCE, "higher", unit="dB", detail=True)
    ranges = [f"_{low}_{high}" for low, high in zip(LEVELS, LEVELS[1:], strict=False)]
    for kind, told in OTHER_ACTIONS_TOLD.items():
        for suffix in ("", *ranges, "_moving"):
            low, _, high = suffix[1:].partition("_")
            where = {"": "", "_moving": ", moving region"}.get(suffix, f", noise {low} to {high}")
            title = f"under {told}{where}"
            yield Figure(f"{kind}_gap{suffix}", f"loss gap {title}", DIFFERENCE, "higher", detail=True)
            relative = f"{kind}_relative_gap{suffix}"
            if (kind, suffix) == ("swapped", ""):
                continue  # two of these are no detail
            yield Figure(relative, f"relative loss gap {title}", DIFFERENCE, "higher", detail=True)
            yield Figure(f"{kind}_win_rate{suffix}", f"win rate {title}", DIFFERENCE, "higher", 1, 0.5, detail=True)
    for key, title in (
        ("generated_difference", "what other actions change, generated"),
        ("generated_difference_moving", "what other actions change, generated, moving region"),
        ("true_difference", "what other actions change, true"),
        ("difference_before", "what other actions change before they differ"),
        ("action_variance", "variance between actions"),
        ("noise_variance", "variance between noises"),
    ):
        yield Figure(key, title, DIFFERENCE, detail=True)


def _quality() -> Iterator[Figure]:
    says = "Likeness with the true video; a still background makes it high for any model."
    yield Figure("psnr_db", "PSNR", QUALITY, "higher", unit="dB", says=says, printed=True)
    says = "The same where the true video moves."
    yield Figure("psnr_moving_db", "PSNR, moving region", QUALITY, "higher", unit="dB", says=says, printed=True)
    yield Figure("ssim", "SSIM", QUALITY, "higher", 1, says="Structural similarity with the true video.")
    yield Figure("ssim_moving", "SSIM, moving region", QUALITY, "higher", 1, says=says)
    says = "Mean change between frames over that of the true videos; 0 stands still."
    yield Figure("motion_ratio", "motion", QUALITY, "nearer", 1, says=says, printed=True)
    yield Figure("static_rate", "videos that stand still", QUALITY, "lower", 0)
    says = "Change across the borders of blocks over that inside."
    yield Figure("seam_ratio", "seams between blocks", QUALITY, "nearer", 1, says=says, printed=True)
    title, says = "onset of divergence", "First frame at which it leaves the truth for good."
    yield Figure("divergence_onset_frames", title, QUALITY, "higher", unit="frames", says=says, printed=True)
    yield Figure("diverged_rate", "videos that diverge", QUALITY, "lower", 0)
    says = "Likeness of the first frame with the last one, after actions and their opposites."
    yield Figure("round_trip", "round trip", QUALITY, "higher", 1, says=says)
    yield Figure("mirror", "round trip, frame by frame", QUALITY, "higher", 1, detail=True)
    yield Figure("recovery", "round trip: share that comes back", QUALITY, "higher", 1, detail=True)
    yield Figure("excursion", "round trip: how far it went", QUALITY, detail=True)
    for name, unit in (("psnr", "_db"), ("psnr_moving", "_db"), ("ssim", ""), ("ssim_moving", "")):
        title = f"{name.partition('_')[0].upper()}{', moving region' if 'moving' in name else ''}"
        for end in ("first", "last"):
            key = f"{name}_{end}{unit}"
            yield Figure(key, f"{title}, {end} frame", QUALITY, "higher", unit=unit[1:] and "dB", detail=True)


def _of_columns(key: str) -> Figure | None:
    """Make the figure of a column of actions that is read off videos, which has a name of its own."""
    for prefix, figure in _COLUMNS.items():
        if key.startswith(prefix) and key != prefix:
            told = key.removeprefix(prefix).replace("_to_", " into ")
            return replace(figure, key=key, title=figure.title.format(told))
    return None


_COLUMNS_FOLLOW = "idm_lag_frames"
_READ_GAIN = "Slope of what is read off the video on what was given, over that on real videos."
_COLUMNS = {
    # What begins with another one stands before it.
    "idm_gain_other_": Figure("", "gain {}, other actions", FOLLOWING, "nearer", 1, says="Under another sample's."),
    "idm_gain_": Figure("", "gain {}", FOLLOWING, "nearer", 1, says=_READ_GAIN, printed=True),
    "idm_cross_talk_": Figure("", "leak of {}", FOLLOWING, "nearer", 0, says="In deviations, as read off the video."),
    "idm_correlation_real_": Figure("", "{} read off real frames", FOLLOWING, chance=0, detail=True),
    "idm_correlation_": Figure("", "{} read back", FOLLOWING, "higher", chance=0, detail=True),
}


def figures_of(keys: Iterable[str]) -> dict[str, Figure]:
    """Describe those names of a report that are figures, in the order in which they are shown."""
    there = set(keys)
    own = {key: figure for key in keys if key not in FIGURES and (figure := _of_columns(key))}
    found: dict[str, Figure] = {}
    for key, figure in FIGURES.items():
        if key in there:
            found[key] = figure
        if key == _COLUMNS_FOLLOW:
            found |= own
    return found


FAMILIES = (_following, _flow, _difference, _quality, _following_in_detail, _difference_in_detail)
FIGURES = {figure.key: figure for family in FAMILIES for figure in family()}


def is_number(value: Any) -> bool:
    """Tell whether a value of a report is a finite number; null and NaN stand for what is undefined."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def format_value(value: Any, digits: int = 3) -> str:
    """Write a figure, `-` where it is undefined."""
    return f"{value:.{digits}f}" if is_number(value) else "-"
