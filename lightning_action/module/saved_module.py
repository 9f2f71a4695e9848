"""Entries that a module keeps in its checkpoints beside the weights, and checkpoints that it takes."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from lightning_action.action.schema import ActionSchema
from lightning_action.assembly import Factories
from lightning_action.checkpoints.export import export_pretrained
from lightning_action.checkpoints.lora import lora_alpha, merged_state_dict
from lightning_action.checkpoints.run_format import RunEntries
from lightning_action.data.resuming import count_unstepped, settle_position
from lightning_action.distributed.sharding import gathered_state_dict, is_sharded
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import EncodedData, FittedCodec
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.fit import check_fits
from lightning_action.weights.size import require_traits
from lightning_action.weights.values import find_broken, require_finite


class SavedModule(L.LightningModule):
    """A module that is saved whole: with the meaning of its actions, a fitted VAE, the time that it took, its position.

    What it is made of is built by `GenerativeModule`.
    """

    generator: CausalWanModel
    action_projection: nn.Module | None
    frozen: FrozenParts
    schema: ActionSchema
    export_weights: bool
    action_statistics: list[dict[str, Any]]
    _factories: Factories
    _fit_seconds_before = 0.0
    _fit_started: float | None = None
    _quantized = False

    def on_fit_start(self) -> None:
        self._fit_started = time.monotonic()

    @property
    def fit_seconds(self) -> float:
        """Wall-clock seconds of training so far, with those of the pretrained backbone and of fits resumed from."""
        running = 0.0 if self._fit_started is None else time.monotonic() - self._fit_started
        return self._fit_seconds_before + running

    def on_fit_end(self) -> None:
        """Export the generator, if asked to; LoRA is merged."""
        self._fit_seconds_before, self._fit_started = self.fit_seconds, None
        if not self.export_weights or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._require_finite()
        sharded = is_sharded(self.generator)
        tensors = gathered_state_dict(self.generator) if sharded else merged_state_dict(self.generator)
        if self.trainer.is_global_zero:
            folder = self.trainer.default_root_dir
            export_pretrained(folder, tensors, self.generator.traits, self.frozen.vae, self.fit_seconds)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what weights alone do not say: schema, traits, a fitted VAE, scale of LoRA, time spent, and the position.

        Raises:
            RuntimeError: Weights or optimizer states are not finite.
        """
        num_unstepped = 0
        if self._has_trainer:
            self._require_finite()
            num_unstepped = count_unstepped(checkpoint["loops"]["fit_loop"], self.trainer.accumulate_grad_batches)
        vae = self.frozen.vae
        RunEntries(
            schema=self.schema,
            traits=self.generator.traits,
            fit_seconds=self.fit_seconds,
            vae=vae.fitted_tensors() if isinstance(vae, FittedCodec) else None,
            lora_alpha=lora_alpha(self.generator),
            num_unstepped=num_unstepped,
            action_statistics=self.action_statistics,
        ).write(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, action schema or codec, before anything is loaded."""
        self._require_not_quantized()
        if "state_dict" in checkpoint:  # sharded ones were loaded by the strategy, which checks them itself
            check_fits(self, checkpoint["state_dict"], "the checkpoint")
            require_finite(checkpoint["state_dict"], "the checkpoint", "take an earlier one")
        saved = RunEntries.read(checkpoint)
        if self.action_projection is not None and saved.schema != self.schema:
            raise ValueError(
                f"the checkpoint was trained with the actions {saved.schema}, the configuration says {self.schema}"
            )
        require_traits(saved.traits, self.generator.traits, "the checkpoint")
        if self._is_fitting and "loops" in checkpoint:
            settle_position(checkpoint["loops"]["fit_loop"], self.trainer.max_steps != -1, saved.num_unstepped)
        self._fit_seconds_before = saved.fit_seconds
        self.action_statistics = self.action_statistics or saved.action_statistics
        if isinstance(self.frozen.vae, FittedCodec):
            if saved.vae is None:
                raise ValueError("the checkpoint holds no fitted VAE: use the configuration it was trained with")
            self.frozen.vae.load_fitted_tensors(saved.vae, "the checkpoint's VAE")
        if self._has_trainer:
            self._require_same_frozen_parts()

    @property
    def takes_actions(self) -> bool:
        """True if the model has a projection of actions, built or yet to be built."""
        return self._factories.action_projection is not None

    def _require_finite(self) -> None:
        """Refuse what is not finite on all ranks alike, so that none waits for one that has stopped."""
        broken = find_broken(self, self.trainer.optimizers)
        if not self.trainer.strategy.reduce_boolean_decision(broken is None, all=True):
            raise RuntimeError(
                f"not saved: {broken or 'a weight of another rank'} is not finite after step "
                f"{self.trainer.global_step}. Go on from an earlier checkpoint with lower learning rates, clipped "
                "gradients (trainer.gradient_clip_val), or in float32"
            )

    def _require_not_quantized(self) -> None:
        if self._quantized:
            raise ValueError(
                "the weights of this module are in 8 bits since its last prediction: they neither train nor take those "
                "of a checkpoint; build a new module"
            )

    def _require_same_frozen_parts(self) -> None:
        """Refuse data that other frozen parts have encoded; those of a checkpoint are known once it is loaded."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(datamodule, EncodedData):
            schema = self.schema if self.takes_actions else None
            datamodule.require_made_by(self.frozen.vae, self.frozen.text_encoder, schema)

    @property
    def _has_trainer(self) -> bool:
        return self._trainer is not None  # `self.trainer` raises where there is none

    @property
    def _is_fitting(self) -> bool:
        return self._has_trainer and self.trainer.state.fn == TrainerFn.FITTING
