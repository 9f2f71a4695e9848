"""Generation without a Trainer: noise, prompts and actions in, video out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lightning_action.action.conditioning import BlockModulation, InferActions, for_prompts
from lightning_action.action.inputs import Action, ActionInputs, ActionToModulation
from lightning_action.action.projection import ActionModulationProjection, SummedModulation
from lightning_action.action.schema import ActionSchema
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise, starting_from
from lightning_action.frozen.holder import FrozenParts, move, to_unit_range
from lightning_action.frozen.interfaces import TextEncoder, VideoCodec
from lightning_action.generation.clock import StageSeconds, Stopwatch
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generation.video import joined
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel
from lightning_action.pipeline.arguments import check_batch, check_latents
from lightning_action.pipeline.parts import (
    parts_of_adapter,
    parts_of_release,
    parts_of_run,
    warn_of_unused_actions,
)

ProcessAction = Callable[[Tensor, int, ActionInputs | None], Action | None]


class ActionCausalInferencePipeline(nn.Module):
    """Generates videos block by block, with actions that are given, inferred by a module, or decided by a function.

    The last layer of a fresh action projection is zero and a missing action is no modulation, so without (trained)
    actions the video is that of the base model, bit for bit.

    Args:
        generator: the network.
        text_encoder: prompts to vectors.
        vae: latents to pixels.
        action_module: infers the action of every block but the first from the latents before it, `[B, F', C, H, W]` to
            `[B, action_dim]`; asked where `inference` gets no `action_inputs`. See `action.modules` for ready ones.
        action_dim: width A of an action vector, for the projection that is built here.
        enable_adaln_zero: build an action projection, unless one is given; False is the base model, which takes no
            actions.
        action_projection: a projection that exists already, for example a trained one; `SummedModulation` for several
            conditions at once.
        process_action: decides the action of every block, see the method of that name.
        causality: block size, window and sink.
        sampling: sampler, action guidance and the seed of the noise that later denoising steps add (the noise of the
            first one is given); `num_initial_latents` is not used.
        timestep_shift: of the noise levels.
        action_modulation_scale: multiplies the modulation that the projection gives, not a ready one.
        schema: what raw actions are, for `encode_actions`.

    Raises:
        ValueError: actions are to act, but `enable_adaln_zero` is False.
    """

    def __init__(
        self,
        generator: CausalWanModel,
        text_encoder: TextEncoder,
        vae: VideoCodec,
        action_module: InferActions | None = None,
        action_dim: int = 512,
        enable_adaln_zero: bool = True,
        action_projection: ActionModulationProjection
        | SummedModulation
        | Sequence[ActionModulationProjection]
        | None = None,
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
        self.generator = generator
        self.frozen = FrozenParts(text_encoder, vae)
        self.action_module = action_module
        if isinstance(action_projection, Sequence):
            action_projection = SummedModulation(action_projection)
        self.action_projection: ActionModulationProjection | SummedModulation | None = action_projection
        if enable_adaln_zero and action_projection is None:
            self.action_projection = ActionModulationProjection(action_dim, generator.dim).to(self._weight)
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
        """A pipeline with the weights of a run, or of any checkpoint of the family.

        Args:
            path: a file or folder with the generator of any checkpoint of the family; or with `config` the checkpoint
                of a run. None looks for a released generator in the folder that the environment variable
                `LIGHTNING_ACTION_WEIGHTS` names.
            config: configuration of the run, as `fit` saved it, or several that stack; everything comes from the run
                then.
            generator: takes the weights at `path`; None builds one of the size that they have.
            dtype: precision of such a new generator; None takes that of the file.
            adapter: file of what actions added to this generator, as `export --format adapter` writes it.
            any_base: also use the adapter on a generator that it was not trained on.
            allow: modules whose classes `config` may name, besides `lightning_action`, `torch` and `lightning`.
            settings: any other argument of the constructor, in place of what was found. Text encoder and VAE are
                otherwise those of the run, or `UMT5TextEncoder` and `WanVideoVAE` from the folder of the environment
                variable.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or belongs to another model, or is a run's and comes without `config`; or
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
    ) -> Action | None:
        """Decide the action of the next block.

        Override it in a subclass, or pass a function of the same arguments as `process_action`. It then decides alone:
        `action_inputs` are only handed on to it, and `action_module` is asked only if it does so itself.

        Args:
            generated_frames: latents of the video so far, initial ones included, `[B, F', C, H, W]`; F' is 0 at the
                first block.
            current_frame_idx: first latent frame of the block, F'.
            action_inputs: what `inference` was called with.

        Returns:
            For a block of f frames: features `[B, A]` or `[B, f, A]` (a dict of them by condition for
            `SummedModulation`), ready modulation `[B, f, 6, D]` or `[B, f, num_layers, 6, D]`, or None for no action.
        """
        if self._process_action is None:
            return None
        return self._process_action(generated_frames, current_frame_idx, action_inputs)

    def encode_actions(self, rows: Tensor, num_latents: int) -> ActionInputs:
        """Raw action rows `[B, rows, columns]`, as `schema` says, to `action_inputs` for a video of `num_latents`.

        Raises:
            ValueError: there is no schema, or the rows do not fit it.
        """
        if self.schema is None:
            raise ValueError("this pipeline has no action schema: give it one, or hand in action_features")
        features, present = self.schema.encode(rows, num_latents)
        return {"action_features": features, "action_present": present}

    @torch.no_grad()
    def encode_video(self, video: Tensor) -> Tensor:
        """Pixels `[B, T, 3, H, W]` in [-1, 1], T = 1 for an image, to an `initial_latent` `[B, F0, C, h, w]`."""
        self.frozen.vae.load()
        self.frozen.to(self._weight.device)
        return self.frozen.encode_video(video)

    @overload
    def inference(
        self,
        noise: Tensor,
        text_prompts: Sequence[str] | None = ...,
        prompt_embeds: Tensor | None = ...,
        action_inputs: ActionInputs | None = ...,
        initial_latent: Tensor | None = ...,
        return_latents: Literal[False] = ...,
        profile: Literal[False] = ...,
        low_memory: bool = ...,
        sample_id: Sequence[int] | None = ...,
        image: ImageCondition = ...,
    ) -> Tensor: ...

    @overload
    def inference(
        self,
        noise: Tensor,
        text_prompts: Sequence[str] | None = ...,
        prompt_embeds: Tensor | None = ...,
        action_inputs: ActionInputs | None = ...,
        initial_latent: Tensor | None = ...,
        return_latents: bool = ...,
        profile: bool = ...,
        low_memory: bool = ...,
        sample_id: Sequence[int] | None = ...,
        image: ImageCondition = ...,
    ) -> Any: ...

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
    ) -> Any:
        """Generate the videos of a batch.

        Args:
            noise: what the F frames to be generated start from, `[B, F, C, H, W]`; 480p Wan 2.1 has
                `[B, 21, 16, 60, 104]`. F0 + F must be whole blocks, or F alone behind a single initial latent, which
                then is a block of its own.
            text_prompts: B prompts.
            prompt_embeds: encoded prompts `[B, L, text_dim]`, in place of `text_prompts`.
            action_inputs: `action_features` `[B, A]` (the same for all frames) or `[B, F, A]`, or ready modulation
                `action_modulation`, `[B, F, 6, D]` or `[B, F, num_layers, 6, D]`. Either may be for all F0 + F frames,
                or for the F generated ones, in which case the initial ones have no action. With `SummedModulation`,
                `action_features` is a dict of features by condition. `action_present`, bool `[B, F]`, may
                say which frames have an action.
            initial_latent: latents that the video starts with, `[B, F0, C, H, W]`: one of an image, or several of a
                video that is continued.
            return_latents: return the latents too.
            profile: return the seconds of each stage too.
            low_memory: text encoder and VAE are on the device only while they work, and the video is decoded block by
                block to the CPU.
            sample_id: a number for each video, to which the noise of later steps belongs; 0 ... B - 1 if not given.
            image: what an image-to-video model sees besides, for all F0 + F frames.

        Returns:
            Video `[B, T, 3, H, W]` in [0, 1] with T = 1 + r (F0 + F - 1); with `return_latents` and `profile` a tuple
            of the video, the latents `[B, F0 + F, C, H, W]` and `StageSeconds`, without what was not asked for.

        Raises:
            ValueError: an argument is missing, does not fit the model, or holds NaN; found before anything is computed.
            RuntimeError: the model gave values that are not finite.
        """
        check_latents(noise, initial_latent, self.generator)
        initial = noise[:, :0] if initial_latent is None else initial_latent
        samples = range(len(noise)) if sample_id is None else sample_id
        check_batch(text_prompts, prompt_embeds, samples, len(noise), self.generator)
        start = torch.cat([initial.to(self._weight), noise.to(self._weight)], dim=1)
        causality = self._causality(initial.shape[1], noise.shape[1])
        causality.split(start.shape[1])
        given = self._given_modulation(action_inputs, start, initial.shape[1])
        if prompt_embeds is None:
            self.frozen.text_encoder.load()
        self.frozen.vae.load()
        self.frozen.to("cpu" if low_memory else start.device)

        stopwatch = Stopwatch(start.device, profile)
        text = self._encode_text(text_prompts, low_memory) if prompt_embeds is None else prompt_embeds.to(self._weight)
        text_seconds = stopwatch.lap()
        modulation = self._block_modulation(action_inputs, text, start) if given is None else given
        blocks, block_seconds = [], []
        for block in self._stream(start, text, causality, modulation, initial.shape[1], samples, image):
            blocks.append(block)
            block_seconds.append(stopwatch.lap())
        latents = joined(blocks)
        video = self._decode(blocks, low_memory)
        seconds = StageSeconds(text=text_seconds, blocks=block_seconds, vae=stopwatch.lap())
        extras = [part for part, asked in ((latents, return_latents), (seconds, profile)) if asked]
        return (video, *extras) if extras else video

    @property
    def _weight(self) -> Tensor:
        """Stands for device and type of the generator."""
        return self.generator.patch_embedding.weight

    @property
    def _hook(self) -> ProcessAction | None:
        overridden = type(self).process_action is not ActionCausalInferencePipeline.process_action
        return self.process_action if overridden or self._process_action is not None else None

    def _causality(self, num_initial: int, num_generated: int) -> BlockCausality:
        """Before whole blocks of noise an image is a block of its own; else it shares the first block with noise."""
        alone = num_initial == 1 and num_generated % self.causality.num_frame_per_block == 0
        return replace(self.causality, independent_first_frame=True) if alone else self.causality

    def _encode_text(self, prompts: Sequence[str] | None, low_memory: bool) -> Tensor:
        encoder = self.frozen.text_encoder
        move(encoder, self._weight.device)
        text = self.frozen.encode_text(prompts or ()).to(self._weight)
        if low_memory:
            move(encoder, torch.device("cpu"))
        return text

    def _stream(
        self,
        start: Tensor,
        text: Tensor,
        causality: BlockCausality,
        modulation: Tensor | BlockModulation | None,
        num_initial: int,
        sample_id: Sequence[int],
        image: ImageCondition,
    ) -> Iterator[Tensor]:
        _, num_frames, channels, height, width = start.shape
        shape = (channels, height, width)
        later = frame_noise(self.sampling.seed, sample_id, shape, start.device, start.dtype)
        session = CausalRollout(
            self.generator,
            text,
            causality,
            self.sampling.sampler(self.schedule),
            starting_from(start, later),
            shape,
            num_frames,
            self.sampling.action_guidance_scale,
            image.to(start),
        )
        return rollout(session, num_frames, modulation, start[:, :num_initial] if num_initial else None)

    def _decode(self, blocks: list[Tensor], low_memory: bool) -> Tensor:
        vae = self.frozen.vae
        move(vae, blocks[0].device)
        if not low_memory:
            return to_unit_range(self.frozen.decode(torch.cat(blocks, dim=1))).float()
        decode = vae.streaming_decoder()
        video = torch.cat([to_unit_range(decode(block)).float().cpu() for block in blocks], dim=1)
        move(vae, torch.device("cpu"))
        return video

    def _given_modulation(self, action_inputs: ActionInputs | None, start: Tensor, num_initial: int) -> Tensor | None:
        """Modulation of the whole video, where the caller gave actions and no function decides them."""
        if not action_inputs or self._hook is not None:
            return None
        return self._to_modulation.whole_video(action_inputs, start.shape[0], start.shape[1], num_initial)

    def _block_modulation(
        self, action_inputs: ActionInputs | None, text: Tensor, start: Tensor
    ) -> BlockModulation | None:
        """Modulation of a block, decided when its past is known."""
        module = self.action_module
        decide = self._hook or (None if module is None else _from_history(for_prompts(module, text)))
        if decide is None:
            return None
        to_modulation = self._to_modulation

        def modulation(block: range, history: list[Tensor]) -> Tensor | None:
            frames = torch.cat([start[:, :0], *history], dim=1)
            action = decide(frames, block.start, action_inputs)
            return None if action is None else to_modulation(action, len(start), len(block))

        return modulation

    @property
    def _to_modulation(self) -> ActionToModulation:
        if self.action_projection is None:
            raise ValueError(
                "this pipeline is the base model (enable_adaln_zero=False) and takes no actions: leave them out, or "
                "enable it"
            )
        return ActionToModulation(
            self.action_projection, self.action_modulation_scale, self.generator.num_layers, self.generator.dim
        )


def _from_history(infer: InferActions) -> ProcessAction:
    def decide(generated_frames: Tensor, current_frame_idx: int, action_inputs: ActionInputs | None) -> Tensor | None:
        return infer(generated_frames) if current_frame_idx else None

    return decide
