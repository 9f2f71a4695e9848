"""Arguments of a call of the pipeline: what is refused before anything is computed, and actions as modulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_action.action.conditioning import ActionConditioning
from lightning_action.generation.prompt_switches import PromptSwitch, prompts_by_frame
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel

ActionInputs = Mapping[str, Any]
PromptSwitches = Sequence[tuple[int, str | Sequence[str]]]


class Prompts(NamedTuple):
    """Prompts of the B videos of a call.

    Args:
        texts: B prompts; None where `embeds` are given.
        embeds: Encoded prompts, `[B, L, text_dim]`, in place of `texts`.
        negative_embeds: Encoded negative prompts, `[B, L, text_dim]`; None where none are given.
        switched: Prompts that follow, B by the latent frame from which on they hold.
    """

    texts: Sequence[str] | None
    embeds: Tensor | None
    negative_embeds: Tensor | None
    switched: Mapping[int, Sequence[str]]


_SHAPES = {
    "action_features": {2: "[B, A]", 3: "[B, F, A]"},
    "action_modulation": {4: "[B, F, 6, D]", 5: "[B, F, num_layers, 6, D]"},
}
_PRESENT = "action_present"


def check_latents(noise: Tensor, initial: Tensor | None, generator: CausalWanModel) -> None:
    """Refuse latents that are not the generator's, do not belong together, or hold NaN.

    Raises:
        ValueError: The latents have another shape; the message has the shapes expected and those that came.
    """
    given = {"noise": noise} if initial is None else {"noise": noise, "initial_latent": initial}
    for name, latents in given.items():
        if latents.ndim != 5 or latents.shape[2] != generator.out_dim or not latents.is_floating_point():
            raise ValueError(
                f"{name} must be floats [B, F, {generator.out_dim}, H, W], got {latents.dtype} {list(latents.shape)}"
            )
        if latents.shape[1] < 1:
            raise ValueError(f"{name} must have at least one frame, got {list(latents.shape)}")
        if (latents.shape[0], *latents.shape[3:]) != (noise.shape[0], *noise.shape[3:]):
            raise ValueError(
                f"{name} {list(latents.shape)} and noise {list(noise.shape)} must be alike in all but their frames"
            )
        if not bool(torch.isfinite(latents).all()):
            raise ValueError(f"{name} holds NaN or infinity")
    generator.tokens_per_frame(*noise.shape[-2:])


def check_prompts(
    prompts: Sequence[str] | None,
    embeds: Tensor | None,
    samples: Sequence[int],
    batch_size: int,
    generator: CausalWanModel,
    negative_embeds: Tensor | None = None,
) -> None:
    """Refuse prompts, or their embeds, and sample numbers that are not those of a batch of `batch_size`.

    Raises:
        ValueError: The prompts, the embeds or the numbers are not those of such a batch; the message has what was
            expected and what came.
    """
    if len(samples) != batch_size:
        raise ValueError(f"expected {batch_size} sample_id, one for each video of noise, got {len(samples)}")
    if embeds is not None:
        _check_embeds("prompt_embeds", embeds, batch_size, generator)
    elif prompts is None or isinstance(prompts, str) or len(prompts) != batch_size:
        raise ValueError(
            f"expected text_prompts, a list of {batch_size} strings, one for each video of noise, or prompt_embeds; "
            f"got {prompts!r}"
        )
    if negative_embeds is not None:
        _check_embeds("negative_prompt_embeds", negative_embeds, batch_size, generator)


def prompts_to_come(switches: PromptSwitches, batch_size: int) -> dict[int, list[str]]:
    """Arrange `prompt_switches` by latent frame, with a prompt for each video. Raises as `prompts_by_frame`."""
    by_switch: list[list[PromptSwitch]] = []
    for frame, given in switches:
        prompts = [given] * batch_size if isinstance(given, str) else given
        if len(prompts) != batch_size:
            raise ValueError(
                f"expected one prompt for all videos at latent frame {frame}, or one for each of {batch_size}, got "
                f"{given!r}"
            )
        by_switch.append([PromptSwitch(frame, prompt) for prompt in prompts])
    return prompts_by_frame([[of_videos[video] for of_videos in by_switch] for video in range(batch_size)])


def _check_embeds(name: str, embeds: Tensor, batch_size: int, generator: CausalWanModel) -> None:
    """Refuse encoded prompts that are not those of a batch of `batch_size`. Raises as `check_prompts`."""
    shape = list(embeds.shape)
    if embeds.ndim != 3 or shape[0] != batch_size or shape[1] > generator.text_len or shape[2] != generator.text_dim:
        raise ValueError(
            f"{name} must be [{batch_size}, at most {generator.text_len}, {generator.text_dim}], got {shape}"
        )
    if not bool(torch.isfinite(embeds).all()):
        raise ValueError(f"{name} hold NaN or infinity")


def given_modulation(
    inputs: ActionInputs,
    conditioning: ActionConditioning,
    generator: CausalWanModel,
    start: Tensor,
    num_initial_latents: int,
    causality: BlockCausality,
) -> Tensor:
    """Compute the modulation of a whole video from the `action_inputs` of a call.

    Args:
        inputs: Action features or ready modulation, of all frames or of those behind the initial ones.
        conditioning: Way from actions to modulation.
        generator: Network that takes it.
        start: Tensor `[B, F, C, H, W]` of the batch, length, device and dtype of the video's latents.
        num_initial_latents: Number of latent frames at its beginning that are given.
        causality: Cut of the video into blocks.

    Raises:
        ValueError: A key is unknown or missing, or a value has another shape or is not finite.
    """
    batch_size, num_frames = start.shape[:2]
    action, present = _read(inputs, batch_size)
    lengths = {action.shape[1]} if action.ndim > 2 else set()
    lengths |= set() if present is None else {present.shape[1]}
    length = max(lengths, default=num_frames)
    if len(lengths) > 1 or length not in (num_frames, num_frames - num_initial_latents):
        raise ValueError(
            f"action_inputs are for {' and '.join(map(str, sorted(lengths)))} latent frames: expected "
            f"{num_frames}, one for each of the video, or {num_frames - num_initial_latents}, one for each generated"
        )
    missing = num_frames - length
    blocks = [range(max(block.start - missing, 0), block.stop - missing) for block in causality.split(num_frames)]
    modulation = conditioning.of_blocks(action, [block for block in blocks if len(block)], start, present)
    generator.require_action_modulation(modulation, batch_size, length)
    nothing = modulation.new_zeros(batch_size, missing, *modulation.shape[2:])
    return torch.cat([nothing, modulation], dim=1)


def _read(inputs: ActionInputs, batch_size: int) -> tuple[Tensor, Tensor | None]:
    """The one kind of action there is, and which frames have it."""
    kinds = [kind for kind in _SHAPES if kind in inputs]
    if len(kinds) != 1 or inputs.keys() - {*_SHAPES, _PRESENT}:
        raise ValueError(
            f"action_inputs hold either {' or '.join(_SHAPES)}, and {_PRESENT} where some frames have no action; got "
            f"{', '.join(map(str, inputs)) or 'nothing'} (other keys need a process_action that reads them)"
        )
    kind = kinds[0]
    action, present = inputs[kind], inputs.get(_PRESENT)
    if not isinstance(action, Tensor) or action.ndim not in _SHAPES[kind]:
        found = list(action.shape) if isinstance(action, Tensor) else type(action).__name__
        raise ValueError(f"{kind} must be {' or '.join(_SHAPES[kind].values())}, got {found}")
    if not bool(torch.isfinite(action).all()):
        raise ValueError(f"{kind} hold NaN or infinity")
    if present is not None and (present.ndim != 2 or present.dtype != torch.bool):
        raise ValueError(f"{_PRESENT} must be bool [B, F], got {present.dtype} {list(present.shape)}")
    for name, tensor in ((kind, action), (_PRESENT, present)):
        if tensor is not None and len(tensor) != batch_size:
            raise ValueError(f"{name} is for a batch of {len(tensor)}, the noise for one of {batch_size}")
    return action, present
