"""The order in which TensorBoard shows what the callbacks log."""

from lightning.pytorch import Callback, LightningModule, Trainer

from . import log_writing

Layout = dict[str, dict[str, list[str]]]
"""Title of a group -> title of a chart in it -> regular expressions of the tags that it shows as lines."""

_SLOTS = ("gate_sa", "gate_ffn", "shift_sa", "scale_sa", "shift_ffn", "scale_ffn")
_VARIANTS = ("swapped", "shuffled", "nulled", "scaled")
_DRIFTS = ("brightness", "contrast", "high_frequency", "block_seam")

DEFAULT_LAYOUT: Layout = {
    "Do the actions act?": {
        "modulation by slot": [r"action/modulation_norm/[a-z_]+$"],
        "change of the prediction under other actions": [r"sensitivity/change/[a-z]+$"],
        "shuffle gap": [r"sensitivity/shuffle_gap$", r"sensitivity/shuffle_gap_error$"],
        "win rate": [r"sensitivity/win_rate$"],
    },
    "Where in the network": {
        **{f"modulation, {slot}, by layer": [rf"action/modulation_norm/{slot}/layer_\d+$"] for slot in _SLOTS},
        **{f"change when {variant}, by layer": [rf"sensitivity/layer/{variant}/layer_\d+$"] for variant in _VARIANTS},
    },
    "At which noise": {
        "loss": [r"loss/noise_level/"],
        "loss in validation": [r"loss/noise_level_validation/"],
        "shuffle gap": [r"sensitivity/shuffle_gap/t"],
        "win rate": [r"sensitivity/win_rate/t"],
        "change when swapped": [r"sensitivity/change/swapped/t"],
    },
    "Gradients": {
        "norm": [r"grad/norm/"],
        "norm after clipping": [r"grad/clipped_norm/"],
        "update to weight": [r"grad/update_to_weight/"],
        "cosine to the step before": [r"grad/cosine/"],
        "share of zeros": [r"grad/zero_share/"],
        "share of non-finite values": [r"grad/nonfinite_share/"],
    },
    "Long rollouts": {name.replace("_", " "): [rf"drift/{name}/(start|end)$"] for name in _DRIFTS},
    "Speed": {"throughput": [r"throughput/"]},
    "Schedule": {"phase": [r"phase/"], "learning rate": [r"lr-"]},
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
        ValueError: If a group has no charts, or a chart no tags.

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
