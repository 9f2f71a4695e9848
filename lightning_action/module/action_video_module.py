"""The LightningModule that trains with the flow-matching loss, and measures whether the model obeys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_action.batch import Batch, acting, first_samples, has_actions, kinds_in
from lightning_action.checkpoints.lora import split_parameters
from lightning_action.diffusion.objectives import OBJECTIVES, teacher_forcing, training_visibility
from lightning_action.evaluation.known_state import ReadPositions, Simulate, position_reader, simulator
from lightning_action.evaluation.metrics.inverse_dynamics_model import InverseDynamicsModel, load_inverse_dynamics
from lightning_action.evaluation.metrics.loss_gap import wins
from lightning_action.evaluation.metrics.motion import latent_motion, moving_region
from lightning_action.evaluation.obedience import ObedienceTest
from lightning_action.evaluation.probes import Generate
from lightning_action.evaluation.report.provenance import data_fingerprint
from lightning_action.evaluation.report.report import format_table
from lightning_action.generator.estimates import training_flops
from lightning_action.generator.model import CausalWanModel
from lightning_action.losses import Encoded, FlowMatchingLosses, Loss
from lightning_action.module.generative_module import GenerativeModule
from lightning_action.module.reporting import provenance_of, publish
from lightning_action.optimization import JointOptimization, Optimization
from lightning_action.ranges import require_numbers
from lightning_action.seeding import mix_seed

_DROPOUT_STREAM = 3
_NUM_VALIDATION_ROLLOUTS = 16


class ActionVideoModule(GenerativeModule):
    """A causal video generator that learns to follow actions, by flow matching.

    A batch is a dict: `video` `[B, T, 3, H, W]` in [-1, 1], `action` `[B, rows, columns]` as `schema` says, `prompt` (a
    list of B strings), `sample_id` `[B]`. `latents` may stand in place of `video`, and `text` beside `prompt`: see
    `batch`.

    Args:
        args: Arguments of `GenerativeModule`: `generator`, `text_encoder`, `vae`, and so on.
        objective: Rule of what is noised, and what is seen: `teacher_forcing` (noisy blocks see the clean past) or
            `diffusion_forcing` (the noisy past).
        loss_weighting: Weights of noise levels: `bell` weighs them as this family does; `uniform` keeps the high ones,
            where actions act.
        past_noise: Largest deviation of noise on the past that a block sees in training, under teacher forcing; 0 adds
            none. The past that a model generates is not perfect either (GameNGen, Valevski et al. 2024,
            arXiv:2408.14837).
        action_dropout_prob: Chance that a training sample is shown without its actions.
        prompt_dropout_prob: Chance that a training sample is shown with an empty prompt, which guidance by prompts
            needs.
        optimization: Settings of AdamW, its groups and schedule.
        inverse_dynamics: Folder that `python main.py inverse-dynamics` wrote: with its model, `test` reads actions
            off the generated videos of data whose state nobody knows.
        kwargs: Arguments of `GenerativeModule` by their names.
    """

    losses: FlowMatchingLosses

    def __init__(
        self,
        *args: Any,
        objective: Literal["teacher_forcing", "diffusion_forcing"] = "teacher_forcing",
        loss_weighting: Literal["bell", "uniform"] = "bell",
        past_noise: float = 0.0,
        action_dropout_prob: float = 0.1,
        prompt_dropout_prob: float = 0.0,
        optimization: Optimization = Optimization(),
        inverse_dynamics: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, train_backbone=optimization.train_backbone, **kwargs)
        chances = {"action_dropout_prob": action_dropout_prob, "prompt_dropout_prob": prompt_dropout_prob}
        require_numbers(chances, 0, 1)
        if loss_weighting not in ("bell", "uniform"):
            raise ValueError(f"expected loss_weighting bell or uniform, got {loss_weighting!r}")
        require_numbers({"past_noise": past_noise}, 0)
        if past_noise and objective != "teacher_forcing":
            raise ValueError(f"past_noise is for teacher_forcing: under {objective} the past is noisy already")
        if past_noise and self._past_timesteps is not None:
            raise ValueError("past_noise is for sampling.context clean: that of last_step is noisy already")
        self.objective = OBJECTIVES[objective]
        self.past_noise = past_noise
        self.loss_weighting = loss_weighting
        self.action_dropout_prob, self.prompt_dropout_prob = action_dropout_prob, prompt_dropout_prob
        self.optimization = optimization
        self.inverse_dynamics = inverse_dynamics
        self._optimized: tuple[AdamW, LambdaLR] | None = None
        self._trained_on: torch.Size | None = None
        self._looked_at: dict[str, list[Any]] = {}
        self._obedience: ObedienceTest | None = None
        self._test_data = ""

    def configure_model(self) -> None:
        """Build the networks, and what they are trained by."""
        super().configure_model()
        self.losses = FlowMatchingLosses(
            generator=self.generator,
            conditioning=self.conditioning,
            causality=self.causality,
            schedule=self.schedule,
            objective=self.objective,
            weighting=self.loss_weighting,
            seed=self.seed,
            past_noise=self.past_noise,
            past_timesteps=self._past_timesteps if self.objective is teacher_forcing else None,
        )

    @property
    def _past_timesteps(self) -> Callable[[Sequence[range]], Sequence[float]] | None:
        """Noise levels of the past in the cache of a rollout, which training shows too; None where it is clean."""
        return None if self.sampling.context == "clean" else partial(self.sampling.past_timesteps, self.schedule)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, or one that trained other parameters, before anything is loaded."""
        super().on_load_checkpoint(checkpoint)
        if self._is_fitting and "loops" in checkpoint:
            states = checkpoint.get("optimizer_states", [])
            self._joint_optimization.require_same_groups(
                states, self._trained_parameters(), str(self.trainer.ckpt_path)
            )

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the groups `action`, `lora` and `backbone`, whichever of them is frozen at the time."""
        # Asked now, the Trainer would begin with the data before it knows where a checkpoint goes on.
        optimizer, scheduler = self._optimized = self._joint_optimization.build(
            self._trained_parameters(),
            lambda: float(self.trainer.estimated_stepping_batches),
            fused=not isinstance(self.trainer.precision_plugin, MixedPrecision),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """A fit that goes on takes its learning rates, betas and weight decay from the configuration."""
        if self.trainer.ckpt_path is not None and self._optimized is not None:
            told = self._joint_optimization.put_back(*self._optimized)
            if told:
                rank_zero_warn(f"going on with other settings than the checkpoint's: {', '.join(told)}")

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed what draws from the global generator, as dropout does, so that resuming changes no bit."""
        torch.manual_seed(mix_seed(self.seed, _DROPOUT_STREAM, self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Compute the weighted flow-matching loss; noise follows from (seed, epoch, batch_idx, sample_id) alone.

        Returns:
            `loss`; and for callbacks `loss_per_frame` `[B, F]`, not weighted, at the noise levels `timestep` `[B, F]`.
        """
        self._require_trainable(batch, "train")
        encoded = self._encoded(batch)
        self._trained_on = encoded.latents.shape
        to = (self.device, self.compute_dtype)
        no_prompt = self.frozen.empty_text_of(batch, *to) if self.prompt_dropout_prob else None
        chances = self.action_dropout_prob, self.prompt_dropout_prob
        losses = self.losses.of_training(encoded, self.current_epoch, batch_idx, *chances, no_prompt)
        loss = losses.per_sample.mean()
        if not loss.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                "nothing that trains takes part in the loss of this batch: it has no actions, and the backbone is "
                "frozen. Give `action` in every batch, or train the backbone (optimization.train_backbone)"
            )
        self._require_finite_loss(loss)
        self.log("train/loss", loss, prog_bar=True)
        return {"loss": loss, "loss_per_frame": losses.per_frame, "timestep": losses.timestep}

    def _require_finite_loss(self, loss: Tensor) -> None:
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(
                f"the training loss is {loss.item()} at step {self.global_step}: lower the learning rates, clip "
                "gradients (trainer.gradient_clip_val), or train in float32"
            )

    def _require_trainable(self, batch: Batch, stage: str) -> None:
        """Raise what `check` says of a batch, for the first of a stage and when its shapes or types change."""
        seen = kinds_in(batch)
        if self._looked_at.get(stage) != seen:
            self._require_fits(batch, trains=True)
            self._looked_at[stage] = seen

    @property
    def flops_per_batch(self) -> float:
        """Floating-point operations of the last training step on this device, as parameters train now; 0 before it."""
        if self._trained_on is None:
            return 0.0
        batch_size, num_latents, _, height, width = self._trained_on
        tokens = self.generator.tokens_per_frame(height, width)
        visibility = training_visibility(self.objective, num_latents, self.causality)
        return batch_size * training_flops(self.generator, visibility, tokens, self.modulation_learns).total

    @property
    def modulation_learns(self) -> bool:
        """True if something trains that actions become modulation by."""
        parts = [part for part in (self.action_projection, self.action_module) if part is not None]
        return any(parameter.requires_grad for part in parts for parameter in part.parameters())

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Log the loss at fixed noise, its gap to the loss under other actions, and on the first batch a rollout.

        Returns:
            Outputs for callbacks: `loss_per_frame` and `timestep` under the true actions, as `training_step` does, for
            several draws of noise beside each other.
        """
        self._require_trainable(batch, "validation")
        size = len(batch["sample_id"])
        matched = self.losses.matched(self._encoded(batch), ("true", "swapped"))
        self._log_validation("loss", matched["true"].per_sample.mean(), size, prog_bar=True)
        if "swapped" in matched:
            # Nothing changes the loss of others. It is logged where no sample acts, too: all ranks must log the same.
            true, swapped = (matched[name].per_frame.mean(dim=1)[acting(batch)] for name in ("true", "swapped"))
            for name, values in (("relative_gap", (swapped - true) / true), ("win_rate", wins(true, swapped))):
                self._log_validation(f"swapped_{name}", values.mean() if len(values) else 0.0, len(values))
        if batch_idx == 0 and has_actions(batch) and self.action_projection is not None:
            for name, value in self._rollout_figures(first_samples(batch, _NUM_VALIDATION_ROLLOUTS)).items():
                self._log_validation(f"rollout/{name}", value, size)
        return {"loss_per_frame": matched["true"].per_frame, "timestep": matched["true"].timestep}

    def _rollout_figures(self, batch: Batch) -> dict[str, float]:
        """Figures of rollouts of a few samples, the same at every validation."""
        test = self._new_obedience_test("validation")
        test.add_model(batch, {})
        return dict(test.compute("model"))

    def on_test_start(self) -> None:
        reads = None if self.inverse_dynamics is None else load_inverse_dynamics(self.inverse_dynamics)
        self._obedience = self._new_obedience_test("test", reads)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Rollouts and matched losses under true, other and no actions; see `evaluation`."""
        if self.action_projection is None or not has_actions(batch):
            raise ValueError(
                "test measures how a model follows actions: it needs an action_projection and batches with `action`"
            )
        self._require_trainable(batch, "test")
        if batch_idx == 0:
            self._test_data = data_fingerprint(batch)
        if self._obedience is not None:
            losses = self.matched_losses(batch, self._moving(batch))
            truth = self._obedience.add_model(batch, losses)
            self._obedience.add_baselines(batch, losses, truth)
            if batch_idx == 0:
                self._obedience.add_probes(batch)

    def on_test_epoch_end(self) -> None:
        """Write `report.json` and `report.html` to the trainer's `default_root_dir`, and print the figures."""
        if self._obedience is None:
            return
        report = {**self._obedience.report(), "fit_seconds": self.fit_seconds, "seed": self.sampling.seed}
        numbers = {key: value for key, value in report.items() if isinstance(value, float)}
        self.log_dict({f"test/{key}": value for key, value in numbers.items()}, sync_dist=True)
        report["provenance"] = provenance_of(self, self._test_data, self.inverse_dynamics)
        if self.trainer.is_global_zero:
            where = publish(self.trainer, report, self._obedience.pictures())
            print(f"\n{format_table(report)}\n\n{where}")

    def matched_losses(self, batch: Batch, moving: Tensor | None = None) -> dict[str, Loss]:
        """Return losses at the same noise under the actions `true`, `swapped`, `shuffled` and `null`.

        Args:
            batch: Batch with actions.
            moving: Positions of the latents where something moves, `[B, F, h, w]` bool, for `Loss.per_frame_moving`.
        """
        return self.losses.matched(self._encoded(batch), moving=moving)

    def _moving(self, batch: Batch) -> Tensor | None:
        truth = self.true_video(batch)
        if truth is None:
            return None
        *_, height, width = self.frozen.vae.latent_shape(*truth.shape[-2:])
        return latent_motion(moving_region(truth), self.schema.temporal_compression_ratio, (height, width))

    @torch.no_grad()
    def predict_velocity(self, batch: Batch, timestep: float, seed: int) -> tuple[Tensor, Tensor]:
        """Predict the velocity of a batch at one noise level.

        Args:
            batch: `video`, `prompt` and `action`, which may be anything of its shape, or None for the null action.
            timestep: Noise level of all frames, in [0, 1000].
            seed: Random seed of the noise; each sample has its own.

        Returns:
            Predicted and true velocity, `[B, F, C, h, w]`.
        """
        return self.losses.velocities_at(self._encoded(batch), timestep, seed)

    def _encoded(self, batch: Batch) -> Encoded:
        to = (self.device, self.compute_dtype)
        return Encoded(batch, self.frozen.latents_of(batch, *to), self.frozen.text_of(batch, *to))

    def _trained_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters that train, by the names of the optimizer's groups, without empty ones."""
        return trained_groups(self.generator, (self.action_projection, self.action_module))

    @property
    def _joint_optimization(self) -> JointOptimization:
        """Settings of all networks that train."""
        return JointOptimization({"": self.optimization})

    def _new_obedience_test(
        self,
        split: Literal["validation", "test"],
        reads: InverseDynamicsModel | None = None,
        generate: Generate | None = None,
    ) -> ObedienceTest:
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        return self.obedience_test(position_reader(datamodule, split), simulator(datamodule, split), reads, generate)

    def obedience_test(
        self,
        read_positions: ReadPositions | None = None,
        simulate: Simulate | None = None,
        inverse_dynamics: InverseDynamicsModel | None = None,
        generate: Generate | None = None,
    ) -> ObedienceTest:
        """Begin a test of how this model follows actions, see `ObedienceTest`.

        Args:
            read_positions: Function that finds the object in videos in [0, 1], such as `position_reader` gives; None
                where nobody can.
            simulate: Function that plays other actions, such as `simulator` gives; None where nobody can.
            inverse_dynamics: Model that reads actions off videos; None reads none.
            generate: Function that generates in place of this model, see `ObedienceTest`.
        """
        return ObedienceTest(
            generate or self._generate_guided,
            self.true_video,
            self.schema,
            self.sampling.num_initial_latents,
            read_positions,
            simulate,
            self.causality,
            inverse_dynamics,
        )

    def _generate_guided(self, batch: Batch, scale: float | None, draw: int) -> Tensor:
        guided = self.sampling if scale is None else replace(self.sampling, action_guidance_scale=scale)
        return self.generate(batch, replace(guided, seed=mix_seed(guided.seed, draw)) if draw else guided)

    def _log_validation(self, name: str, value: Any, batch_size: int, **kwargs: Any) -> None:
        self.log(f"validation/{name}", value, batch_size=batch_size, sync_dist=True, **kwargs)


def trained_groups(
    generator: CausalWanModel, action_parts: Iterable[nn.Module | None], network: str = ""
) -> dict[str, list[nn.Parameter]]:
    """Parameters that train, by the groups of `Optimization`, without empty ones.

    Args:
        generator: Generator, with or without LoRA layers.
        action_parts: Modules that train as the group `action`.
        network: Beginning of the groups' names.
    """
    action = nn.ModuleList(part for part in action_parts if part is not None)
    lora, backbone = split_parameters(generator)
    trained = [parameter for parameter in backbone.values() if parameter.requires_grad]
    groups = {"action": list(action.parameters()), "lora": list(lora.values()), "backbone": trained}
    return {f"{network}{name}": parameters for name, parameters in groups.items() if parameters}
