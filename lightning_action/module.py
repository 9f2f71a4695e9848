"""The LightningModule: generator, frozen text encoder and VAE, action projection; it trains, measures and generates."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_action.action.inferred import inferred_vectors
from lightning_action.action.projection import ActionModulationProjection, drop_actions
from lightning_action.action.schema import ActionSchema
from lightning_action.batch import (
    Batch,
    check_batch,
    first_frames,
    frame_size,
    has_actions,
    num_latents,
    other_actions,
    without_actions,
)
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.objectives import OBJECTIVES, draw_block_timesteps, per_frame_error
from lightning_action.evaluation import ObedienceTest, StateReader, format_table, wins, write_report
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import FittedCodec, TextEncoder, VideoCodec
from lightning_action.generator.blocks import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.pretrained import export, load_generator, prepare_codec
from lightning_action.rollout import BlockModulation, CausalRollout, rollout
from lightning_action.seeding import generator_for, mix_seed
from lightning_action.settings import Optimization, Sampling
from lightning_action.sharding import Sharding, shard, shard_generator
from lightning_action.weights import check_fits

_TRAINING_STREAM, _VALIDATION_STREAM, _PROBE_STREAM, _DROPOUT_STREAM = range(4)
_NUM_LOSS_DRAWS = 4
_NUM_VALIDATION_ROLLOUTS = 16


class ActionVideoModule(L.LightningModule):
    """A causal video generator that follows actions.

    A batch is a dict: `video` `[B, T, 3, H, W]` in [-1, 1], `action` `[B, rows, columns]` as `schema` says, `prompt` (a
    list of B strings), `sample_id` `[B]`. Networks are given as factories and built in `configure_model`.

    Args:
        generator: builds the network.
        text_encoder: builds the frozen text encoder.
        vae: builds the frozen VAE. One that is fitted to data is fitted once, when training starts, and saved with the
            run.
        action_projection: builds the projection from (action_dim, dim); None trains a backbone without actions.
        action_module: builds a network that infers an action vector `[B, action_dim]` from the latents so far
            `[B, F', C, H, W]`, used where a batch has no `action`.
        schema: what an action is and which rows belong to which latent frame.
        causality: block size, window and sink.
        objective: `teacher_forcing` (noisy blocks see the clean past) or `diffusion_forcing` (the noisy past).
        timestep_shift: of the noise levels, in training and sampling.
        loss_weighting: `bell` weighs noise levels as this family does; `uniform` keeps the high ones, where actions
            act.
        action_dropout_prob: chance that a training sample is shown without its actions.
        sampling: how videos are generated.
        optimization: AdamW settings.
        pretrained: folder with `generator.safetensors` (original Wan names) and, for a fitted VAE, `vae.safetensors`,
            that a new fit starts from.
        export_weights: write the same files to the trainer's `default_root_dir` when fit ends.
        sharding: how parameters are spread over devices, under `FSDP2Strategy`.
        seed: of initial weights, training noise and validation noise.
    """

    generator: CausalWanModel
    action_projection: ActionModulationProjection | None
    action_module: nn.Module | None

    def __init__(
        self,
        generator: Callable[[], CausalWanModel],
        text_encoder: Callable[[], TextEncoder],
        vae: Callable[[], VideoCodec],
        action_projection: Callable[[int, int], ActionModulationProjection] | None = None,
        action_module: Callable[[], nn.Module] | None = None,
        schema: ActionSchema = ActionSchema(),
        causality: BlockCausality = BlockCausality(),
        objective: Literal["teacher_forcing", "diffusion_forcing"] = "teacher_forcing",
        timestep_shift: float = 5.0,
        loss_weighting: Literal["bell", "uniform"] = "bell",
        action_dropout_prob: float = 0.1,
        sampling: Sampling = Sampling(),
        optimization: Optimization = Optimization(),
        pretrained: str | None = None,
        export_weights: bool = False,
        sharding: Sharding = Sharding(),
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not 0 <= action_dropout_prob <= 1 or loss_weighting not in ("bell", "uniform"):
            raise ValueError(
                "expected action_dropout_prob in [0, 1] and loss_weighting bell or uniform, got "
                f"{action_dropout_prob} and {loss_weighting!r}"
            )
        self._build_generator = generator
        self._build_projection = action_projection
        self._build_action_module = action_module
        self.frozen = FrozenParts(text_encoder(), vae())
        if schema.temporal_compression_ratio != self.frozen.vae.temporal_compression_ratio:
            raise ValueError(
                f"schema.temporal_compression_ratio is {schema.temporal_compression_ratio}, that of the VAE is "
                f"{self.frozen.vae.temporal_compression_ratio}: a latent frame must mean the same to both"
            )
        self.schema = schema
        self.causality = causality
        self.schedule = FlowMatchSchedule(timestep_shift)
        self.objective = OBJECTIVES[objective]
        self.loss_weighting = loss_weighting
        self.action_dropout_prob = action_dropout_prob
        self.sampling = sampling
        self.optimization = optimization
        self.pretrained = pretrained
        self.export_weights = export_weights
        self.sharding = sharding
        self.seed = seed
        self._built = False
        self._start_from_pretrained = False
        self._fit_seconds_before = 0.0
        self._fit_started: float | None = None
        self._obedience: ObedienceTest | None = None

    def setup(self, stage: str) -> None:
        """Find or fit what a new fit starts from; checkpoints bring their own."""
        is_new_fit = stage == "fit" and self.trainer.ckpt_path is None
        self._start_from_pretrained = is_new_fit and self.pretrained is not None
        vae = self.frozen.vae
        if is_new_fit and isinstance(vae, FittedCodec) and not vae.fitted:
            prepare_codec(vae, self.pretrained, self.trainer.datamodule)  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Build the networks; the initial weights of each follow from `seed` alone."""
        if self._built:
            return
        with _seeded(self.seed, 0):
            self.generator = self._build_generator()
        with _seeded(self.seed, 1):
            self.action_projection = (
                self._build_projection(self.schema.action_dim, self.generator.dim) if self._build_projection else None
            )
        with _seeded(self.seed, 2):
            self.action_module = self._build_action_module() if self._build_action_module else None
        if self._start_from_pretrained:
            self._fit_seconds_before = load_generator(self.generator, str(self.pretrained))
        self._shard()
        self._built = True

    def _shard(self) -> None:
        """Where the strategy made a device mesh, spread all that trains over it."""
        if self._device_mesh is None:
            return
        mesh = self._device_mesh["data_parallel"]
        shard_generator(self.generator, mesh, self.sharding)
        for part in (self.action_projection, self.action_module):
            if part is not None:
                shard(part, (), mesh, self.sharding)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the groups `action` and `backbone`, always both, whichever of them is frozen at the time."""
        settings = self.optimization
        action = [part for part in (self.action_projection, self.action_module) if part is not None]
        groups: list[dict[str, Any]] = [
            {"name": "action", "lr": settings.action_learning_rate, "params": nn.ModuleList(action).parameters()},
            {"name": "backbone", "lr": settings.backbone_learning_rate, "params": self.generator.parameters()},
        ]
        optimizer = torch.optim.AdamW(
            groups if action else groups[1:], betas=settings.betas, weight_decay=settings.weight_decay
        )
        num_steps = float(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: settings.learning_rate_factor(step, num_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """What draws from the global generator, as dropout does, resumes without changing a bit."""
        torch.manual_seed(mix_seed(self.seed, _DROPOUT_STREAM, self.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Weighted flow-matching loss; a sample's noise follows from (seed, epoch, batch_idx, sample_id) alone.

        Returns:
            `loss`; and for callbacks `loss_per_frame` `[B, F]`, not weighted, at the noise levels `timestep` `[B, F]`.
        """
        randoms = self._randoms(batch, _TRAINING_STREAM, self.current_epoch, batch_idx)
        latents = self._encode_video(batch["video"])
        error, timestep = self._error(batch, latents, randoms, self.action_dropout_prob)
        loss = self._weighted(error, timestep).mean()
        if not bool(torch.isfinite(loss)):
            raise RuntimeError(
                f"the training loss is {loss.item()} at step {self.global_step}: lower the learning rates, clip "
                "gradients (trainer.gradient_clip_val), or train in float32"
            )
        self.log("train/loss", loss, prog_bar=True)
        return {"loss": loss, "loss_per_frame": error.detach(), "timestep": timestep}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss at fixed noise, its gap to the loss under other actions, and on the first batch a rollout."""
        size = len(batch["video"])
        losses = self.matched_losses(batch)
        self._log_validation("loss", losses["true"].mean(), size, prog_bar=True)
        if "other" in losses:
            gap = (losses["other"] - losses["true"]) / losses["true"]
            self._log_validation("shuffle_relative_gap", gap.mean(), size)
            self._log_validation("shuffle_win_rate", wins(losses["true"], losses["other"]).mean(), size)
        if batch_idx == 0 and has_actions(batch) and self.action_projection is not None:
            few = {key: value[:_NUM_VALIDATION_ROLLOUTS] for key, value in batch.items()}
            test = self._new_obedience_test("validation")
            test.step(few)
            for name, value in test.compute("model").items():
                self._log_validation(f"rollout/{name}", value, size)

    def on_test_start(self) -> None:
        self._obedience = self._new_obedience_test("test")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Rollouts and matched losses under true, other and no actions; see `evaluation`."""
        if self.action_projection is None or not has_actions(batch):
            raise ValueError(
                "test measures how a model follows actions: it needs an action_projection and batches with `action`"
            )
        if self._obedience is not None:
            self._obedience.step(batch)

    def on_test_epoch_end(self) -> None:
        """Write `report.json` to the trainer's `default_root_dir`, and print it as a table."""
        if self._obedience is None:
            return
        report = {**self._obedience.report(), "fit_seconds": self.fit_seconds}
        numbers = {key: value for key, value in report.items() if isinstance(value, float)}
        self.log_dict({f"test/{key}": value for key, value in numbers.items()})
        if self.trainer.is_global_zero:
            path = Path(self.trainer.default_root_dir) / "report.json"
            write_report(path, report)
            print(f"\n{format_table(report)}\n\nwritten to {path}")

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Generate, and hand over what a prediction writer needs; `video` and `truth` are in [0, 1]."""
        latents = self.generate_latents(batch)
        prediction = {
            "video": to_unit_range(self.frozen.decode(latents)).cpu(),
            "latents": latents.cpu(),
            "sample_id": batch["sample_id"].cpu(),
            "prompt": batch["prompt"],
            "seed": self.sampling.seed,
            "generation": {"sampling": asdict(self.sampling), "causality": asdict(self.causality)},
        }
        if has_actions(batch):
            prediction["action"] = batch["action"].cpu()
        if "video" in batch and batch["video"].shape == prediction["video"].shape:
            prediction["truth"] = to_unit_range(batch["video"]).cpu()
        return prediction

    @torch.no_grad()
    def generate(self, batch: Batch) -> Tensor:
        """Generate the videos of a batch.

        Args:
            batch: `prompt` (list of B strings), `sample_id` `[B]` (noise belongs to the sample), `action` (None is the
                null action; where the key is missing the action module infers it, if there is one), and `video`
                `[B, T, 3, H, W]` in [-1, 1], of which the first `sampling.num_initial_latents` latent frames are kept.
                Without `video`: `frame_size` `[B, 2]` (H, W). The length follows from the action rows, else from
                `video`, else from `num_latents`.

        Returns:
            Video `[B, T, 3, H, W]` in [0, 1].
        """
        return to_unit_range(self.frozen.decode(self.generate_latents(batch)))

    @torch.no_grad()
    def generate_latents(self, batch: Batch) -> Tensor:
        """As `generate`, but the latents `[B, F, C, h, w]`.

        Raises:
            RuntimeError: the model gave values that are not finite.
        """
        latents = torch.cat(list(self.stream_latents(batch)), dim=1)
        if not bool(torch.isfinite(latents).all()):
            raise RuntimeError("generated latents hold NaN or infinity: check the checkpoint, or generate in float32")
        return latents

    @torch.no_grad()
    def stream_latents(self, batch: Batch) -> Iterator[Tensor]:
        """As `generate`, but yields the clean latents of each block, `[B, block, C, h, w]`, as soon as they exist."""
        check_batch(batch)
        start = first_frames(batch, self.sampling.num_initial_latents, self.frozen.vae.temporal_compression_ratio)
        initial = None if start is None else self._encode_video(start)
        length = num_latents(batch, self.schema)
        text = self._encode_text(batch)
        shape = self.frozen.vae.latent_shape(*frame_size(batch))
        session = CausalRollout(
            self.generator,
            text,
            self.causality,
            self.sampling.sampler(self.schedule),
            frame_noise(self.sampling.seed, batch["sample_id"].tolist(), shape, self.device, text.dtype),
            shape,
            length,
            self.sampling.action_guidance_scale,
        )
        yield from rollout(session, length, self._rollout_modulation(batch, length), initial)

    @torch.no_grad()
    def matched_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Losses `[B]` at the same noise and timesteps: `true` actions, those of the `other` sample, and `null`."""
        latents = self._encode_video(batch["video"])
        variants = {"true": batch}
        if has_actions(batch) and self.action_projection is not None:
            variants |= {"other": other_actions(batch), "null": without_actions(batch)}

        def average(variant: Batch) -> Tensor:
            draws = [self._randoms(batch, _VALIDATION_STREAM, draw) for draw in range(_NUM_LOSS_DRAWS)]
            losses = [self._weighted(*self._error(variant, latents, randoms, 0.0)) for randoms in draws]
            return torch.stack(losses).mean(dim=0)

        return {name: average(variant) for name, variant in variants.items()}

    def on_fit_start(self) -> None:
        self._fit_started = time.monotonic()

    @property
    def fit_seconds(self) -> float:
        """Wall-clock seconds of training so far, with those of the pretrained backbone and of fits resumed from."""
        running = 0.0 if self._fit_started is None else time.monotonic() - self._fit_started
        return self._fit_seconds_before + running

    def on_fit_end(self) -> None:
        """Export the generator, if asked to."""
        self._fit_seconds_before, self._fit_started = self.fit_seconds, None
        if self.export_weights and self.trainer.is_global_zero and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            export(self.trainer.default_root_dir, self.generator, self.frozen.vae, self.fit_seconds)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What weights alone do not say: the schema, a fitted VAE, and the time spent."""
        checkpoint["action_schema"] = self.schema.to_dict()
        checkpoint["fit_seconds"] = self.fit_seconds
        if isinstance(self.frozen.vae, FittedCodec):
            checkpoint["vae"] = self.frozen.vae.fitted_tensors()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model, action schema or codec, before anything is loaded."""
        if "state_dict" in checkpoint:  # sharded ones were loaded by the strategy, which checks them itself
            check_fits(self, checkpoint["state_dict"], "the checkpoint")
        if "action_schema" not in checkpoint:
            raise ValueError("the checkpoint holds no action schema: it was not written by ActionVideoModule")
        saved = ActionSchema.from_dict(checkpoint["action_schema"])
        if self.action_projection is not None and saved != self.schema:
            raise ValueError(
                f"the checkpoint was trained with the actions {saved}, the configuration says {self.schema}"
            )
        self._fit_seconds_before = checkpoint["fit_seconds"]
        if isinstance(self.frozen.vae, FittedCodec):
            self.frozen.vae.load_fitted_tensors(checkpoint["vae"], "the checkpoint's VAE")

    @torch.no_grad()
    def predict_velocity(self, batch: Batch, timestep: float, seed: int) -> tuple[Tensor, Tensor]:
        """What the model predicts for a batch at one noise level, beside what is true.

        Args:
            batch: `video`, `prompt` and `action`, which may be anything of its shape, or None for the null action.
            timestep: noise level of all frames, in [0, 1000].
            seed: of the noise; each sample has its own.

        Returns:
            Predicted and true velocity, `[B, F, C, h, w]`.
        """
        latents = self._encode_video(batch["video"])
        randoms = self._randoms(batch, _PROBE_STREAM, seed)
        noise = _standard_normal(latents, randoms)
        timesteps = torch.full(latents.shape[:2], timestep, device=latents.device)
        modulation = self._modulation(batch, latents, 0.0, randoms)
        text = self._encode_text(batch)
        return self.objective(self.generator, latents, noise, timesteps, text, self.causality, modulation)

    def _error(
        self, batch: Batch, latents: Tensor, randoms: list[torch.Generator], dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Squared error of the velocity of each frame, and the noise levels it was measured at, `[B, F]` both."""
        timestep = draw_block_timesteps(self.schedule, latents.shape[1], self.causality, randoms).to(latents.device)
        noise = _standard_normal(latents, randoms)
        modulation = self._modulation(batch, latents, dropout, randoms)
        text = self._encode_text(batch)
        predicted, target = self.objective(self.generator, latents, noise, timestep, text, self.causality, modulation)
        return per_frame_error(predicted, target), timestep

    def _weighted(self, error: Tensor, timestep: Tensor) -> Tensor:
        """Loss of each sample, `[B]`."""
        weight = self.schedule.weight_at(timestep) if self.loss_weighting == "bell" else torch.ones_like(timestep)
        return (weight * error).mean(dim=1)

    def _randoms(self, batch: Batch, *numbers: int) -> list[torch.Generator]:
        """A generator for each sample, whatever the batch it sits in and the rank it runs on."""
        return [generator_for(self.seed, *numbers, sample) for sample in batch["sample_id"].tolist()]

    def _modulation(
        self, batch: Batch, latents: Tensor, dropout: float, randoms: list[torch.Generator]
    ) -> Tensor | None:
        if self.action_projection is None:
            return None
        if has_actions(batch):
            vectors, present = self.schema.encode(batch["action"], latents.shape[1])
        elif "action" not in batch and self.action_module is not None:
            vectors, present = inferred_vectors(self.action_module, latents, self.causality)
        else:
            return None
        return self.action_projection(vectors.to(self._compute_dtype), drop_actions(present, dropout, randoms))

    def _rollout_modulation(self, batch: Batch, length: int) -> Tensor | BlockModulation | None:
        projection, infer = self.action_projection, self.action_module
        if projection is None:
            return None
        if has_actions(batch):
            vectors, present = self.schema.encode(batch["action"].to(self.device), length)
            return projection(vectors.to(self._compute_dtype), present)
        if "action" in batch or infer is None:
            return None

        def infer_block(block: range, history: list[Tensor]) -> Tensor | None:
            if not history:
                return None
            return projection(infer(torch.cat(history, dim=1))[:, None].expand(-1, len(block), -1))

        return infer_block

    def _encode_video(self, video: Tensor) -> Tensor:
        self.frozen.to(self.device)
        return self.frozen.encode_video(video).to(self._compute_dtype)

    def _encode_text(self, batch: Batch) -> Tensor:
        self.frozen.to(self.device)
        return self.frozen.encode_text(batch["prompt"]).to(self._compute_dtype)

    @property
    def _compute_dtype(self) -> torch.dtype:
        weight = self.generator.patch_embedding.weight
        return self.sharding.compute_dtype if isinstance(weight, DTensor) else weight.dtype

    def _new_obedience_test(self, split: Literal["validation", "test"]) -> ObedienceTest:
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        ratio = self.frozen.vae.temporal_compression_ratio
        reader = partial(datamodule.read_positions, split=split) if isinstance(datamodule, StateReader) else None
        return ObedienceTest(self.generate, self.matched_losses, reader, ratio, self.sampling.num_initial_latents)

    def _log_validation(self, name: str, value: Any, batch_size: int, **kwargs: Any) -> None:
        self.log(f"validation/{name}", value, batch_size=batch_size, sync_dist=True, **kwargs)


@contextmanager
def _seeded(*numbers: int) -> Iterator[None]:
    """The global generator starts from the numbers inside the block, and is as it was after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix_seed(*numbers))
        yield


def _standard_normal(latents: Tensor, randoms: list[torch.Generator]) -> Tensor:
    """Noise of the shape of `latents`, drawn on the CPU, so that it is the same on every device."""
    return torch.stack([torch.randn(latents.shape[1:], generator=random) for random in randoms]).to(latents)


def to_unit_range(video: Tensor) -> Tensor:
    """Pixels in [-1, 1] to [0, 1]."""
    return (video * 0.5 + 0.5).clamp(0, 1)
