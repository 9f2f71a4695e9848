"""Base of every module of the project: networks, frozen parts, initial weights, checkpoints and generation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionSchema
from lightning_action.assembly import (
    Factories,
    HasActionStatistics,
    InitialWeights,
    describe,
    find_schema,
    require_same_ratio,
)
from lightning_action.batch import (
    Batch,
    has_actions,
    to_unit_range,
)
from lightning_action.checkpoints.lora import LoRASettings, merge_lora
from lightning_action.checkpoints.pretrained import prepare_codec
from lightning_action.checkpoints.run_weights import RunWeights
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.distributed.fsdp2 import require_shardable, require_supported
from lightning_action.distributed.lockstep import Lockstep
from lightning_action.distributed.sharding import Sharding, is_sharded, keep_gathered
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import EncodedData, FittedCodec, TextEncoder, VideoCodec
from lightning_action.generation.batch_generator import BatchGenerator
from lightning_action.generation.clock import Clock
from lightning_action.generation.prompt_switches import count_switch_passes
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import stream_pixels, video_on_host, whole_video
from lightning_action.generation.world_session import WorldSession
from lightning_action.generator.acceleration import Acceleration
from lightning_action.generator.attention_kernels import hold_attention_kernels
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from lightning_action.generator.quantization import quantize_layers
from lightning_action.module.batch_checks import BatchChecks
from lightning_action.module.saved_module import SavedModule
from lightning_action.ranges import require_numbers


class GenerativeModule(SavedModule):
    """A causal video generator that follows actions, built and filled, which generates; how it trains is left open.

    A batch is a dict: `video` `[B, T, 3, H, W]` in [-1, 1], `action` `[B, rows, columns]` as `schema` says, `prompt` (a
    list of B strings), `sample_id` `[B]`. `latents` may stand in place of `video`, and `text` beside `prompt`: see
    `batch`. Networks are given as factories and built in `configure_model`.

    Args:
        generator: Factory of the network.
        text_encoder: Factory of the frozen text encoder.
        vae: Factory of the frozen VAE. One that is fitted to data is fitted once, when training starts, and saved with
            the run.
        action_projection: Factory of the projection, from (action_dim, dim); None trains a backbone without actions.
        action_module: Factory of a network that infers an action vector `[B, action_dim]` from the latents so far
            `[B, F', C, H, W]`, used where a batch has no `action`.
        schema: Meaning of an action, and rule of which rows belong to which latent frame; `auto` takes that which the
            DataModule has measured, and later that of the checkpoint or adapter.
        causality: Block size, window and sink.
        timestep_shift: Shift of the noise levels, in training and sampling.
        sampling: Settings of how videos are generated.
        pretrained: Weights of the generator that a new run starts from: any checkpoint of the family (safetensors,
            shards, `.pt`, a folder), a folder that `export_weights` left (it also brings a fitted VAE), or `release`,
            the folder that the environment variable `LIGHTNING_ACTION_WEIGHTS` names. None starts from nothing.
        pretrained_lora: LoRA file that is merged into them.
        adapter: Action adapter, as `export --format adapter` writes it, that goes on top of them.
        any_base: Take the adapter even if it was trained on another generator.
        lora: LoRA layers on the generator, which train as a parameter group of their own.
        export_weights: Write the generator, and a fitted VAE, to the trainer's `default_root_dir` when fit ends.
        acceleration: Compilation, quantization and overlapped decoding.
        sharding: Way in which parameters are spread over devices, under `FSDP2Strategy`.
        seed: Random seed of initial weights, training noise and validation noise.
        train_backbone: True trains the generator's own weights, False never does.
    """

    schema: ActionSchema
    generator: CausalWanModel
    conditioning: ActionConditioning
    batch_checks: BatchChecks
    action_projection: ActionModulationProjection | None
    action_module: nn.Module | None

    def __init__(
        self,
        generator: Callable[[], CausalWanModel],
        text_encoder: Callable[[], TextEncoder],
        vae: Callable[[], VideoCodec],
        action_projection: Callable[[int, int], ActionModulationProjection] | None = None,
        action_module: Callable[[], nn.Module] | None = None,
        schema: ActionSchema | Literal["auto"] = ActionSchema(),
        causality: BlockCausality = BlockCausality(),
        timestep_shift: float = 5.0,
        sampling: Sampling = Sampling(),
        pretrained: str | None = None,
        pretrained_lora: str | None = None,
        adapter: str | None = None,
        any_base: bool = False,
        lora: LoRASettings | None = None,
        export_weights: bool = False,
        acceleration: Acceleration = Acceleration(),
        sharding: Sharding = Sharding(),
        seed: int = 0,
        *,
        train_backbone: bool = True,
    ) -> None:
        super().__init__()
        require_numbers({"seed": seed}, 0, 2**63 - 1, whole=True)
        if not (train_backbone or action_projection or action_module or lora):
            raise ValueError("nothing would train: optimization.train_backbone is false, and there is no projection")
        self._factories = Factories(generator, action_projection, action_module, lora, train_backbone, seed)
        self.initial_weights: InitialWeights | RunWeights = InitialWeights(
            pretrained, pretrained_lora, adapter, any_base
        )
        self.frozen = FrozenParts(text_encoder(), vae())
        self.schema_is_open = schema == "auto"
        if schema != "auto":
            self.schema = require_same_ratio(schema, self.frozen.vae)
        self.causality = causality
        self.schedule = FlowMatchSchedule(timestep_shift)
        self.sampling = sampling
        self.export_weights = export_weights
        self.acceleration = acceleration
        self.sharding = sharding
        self.seed = seed
        self.action_statistics: list[dict[str, Any]] = []
        self._built = False
        self._resumes = False
        self._starts_from_weights = False
        self._lockstep: Lockstep | None = None
        self._described: dict[str, str] = {}

    def setup(self, stage: str) -> None:
        """Read the frozen parts, and find or fit what a new run starts from; checkpoints bring their own.

        Where the data is encoded already, the text encoder is read when a prompt comes without `text`.

        Raises:
            ValueError: Sharded weights should be quantized, or exported with LoRA; or weights that are quantized should
                train, or take others; or other frozen parts than these have encoded the data.
        """
        require_supported(self.trainer.strategy)
        if stage == "fit":
            self._require_not_quantized()
        device = self.trainer.strategy.root_device
        kernels = hold_attention_kernels(device)
        if device.type == "cuda":
            rank_zero_info(f"attention kernels, in this order: {', '.join(kernels)}")
        if self.device_mesh is not None:
            merges_lora = self.export_weights and self._factories.lora is not None
            quantizes, captures = self.acceleration.quantization is not None, self.acceleration.capture_pass
            require_shardable(stage, merges_lora, quantizes, captures)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        vae = self.frozen.vae
        vae.load()
        if not isinstance(datamodule, EncodedData):
            self.frozen.text_encoder.load()
        self._resumes = self.trainer.ckpt_path is not None
        self.settle_schema(self.trainer.ckpt_path, datamodule)
        if stage == "fit" and isinstance(datamodule, HasActionStatistics):
            self.action_statistics = datamodule.action_statistics
        self._starts_from_weights = not self._resumes and self.initial_weights.generator is not None
        if not self._resumes and isinstance(vae, FittedCodec) and not vae.fitted:
            prepare_codec(vae, self.initial_weights.generator, datamodule)
        if not self._resumes:
            self._require_same_frozen_parts()

    def settle_schema(self, ckpt_path: str | Path | None, datamodule: object) -> None:
        """Find what an action is, where the configuration leaves it open (`schema: auto`), before networks are built.

        Args:
            ckpt_path: Checkpoint that the weights will come from; None for none.
            datamodule: DataModule that has been set up, for its `action_schema`.

        Raises:
            ValueError: No checkpoint, adapter or DataModule says what an action is, or the schema has another number of
                pixel frames for a latent frame than the VAE.
        """
        if self.schema_is_open:
            adapter = self.initial_weights.adapter
            self.schema = find_schema(ckpt_path, adapter, datamodule, self.takes_actions, self.frozen.vae)

    def configure_model(self) -> None:
        """Build the networks; initial weights follow from `seed` alone."""
        if self._built:
            return
        mesh = None if self.device_mesh is None else self.device_mesh["data_parallel"]
        weights_follow = self._resumes or self._starts_from_weights
        self.generator = self._factories.build_generator(mesh, self.sharding, weights_follow)
        self.action_projection = self._factories.build_action_projection(
            self.generator, self.schema.action_dim, mesh, self.sharding
        )
        self.action_module = self._factories.build_action_module(mesh, self.sharding)
        parts = {name: getattr(self, name) for name in ("generator", "action_projection", "action_module")}
        parts |= {"text_encoder": self.frozen.text_encoder, "vae": self.frozen.vae}
        self._described = {name: describe(part) for name, part in parts.items() if part is not None}
        if self.acceleration.compile_mode is not None:
            self.generator.compile_layers(mode=self.acceleration.compile_mode)
        if self._starts_from_weights:
            report = self.initial_weights.load(self.generator, self.action_projection, self.schema)
            self._fit_seconds_before = report.fit_seconds
            rank_zero_info(str(report))
        self.conditioning = ActionConditioning(
            schema=self.schema,
            projection=self.action_projection,
            action_module=self.action_module,
            on_all_ranks=is_sharded(self.generator),
        )
        self.batch_checks = BatchChecks(
            generator=self.generator,
            conditioning=self.conditioning,
            schema=self.schema,
            causality=self.causality,
            vae=self.frozen.vae,
            num_initial_latents=self.sampling.num_initial_latents,
        )
        self._built = True

    def quantize(self) -> None:
        """Turn the layers' weights into those of `acceleration.quantization`, with LoRA merged; they stay so."""
        if self.acceleration.quantization is not None:
            merge_lora(self.generator)
            quantize_layers(self.generator.blocks, self.acceleration.quantization)
            self._quantized = True

    def on_predict_start(self) -> None:
        """Quantize, and let ranks make other numbers of passes: see `Lockstep`."""
        self.quantize()
        self._lockstep = None
        for part in (self.action_projection, self.action_module):
            if part is not None:
                keep_gathered(part)

    @torch.no_grad()
    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Generate, and hand over what a prediction writer needs.

        `video` and `truth` are floats in [0, 1], on the CPU. Pixels leave the device as bytes: those of `video` are
        multiples of 1/255.
        """
        self._require_fits(batch, trains=False)
        batches = self.batch_generator
        num_passes = self.sampling.count_passes(*batches.blocks_and_initial(batch, self.sampling))
        switched = batches.switched_prompts(batch, self.sampling)
        self._in_lockstep.begin(num_passes + count_switch_passes(switched, self.causality))
        clock, overlaps = Clock(self.device), self.acceleration.overlap_decoding
        decoder = self.frozen.decoder(self.device)
        decode = decoder if overlaps else clock.timed("vae", decoder)
        blocks = batches.latents(batch, self.sampling, self.generator, self.conditioning)
        video, latents = video_on_host(clock.blocks(blocks), decode, overlaps)
        self._in_lockstep.end()
        seconds = clock.seconds()
        prediction = {
            "sample_id": batch["sample_id"].cpu(),
            "prompt": batch["prompt"],
            "video": video,
            "latents": latents.cpu(),
            "block_seconds": seconds["blocks"],
            **self.generation_settings(),
        }
        if "vae" in seconds:
            prediction["decode_seconds"] = sum(seconds["vae"])
        if "prompt_switches" in batch:
            prediction["prompt_switches"] = batch["prompt_switches"]
        if has_actions(batch):
            prediction |= {name: batch[name].cpu() for name in ("action", "has_action") if name in batch}
        truth = self.true_video(batch)
        if truth is not None and truth.shape == video.shape:
            prediction["truth"] = truth.cpu()
        return prediction

    @torch.no_grad()
    def true_video(self, batch: Batch) -> Tensor | None:
        """Return the video of a batch, `[B, T, 3, H, W]` in [0, 1], decoded where it comes as latents; None for none.

        What is decoded has lost what the VAE loses, so that a comparison with it does not count that loss.
        """
        if "video" in batch:
            return to_unit_range(batch["video"])
        if "latents" not in batch:
            return None
        latents = self.frozen.latents_of(batch, self.device, self.compute_dtype)
        return to_unit_range(self.frozen.decoder(self.device)(latents)).float()

    def generation_settings(self) -> dict[str, Any]:
        """Settings that predictions depend on besides weights, Trainer and batch: `seed` and `generation`."""
        settings = {
            "sampling": asdict(self.sampling),
            "causality": asdict(self.causality),
            "timestep_shift": self.schedule.shift,
            "schema": self.schema.to_dict(),
            "acceleration": asdict(self.acceleration),
            "compute_dtype": str(self.compute_dtype),
            "attention_kernels": list(hold_attention_kernels(self.device)),
            "parts": self._described,
            "release": os.environ.get("LIGHTNING_ACTION_WEIGHTS"),
        }
        return {"seed": self.sampling.seed, "generation": settings}

    def on_predict_epoch_end(self) -> None:
        self._in_lockstep.wait_for_others()

    @torch.no_grad()
    def generate(self, batch: Batch, sampling: Sampling | None = None) -> Tensor:
        """Generate the videos of a batch; each block is decoded as soon as it exists.

        Args:
            batch: `prompt` (list of B strings), `sample_id` `[B]` (noise belongs to the sample), `action` (None for no
                action; only an action module, which infers it, makes up for a missing key), and `video`
                `[B, T, 3, H, W]` in [-1, 1], of which the first `sampling.num_initial_latents` latent frames are kept.
                Without `video`: `frame_size` `[B, 2]` (H, W). The length follows from the action rows, else from
                `video`, else from `num_latents`. `prompt_switches`, for each sample a list of pairs (latent frame,
                prompt), come in place of those of `sampling`.
            sampling: Settings in place of the module's own; None takes those.

        Returns:
            Videos `[B, T, 3, H, W]` in [0, 1], on the module's device.

        Raises:
            ValueError: The batch does not say what to generate, or does not fit the model.
            RuntimeError: The model gave values that are not finite.
        """
        return whole_video(self.stream_latents(batch, sampling), self.frozen.decoder(self.device), self.device)[0]

    def probe_actions(self, strength: float) -> tuple[dict[str, list[float]], bool]:
        """Action rows that do one thing each, by label, and whether they can be scaled; see `ActionSchema`.

        Args:
            strength: Share of the way from rest to a bound that continuous columns go.
        """
        return self.schema.probe_rows(strength), self.schema.can_be_scaled

    @torch.no_grad()
    def stream_video(self, batch: Batch) -> Iterator[Tensor]:
        """Generate as `generate`, but yield the pixels of each block, `[B, t, 3, H, W]`, once they exist; keep none.

        Where `causality` has a window, a long video takes memory for the modulation of all its frames, and no more.
        """
        yield from stream_pixels(self.stream_latents(batch), self.frozen.decoder(self.device))

    @torch.no_grad()
    def stream_latents(self, batch: Batch, sampling: Sampling | None = None) -> Iterator[Tensor]:
        """Generate as `generate`, but yield the clean latents of each block, `[B, block, C, h, w]`, once they exist."""
        self._require_fits(batch, trains=False)
        yield from self.batch_generator.latents(batch, sampling or self.sampling, self.generator, self.conditioning)

    def open_session(
        self,
        num_worlds: int = 1,
        *,
        causality: BlockCausality | None = None,
        sampling: Sampling | None = None,
        max_latents: int | None = None,
    ) -> WorldSession:
        """Open a session: worlds that are stepped with actions while they are generated, see `WorldSession`.

        Args:
            num_worlds: Number of worlds that are stepped together.
            causality: Block size, window and sink in place of the module's own; None takes those. Without a window
                `max_latents` bounds how long a world can be.
            sampling: Settings in place of the module's own; None takes those. `num_initial_latents` and
                `prompt_switches` are not used.
            max_latents: Number of latent frames of the longest world, where there is no window.

        Raises:
            ValueError: The memory is not bounded, or a number is out of range.
        """
        batches = replace(self.batch_generator, causality=causality or self.causality)
        videos = batches.videos(self.generator, sampling or self.sampling)
        parts = (videos, self.conditioning, self.frozen, self.schema, self.compute_dtype, self.device)
        return WorldSession(*parts, num_worlds=num_worlds, max_latents=max_latents)

    @property
    def batch_generator(self) -> BatchGenerator:
        """What generates the videos of batches, with networks of the size of this module's."""
        settings = (self.frozen, self.schema, self.causality, self.schedule, self.acceleration)
        return BatchGenerator(*settings, self.device, self.compute_dtype)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype that the networks compute in."""
        weight = self.generator.patch_embedding.weight
        return self.sharding.compute_dtype if is_sharded(self.generator) else weight.dtype

    @property
    def _in_lockstep(self) -> Lockstep:
        if self._lockstep is None:
            self._lockstep = Lockstep(self.generator, self.compute_dtype)
        return self._lockstep

    def _require_fits(self, batch: Batch, trains: bool) -> None:
        for check in self.batch_checks.of(batch, trains):
            check()
