"""The entries that a run adds to Lightning's checkpoints, named in this one place.

Averages are named twice: the callback `EMA`, which writes them, stands alone, as does `weights`, which reads any file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.weights.size import traits_in

SCHEMA, FIT_SECONDS, VAE = "action_schema", "fit_seconds", "vae"
LORA_ALPHA, NUM_UNSTEPPED, STATISTICS = "lora_alpha", "num_unstepped", "action_statistics"
VALIDATION_DUE, AVERAGES = "validation_due", "ema_state_dict"
# In a folder of shards: where among them the averages are.
AVERAGES_IN_SHARDS = "ema"


@dataclass(frozen=True)
class RunEntries:
    """Facts of a run that weights alone do not say.

    Args:
        schema: Meaning of an action.
        traits: Traits of the generator, as `CausalWanModel.traits` gives them; early checkpoints say fewer.
        fit_seconds: Wall-clock seconds of training.
        vae: Tensors of a VAE that was fitted to the data; None for one that was not.
        lora_alpha: Numerator of the scale of LoRA; None without LoRA.
        num_unstepped: Batches since the last optimizer step.
        action_statistics: Figures of each column of the actions that were trained on, if the data has measured them.
    """

    schema: ActionSchema
    traits: Mapping[str, str]
    fit_seconds: float
    vae: dict[str, Tensor] | None = None
    lora_alpha: float | None = None
    num_unstepped: int = 0
    action_statistics: list[dict[str, Any]] = field(default_factory=list)

    def write(self, checkpoint: dict[str, Any]) -> None:
        """Add the entries to a checkpoint."""
        checkpoint[SCHEMA] = self.schema.to_dict()
        checkpoint |= {**self.traits, FIT_SECONDS: self.fit_seconds, NUM_UNSTEPPED: self.num_unstepped}
        if self.vae is not None:
            checkpoint[VAE] = self.vae
        if self.action_statistics:
            checkpoint[STATISTICS] = self.action_statistics
        if self.lora_alpha is not None:
            checkpoint[LORA_ALPHA] = torch.tensor(self.lora_alpha)

    @classmethod
    def read(cls, checkpoint: Mapping[str, Any]) -> RunEntries:
        """Read the entries of a checkpoint, of this or an earlier version.

        Raises:
            ValueError: An entry that every run writes is not there.
        """
        for key in (SCHEMA, FIT_SECONDS):
            if key not in checkpoint:
                told = key.replace("_", " ")
                raise ValueError(f"the checkpoint holds no {told}: it was not written by ActionVideoModule")
        alpha = checkpoint.get(LORA_ALPHA)
        return cls(
            ActionSchema.from_dict(checkpoint[SCHEMA]),
            traits_in(checkpoint),
            checkpoint[FIT_SECONDS],
            checkpoint.get(VAE),
            None if alpha is None else float(alpha),
            checkpoint.get(NUM_UNSTEPPED, 0),
            checkpoint.get(STATISTICS, []),
        )
