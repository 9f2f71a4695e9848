"""Pictures and curves of a report for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_action.evaluation.report.figures import is_number
from lightning_action.evaluation.report.page_pictures import HELD
from lightning_action.evaluation.report.strips import by_sample, captioned

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


def write_to_tensorboard(writer: SummaryWriter, report: Mapping[str, Any], pictures: Mapping[str, Tensor]) -> None:
    """Write film strips and curves over the horizon.

    - `test_rollouts/sample_<i>`: the truth, and what is generated under the sample's own, another's and no actions;
    - `test_action_scan/start_<i>`: what is generated under each held action;
    - `test_curves_<quantity>/<model or baseline>`: a value for each pixel frame, whose number is the step.

    Args:
        writer: The `experiment` of a TensorBoardLogger.
        report: The report.
        pictures: Videos, see `report_page.report_page`.
    """
    held = {name: video for name, video in pictures.items() if name.startswith(HELD)}
    rollouts = {name: video for name, video in pictures.items() if name not in held}
    for tag, videos in (("test_rollouts/sample", rollouts), ("test_action_scan/start", held)):
        for index, sample in enumerate(by_sample(videos)):
            writer.add_image(f"{tag}_{index}", captioned(sample), 0)
    first = int(report.get("num_initial_frames") or 1)
    for quantity, curves in (report.get("curves") or {}).items():
        for name, values in curves.items():
            for frame, value in enumerate(values, start=first):
                if is_number(value):
                    writer.add_scalar(f"test_curves_{quantity}/{name}", value, frame)
