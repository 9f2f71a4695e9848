"""Pictures and curves for TensorBoard."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_action.evaluation.report.tensorboard import write_to_tensorboard
from tests.support import made_up_report


class Kept:
    """Keeps what a SummaryWriter is given."""

    def __init__(self) -> None:
        self.images: dict[str, Tensor] = {}
        self.scalars: dict[tuple[str, int], float] = {}

    def add_image(self, tag: str, img_tensor: Tensor, global_step: int) -> None:
        self.images[tag] = img_tensor

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag, global_step] = scalar_value


def test_strips_and_curves_are_written() -> None:
    kept, report = Kept(), made_up_report.report()
    write_to_tensorboard(kept, report, made_up_report.pictures(2))
    assert kept.images.keys() == {
        f"test_{kind}_{index}" for kind in ("rollouts/sample", "action_scan/start") for index in (0, 1)
    }
    assert all(picture.dtype == torch.uint8 and picture.shape[0] == 3 for picture in kept.images.values())
    assert kept.scalars["test_curves_psnr_db/model", 1] == report["curves"]["psnr_db"]["model"][0]
    assert ("test_curves_position_error_px/ignore_actions", 1) not in kept.scalars  # undefined
    assert ("test_curves_position_error_px/ignore_actions", 4) in kept.scalars


def test_a_report_without_pictures_or_curves_writes_nothing() -> None:
    kept = Kept()
    write_to_tensorboard(kept, {"psnr_db": 1.0}, {})
    assert not kept.images and not kept.scalars
