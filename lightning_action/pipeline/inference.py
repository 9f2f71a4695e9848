"""Generation without a Trainer: noise, prompts and actions in, video out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_action.action.conditioning import ActionConditioning, BlockModulation, InferActions
from lightning_action.action.projection import ActionModulationProjection
from lightning_action.action.schema import ActionSchema
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import TextEncoder, VideoCodec
from lightning_action.generation.clock import Clock
from lightning_action.generation.prompt_switches import require_switchable
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import VideoGenerator, whole_video
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel
from lightning_action.pipeline.inputs import (
    ActionInputs,
    Prompts,
    PromptSwitches,
    check_latents,
    check_prompts,
    given_modulation,
    prompts_to_come,
)
from lightning_action.pipeline.parts import (
    parts_of_adapter,
    parts_of_release,
    parts_of_run,
    warn_of_unused_actions,
)

ProcessAction = Callable[[Tensor, int, ActionInputs | None], Tensor | None]


class ActionCausalInferencePipeline(nn.Module):
    """Generates videos block by block, with actions that are given, inferred by a module, or decided by a function.

    The last layer of a fresh action projection is zero and a missing action is no modulation, so without (trained)
    actions the video is that of the base model, bit for bit.

    Args:
        generator: Network that predicts velocities.
        text_encoder: Encoder of prompts.
        vae: Codec of videos.
        action_module: Network that infers the action of every block but the first from the latents before it,
            `[B, F', C, H, W]` to `[B, action_dim]`; asked where `inference` gets no `action_inputs`. See
            `action.modules` for ready ones.
        action_dim: Width A of an action vector, for the projection that is built here.
        enable_adaln_zero: True lets actions act: an action projection is built, unless one is given. False is the base
            model, which takes no actions.
        action_projection: Projection that exists already, for example a trained one.
        process_action: Function that decides the action of every block, see the method of that name.
        causality: Block size, window and sink.
        sampling: Sampler, action guidance and the seed of the noise that later denoising steps add (the noise of the
            first one is given); `num_initial_latents` is not used.
        timestep_shift: Shift of the noise levels.
        action_modulation_scale: Factor of the modulation that the projection gives, not of a ready one.
        schema: Meaning of raw actions, for `encode_actions`.

    Raises:
        ValueError: Actions are to act, but `enable_adaln_zero` is False.
    """

    def __init__(
        self,
        generator: CausalWanModel,
        text_encoder: TextEncoder,
        vae: VideoCodec,
        action_module: InferActions | None = None,
        action_dim: int = 512,
        enable_adaln_zero: bool = True,
        action_projection: ActionModulationProjection | None = None,
        process_action: ProcessAction | None = None,
        causality: BlockCausality = BlockCausality(num_frame_per_block=3),
        sampling: Sampling = Sampling(denoising_step_list=[1000, 750, 500, 250]),
        timestep_shift: float = 5.0,
        action_modulation_scale: float = 1.0,
        schema: ActionSchema | None = None,
    ) -> None:
        super().__init__()
        self._process_action = process_action
        acting = (action_module, action_projection, self._hook)
        if not enable_adaln_zero and any(part is not None for part in acting):
            raise ValueError(
                "enable_adaln_zero=False is the base model, which takes no actions: expected neither action_module nor "
                "action_projection nor process_action; leave them out, or enable it"
            )
        if enable_adaln_zero and action_projection is None:
            action_projection = ActionModulationProjection(action_dim, generator.dim)
            action_projection.to(generator.patch_embedding.weight)
        self.generator = generator
        self.frozen = FrozenParts(text_encoder, vae)
        self.action_module = action_module
        self.action_projection = action_projection
        self.causality = causality
        self.sampling = sampling
        self.schedule = FlowMatchSchedule(timestep_shift)
        self.action_modulation_scale = action_modulation_scale
        self.schema = schema
        self.eval()

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path | None = None,
        config: str | Path | Sequence[str | Path] | None = None,
        generator: CausalWanModel | None = None,
        dtype: torch.dtype | None = None,
        adapter: str | Path | None = None,
        any_base: bool = False,
        allow: Sequence[str] = (),
        **settings: Any,
    ) -> Self:
        """Build a pipeline with the weights of a run, or of any checkpoint of the family.

        Args:
            path: File or folder with the generator of any checkpoint of the family; or with `config` the checkpoint
                of a run. None looks for a released generator in the folder that the environment variable
                `LIGHTNING_ACTION_WEIGHTS` names.
            config: Configuration of the run, as `fit` saved it, or several that stack; everything comes from the run
                then.
            generator: Network that takes the weights at `path`; None builds one of the size that they have.
            dtype: Precision of such a new generator; None takes that of the file.
            adapter: File of what actions added to this generator, as `export --format adapter` writes it.
            any_base: Use the adapter on a generator that it was not trained on.
            allow: Modules whose classes `config` may name, besides `lightning_action`, `torch` and `lightning`.
            settings: Further arguments of the constructor, in place of what was found. Text encoder and VAE are
                otherwise those of the run, or `UMT5TextEncoder` and `WanVideoVAE` from the folder of the environment
                variable.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is damaged, or belongs to another model, or is a run's and comes without `config`; or
                arguments contradict each other.
        """
        if config is not None and (generator is not None or dtype is not None):
            raise ValueError("a run brings its generator, as it was trained: leave generator and dtype out, or config")
        found = parts_of_release(path, generator, dtype) if config is None else parts_of_run(config, path, allow)
        if adapter is not None:
            found |= parts_of_adapter(adapter, found["generator"], any_base)
        elif config is None and "action_projection" not in settings:
            warn_of_unused_actions(path)
        return cls(**{**found, **settings})

    def process_action(
        self, generated_frames: Tensor, current_frame_idx: int, action_inputs: ActionInputs | None
    ) -> Tensor | None:
        """Decide the action of the next block.

        Override it in a subclass, or pass a function of the same arguments as `process_action`. It then decides alone:
        `action_inputs` are only handed on to it, and `action_module` is asked only if it does so itself.

        Args:
            generated_frames: Latents of the video so far, initial ones included, `[B, F', C, H, W]`; F' is 0 at the
                first block.
            current_frame_idx: First latent frame of the block, F'.
            action_inputs: Argument that `inference` was called with.

        Returns:
            Result for a block of f frames: features `[B, A]` or `[B, f, A]`, ready modulation `[B, f, 6, D]` or
            `[B, f, num_layers, 6, D]`, or None for no action.
        """
        if self._process_action is None:
            return None
        return self._process_action(generated_frames, current_frame_idx, action_inputs)

    def encode_actions(self, rows: Tensor, num_latents: int) -> ActionInputs:
        """Encode raw action rows `[B, rows, columns]` as `action_inputs` for a video of `num_latents` latent frames.

        Raises:
            ValueError: The pipeline has no schema, or the rows do not fit it.
        """
        features, present = self._conditioning.required_schema.encode(rows, num_latents)
        return {"action_features": features, "action_present": present}

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Encode pixels `[B, T, 3, H, W]` in [-1, 1], T = 1 for an image, as an `initial_latent` `[B, F0, C, h, w]`."""
        self.frozen.vae.load()
        return self.frozen.encode_video(video, self._weight.device)

    @torch.no_grad()
    def inference(
        self,
        noise: Tensor,
        text_prompts: Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        action_inputs: ActionInputs | None = None,
        initial_latent: Tensor | None = None,
        return_latents: bool = False,
        profile: bool = False,
        low_memory: bool = False,
        sample_id: Sequence[int] | None = None,
        image: ImageCondition = NO_IMAGE,
        negative_prompt_embeds: Tensor | None = None,
        prompt_switches: PromptSwitches | None = None,
    ) -> Any:
        """Generate the videos of a batch.

        Args:
            noise: Noise that F frames start from, `[B, F, C, H, W]`, for 480p Wan 2.1 `[B, 21, 16, 60, 104]`. F0 + F
                must be whole blocks, or F alone behind a single initial latent, then a block of its own.
            text_prompts: B prompts.
            prompt_embeds: Encoded prompts `[B, L, text_dim]`, in place of `text_prompts`.
            action_inputs: Actions: `action_features` `[B, A]` (the same for all frames) or `[B, F, A]`, or ready
                modulation `action_modulation`, `[B, F, 6, D]` or `[B, F, num_layers, 6, D]`. Either may be for all
                F0 + F frames, or for the F generated ones, in which case the initial ones have no action.
                `action_present`, bool `[B, F]`, may say which frames have an action.
            initial_latent: Latents that the video starts with, `[B, F0, C, H, W]`: one of an image, or several of a
                video that is continued.
            return_latents: Return the latents too.
            profile: Return the seconds of each stage too.
            low_memory: Keep text encoder and VAE on the device only while they work, and decode the video to the CPU
                after the KV cache was freed.
            sample_id: Number of each video, to which the noise of later steps belongs; 0 ... B - 1 if not given.
            image: Condition that an image-to-video model sees besides, for all F0 + F frames.
            negative_prompt_embeds: Encoded negative prompts `[B, L, text_dim]`, in place of `sampling.negative_prompt`;
                only guidance by prompts looks at them.
            prompt_switches: Prompts that follow: pairs of the latent frame from which on one holds, the first of a
                block behind the initial ones, and the prompt, or B prompts. None takes those of `sampling`.

        Returns:
            Video `[B, T, 3, H, W]` in [0, 1] with T = 1 + r (F0 + F - 1); with `return_latents` and `profile` a tuple
            of the video, the latents `[B, F0 + F, C, H, W]` and the seconds (a dict of `text`, `blocks`, a list, and
            `vae`), without what was not asked for.

        Raises:
            ValueError: An argument is missing, does not fit the model, or holds NaN; found before anything is computed.
            RuntimeError: The model gave values that are not finite.
        """
        check_latents(noise, initial_latent, self.generator)
        samples = range(len(noise)) if sample_id is None else sample_id
        check_prompts(text_prompts, prompt_embeds, samples, len(noise), self.generator, negative_prompt_embeds)
        switched = self._switched(prompt_switches, len(noise))
        prompts = Prompts(text_prompts, prompt_embeds, negative_prompt_embeds, switched)
        clock = Clock(self._weight.device)
        blocks = self._blocks(noise, prompts, action_inputs, initial_latent, samples, image, clock, low_memory)
        video, latents = self._decode(clock.blocks(blocks), clock, low_memory)
        extras: list[Any] = [latents] if return_latents else []
        if profile:
            extras.append(_stages(clock))
        return (video, *extras) if extras else video

    def _blocks(
        self,
        noise: Tensor,
        prompts: Prompts,
        action_inputs: ActionInputs | None,
        initial_latent: Tensor | None,
        samples: Sequence[int],
        image: ImageCondition,
        clock: Clock,
        low_memory: bool,
    ) -> Iterator[Tensor]:
        """Prepare all that blocks are made of; asking for one makes it."""
        weight = self._weight
        initial = (noise[:, :0] if initial_latent is None else initial_latent).to(weight)
        start = torch.cat([initial, noise.to(weight)], dim=1)
        num_frames, num_initial_latents = start.shape[1], initial.shape[1]
        videos = self._video_generator(num_initial_latents, noise.shape[1])
        require_switchable(prompts.switched, videos.causality.split(num_frames), num_initial_latents)
        given = self._given_modulation(action_inputs, start, num_initial_latents, videos.causality)
        text, negative, switches = self._encode_prompts(prompts, len(noise), clock, low_memory)
        modulation = self._decided_modulation(action_inputs, text) if given is None else given
        shape = (num_frames, start.shape[2], start.shape[3], start.shape[4])
        known = initial if num_initial_latents else None
        return videos.stream_latents(
            text, samples, shape, modulation, known, start, image.to(start), negative, switches
        )

    def _switched(self, switches: PromptSwitches | None, batch_size: int) -> dict[int, list[str]]:
        if switches is None:
            switches = [(switch.latent_frame, switch.prompt) for switch in self.sampling.prompt_switches]
        return prompts_to_come(switches, batch_size)

    @property
    def _weight(self) -> Tensor:
        """Weight that stands for device and type of the generator."""
        return self.generator.patch_embedding.weight

    @property
    def _hook(self) -> ProcessAction | None:
        overridden = type(self).process_action is not ActionCausalInferencePipeline.process_action
        return self.process_action if overridden or self._process_action is not None else None

    @property
    def _conditioning(self) -> ActionConditioning:
        return ActionConditioning(
            self.schema, self.action_projection, self.action_module, scale=self.action_modulation_scale
        )

    def _video_generator(self, num_initial_latents: int, num_generated: int) -> VideoGenerator:
        """Make an image a block of its own before whole blocks of noise; else it shares the first with noise."""
        alone = num_initial_latents == 1 and num_generated % self.causality.num_frame_per_block == 0
        causality = replace(self.causality, independent_first_frame=True) if alone else self.causality
        return VideoGenerator(self.generator, causality, self.sampling, self.schedule)

    def _load(self, encodes_text: bool, low_memory: bool) -> None:
        if encodes_text:
            self.frozen.text_encoder.load()
        self.frozen.vae.load()
        if low_memory:
            self.frozen.park()

    def _encode_prompts(
        self, prompts: Prompts, batch_size: int, clock: Clock, low_memory: bool
    ) -> tuple[Tensor, Tensor | None, dict[int, Tensor]]:
        """Load what is needed, and encode prompts, negative ones where they are asked for, and those that follow."""
        negative = prompts.negative_embeds
        encodes_negative = self.sampling.takes_negative_prompt and negative is None
        self._load(prompts.embeds is None or encodes_negative or bool(prompts.switched), low_memory)
        encode = clock.timed("text", self._encode_text)
        text = encode(prompts.texts, low_memory) if prompts.embeds is None else prompts.embeds.to(self._weight)
        if encodes_negative:
            negative = encode([self.sampling.negative_prompt] * batch_size, low_memory)
        switches = {frame: encode(following, low_memory) for frame, following in prompts.switched.items()}
        return text, None if negative is None else negative.to(self._weight), switches

    def _encode_text(self, prompts: Sequence[str] | None, low_memory: bool) -> Tensor:
        text = self.frozen.encode_text(prompts or (), self._weight.device, self._weight.dtype)
        if low_memory:
            self.frozen.park()
        return text

    def _given_modulation(
        self, action_inputs: ActionInputs | None, start: Tensor, num_initial_latents: int, causality: BlockCausality
    ) -> Tensor | None:
        """Modulation of all frames, known beforehand; None where it is decided block by block."""
        if not action_inputs or self._hook is not None:
            return None
        return given_modulation(
            action_inputs, self._conditioning, self.generator, start, num_initial_latents, causality
        )

    def _decided_modulation(self, action_inputs: ActionInputs | None, text: Tensor) -> BlockModulation | None:
        """Modulation of a block, decided when its past is known."""
        decide = self._hook
        if decide is None:
            return self._conditioning.of_inferred(text)
        return self._conditioning.of_decided(lambda block, history: decide(history, block.start, action_inputs))

    def _decode(self, blocks: Iterator[Tensor], clock: Clock, low_memory: bool) -> tuple[Tensor, Tensor]:
        """Decode blocks while they are made, or to spare memory when all are; return pixels and latents."""
        device = self._weight.device
        if low_memory:
            blocks = iter(list(blocks))
        decode = clock.timed("vae", self.frozen.decoder(device))
        video, latents = whole_video(blocks, decode, "cpu" if low_memory else device)
        if low_memory:
            self.frozen.park()
        return video, latents


def _stages(clock: Clock) -> dict[str, Any]:
    seconds = clock.seconds()
    return {"text": sum(seconds.get("text", [])), "blocks": seconds["blocks"], "vae": sum(seconds["vae"])}
