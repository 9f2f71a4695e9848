"""A rollout of `small_generator`, with few steps."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.guidance import Guidance
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.samplers import Sampler, euler, few_step
from lightning_action.generation.rollout import CausalRollout
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import NO_IMAGE, ImageCondition
from lightning_action.generator.model import CausalWanModel

SCHEDULE = FlowMatchSchedule(5.0)
FEW = partial(few_step, timesteps=(1000.0, 750.0, 400.0), schedule=SCHEDULE)
EULER = partial(euler, sigmas=SCHEDULE.euler_sigmas(4))
SHAPE = (5, 4, 3)


def session(
    generator: CausalWanModel,
    text: Tensor,
    causality: BlockCausality,
    num_frames: int,
    sampler: Sampler = FEW,
    samples: tuple[int, ...] = (4, 9),
    action_guidance_scale: float = 1.0,
    image: ImageCondition = NO_IMAGE,
    shape: tuple[int, int, int] = SHAPE,
    **settings: Any,
) -> CausalRollout:
    noise = frame_noise(7, samples, shape, text.device, text.dtype)
    named = {"guidance": Guidance(action_scale=action_guidance_scale), "image": image, **settings}
    return CausalRollout(generator, text, causality, sampler, noise, shape, num_frames, **named)
