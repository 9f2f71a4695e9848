"""The order in which TensorBoard shows what the callbacks log."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from .support import log_writing

Layout = dict[str, dict[str, list[str]]]
"""Title of a group -> title of a chart in it -> regular expressions of the tags that it shows as lines."""

DEFAULT_LAYOUT: Layout = {
    "Do the actions act?": {
        "norm of the modulation, by slot": ["action/modulation_norm/(shift|scale|gate)_"],
        "modulation relative to time": ["action/modulation_to_time/all$"],
        "variation of the modulation": ["action/modulation_variation$"],
        "change of the prediction under other actions": ["sensitivity/change/[a-z]+$"],
        "swapped gap and its standard error": ["sensitivity/swapped_gap$", "sensitivity/swapped_gap_error$"],
        "win rate": ["sensitivity/win_rate$"],
    },
    "Where in the network": {
        "modulation relative to time": ["action/modulation_to_time/layer_"],
        "modulation relative to the layer's table": ["action/modulation_to_table/layer_"],
        "change under swapped actions": ["sensitivity/layer/swapped/layer_"],
        "change without actions": ["sensitivity/layer/nulled/layer_"],
    },
    "When in the video": {
        "norm of the modulation, by latent frame": ["action/modulation_norm_by_frame/"],
        "brightness": ["drift/brightness/(start|end)$"],
        "contrast": ["drift/contrast/(start|end)$"],
        "high frequencies": ["drift/high_frequency/(start|end)$"],
        "block seams": ["drift/block_seam/(start|end)$"],
    },
    "At which noise": {
        "loss": ["loss/noise_level/"],
        "swapped gap": ["sensitivity/swapped_gap/t"],
        "win rate": ["sensitivity/win_rate/t"],
        "change under swapped actions": ["sensitivity/change/swapped/t"],
        "loss in validation": ["loss/noise_level_validation/"],
    },
    "Gradients": {
        "norm": ["grad/norm/"],
        "norm after clipping": ["grad/clipped_norm/"],
        "update to weight": ["grad/update_to_weight/"],
        "cosine to the step before": ["grad/cosine/"],
        "share of zeros": ["grad/zero_share/"],
        "share of non-finite values": ["grad/nonfinite_share/"],
    },
    "Speed": {
        "video frames per second": ["throughput/.*/video_frames_per_second_"],
        "steps per second": ["throughput/train/steps_per_second$"],
        "seconds of a block": ["throughput/predict/block_seconds_"],
        "use of the device": ["throughput/train/flop_utilization$"],
    },
    "Phase": {
        "number of the phase": ["phase/index$"],
        "which parts train": ["phase/.*_trainable$"],
        "learning rate of the parts": ["phase/.*_learning_rate$"],
    },
}


class TensorBoardLayout(Callback):
    """Groups the charts of all callbacks under TensorBoard's *Custom Scalars*.

    A chart shows every tag that one of its regular expressions matches, whatever logs it; charts that nothing logs for
    stay empty. The layout is written once, when a fit starts, to every logger whose `experiment` has the method
    `add_custom_scalars` of TensorBoard's SummaryWriter; others are warned of once.

    Args:
        layout: Title of a group -> title of a chart -> regular expressions of the tags that it shows. Default: a group
            for each question that the callbacks of this package answer.

    Raises:
        ValueError: A group has no charts, or a chart no tags.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.TensorBoardLayout
              init_args:
                layout: {Losses: {training: [train/loss], by noise: [loss/noise_level/]}}
    """

    def __init__(self, layout: Layout | None = None) -> None:
        super().__init__()
        self.layout = DEFAULT_LAYOUT if layout is None else layout
        for group, charts in self.layout.items():
            if not charts or not all(charts.values()):
                raise ValueError(f"every group must have a chart and every chart a tag, got {group!r}: {charts}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_writing.custom_scalars(trainer, self.layout)
