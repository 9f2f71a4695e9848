"""A clip in training is a clip in generation; its gradient is that of the exit step, and of nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.samplers import few_step
from lightning_action.distillation.self_rollout import SelfRollout, SelfRollouts, exit_probabilities
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import BlockContext, Sampling
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import small_generator, small_inputs

SCHEDULE = FlowMatchSchedule(5.0)
STEPS = [1000.0, 700.0, 300.0]
SHAPE = (5, 4, 3)
# Blocks of 2, a window that is full after 3 of them, and a sink.
WINDOWED = BlockCausality(2, 5, 1)
# A first frame alone, then blocks of 3.
IMAGE = BlockCausality(3, None, 0, independent_first_frame=True)
INSIDE = BlockCausality(3, 7, 2)
CASES = {"windowed": (WINDOWED, 10, 0), "image": (IMAGE, 7, 1), "inside a block": (INSIDE, 12, 1)}


def made(
    generator: CausalWanModel,
    causality: BlockCausality,
    inputs: dict[str, Tensor],
    exit_step: int,
    num_initial: int,
    context: BlockContext = "clean",
) -> tuple[SelfRollouts, SelfRollout]:
    num_frames = inputs["clean"].shape[1]
    timesteps = SCHEDULE.denoising_timesteps(STEPS, warp_denoising_step=True)
    rollouts = SelfRollouts(VideoGenerator(generator, causality, Sampling(context=context), SCHEDULE), timesteps)
    text = inputs["text"]
    session = rollouts.begin(text, frame_noise(3, (4, 9), SHAPE, dtype=text.dtype), (num_frames, *SHAPE))
    initial = inputs["clean"][:, :num_initial] if num_initial else None
    return rollouts, rollouts.make(session, num_frames, exit_step, inputs["modulation"], initial)


def generated(
    generator: CausalWanModel,
    causality: BlockCausality,
    inputs: dict[str, Tensor],
    num_steps: int,
    num_initial: int,
    context: BlockContext = "clean",
) -> Tensor:
    """The same with what `predict` generates with."""
    sampling = Sampling(denoising_step_list=STEPS[:num_steps], num_initial_latents=num_initial, seed=3, context=context)
    videos = VideoGenerator(generator, causality, sampling, SCHEDULE)
    initial = inputs["clean"][:, :num_initial] if num_initial else None
    shape = (inputs["clean"].shape[1], *SHAPE)
    with torch.no_grad():
        return torch.cat(
            list(videos.stream_latents(inputs["text"], (4, 9), shape, inputs["modulation"], initial)), dim=1
        )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_a_clip_in_training_is_one_of_generation(case: str, exit_step: int) -> None:
    causality, num_frames, num_initial = CASES[case]
    generator, inputs = small_generator(), small_inputs(num_frames)
    _, clip = made(generator, causality, inputs, exit_step, num_initial)
    expected = generated(generator, causality, inputs, exit_step + 1, num_initial)
    assert torch.equal(clip.clean, expected)
    assert (
        clip.clean - generated(generator, causality, inputs, 3 - exit_step // 2 * 2, num_initial)
    ).abs().max() > 0.01


def test_without_the_clean_pass_a_clip_would_be_another() -> None:
    """The control: what others skipped shows in every block but the first."""
    generator, inputs = small_generator(), small_inputs(10)
    clean = generated(generator, WINDOWED, inputs, 3, 0)
    skipped = generated(generator, WINDOWED, inputs, 3, 0, "last_step")
    assert torch.equal(clean[:, :2], skipped[:, :2])
    assert (clean[:, 2:] - skipped[:, 2:]).abs().amax(dim=(0, 2, 3, 4)).min() > 1e-3


@pytest.mark.parametrize("exit_step", [0, 1, 2])
def test_noisy_context_is_that_of_generation_whatever_the_exit(exit_step: int) -> None:
    generator, inputs = small_generator(), small_inputs(10)
    _, clip = made(generator, WINDOWED, inputs, exit_step, 0, "last_step")
    assert torch.equal(clip.clean, generated(generator, WINDOWED, inputs, 3, 0, "last_step"))
    again = clip.with_gradient(generator, inputs["text"], SCHEDULE, inputs["modulation"])
    torch.testing.assert_close(again, clip.exited, atol=2e-5, rtol=0)
    assert torch.equal(clip.exited, clip.clean) == (exit_step == 2)
    assert exit_step == 2 or (clip.exited - clip.clean).abs().max() > 0.01


@pytest.mark.parametrize("case", CASES)
def test_the_exit_step_passed_again_gives_the_clip(case: str) -> None:
    causality, num_frames, num_initial = CASES[case]
    generator, inputs = small_generator(), small_inputs(num_frames)
    _, clip = made(generator, causality, inputs, 1, num_initial)
    again = clip.with_gradient(generator, inputs["text"], SCHEDULE, inputs["modulation"])
    # Keys lie in another order than in the ring, so sums are in another order.
    torch.testing.assert_close(again, clip.clean, atol=2e-5, rtol=0)
    assert torch.equal(clip.exited, clip.clean)
    assert again.requires_grad and not clip.clean.requires_grad


def reference(
    generator: CausalWanModel, causality: BlockCausality, inputs: dict[str, Tensor], exit_step: int
) -> Tensor:
    """Block by block, in full passes over all clean frames so far and the block: no cache, no session."""
    timesteps = SCHEDULE.denoising_timesteps(STEPS, warp_denoising_step=True)
    sigmas = SCHEDULE.sigma_at(torch.tensor(timesteps)).tolist()
    noise = frame_noise(3, (4, 9), SHAPE, dtype=inputs["text"].dtype)
    done, text = inputs["clean"][:, :0], inputs["text"]
    blocks = []
    for block in causality.split(inputs["clean"].shape[1]):
        noisy = noise(block, 0)
        for step in range(exit_step + 1):
            video = torch.cat([done, noisy], dim=1)
            levels = torch.full(video.shape[:2], 0.0, dtype=torch.float32)
            levels[:, block.start :] = timesteps[step]
            with torch.set_grad_enabled(step == exit_step):
                velocity = past_detached(generator, video, levels, text, causality, inputs["modulation"], block)
                clean = noisy - sigmas[step] * velocity
            if step < exit_step:
                sigma = sigmas[step + 1]
                noisy = (1 - sigma) * clean.detach() + sigma * noise(block, step + 1)
        blocks.append(clean)
        done = torch.cat([done, clean.detach()], dim=1)
    return torch.cat(blocks, dim=1)


def past_detached(
    generator: CausalWanModel,
    video: Tensor,
    levels: Tensor,
    text: Tensor,
    causality: BlockCausality,
    modulation: Tensor,
    block: range,
) -> Tensor:
    """Velocity of the last block, the past of which gets no gradient: its weights are copies."""
    from torch.func import functional_call

    frozen = {name: value.detach() for name, value in generator.named_parameters()}
    past = torch.cat([video[:, : block.start], video[:, block.start :].detach()], dim=1)
    kept: list[tuple[Tensor, Tensor]] = []
    hooks = [
        layer.self_attn.register_forward_hook(
            lambda module, args, result, kept=kept: kept.append(module.keys_values(args[0], args[1]))
        )
        for layer in generator.blocks
    ]
    with torch.no_grad():
        call = {"causality": causality, "action_modulation": modulation[:, : block.stop]}
        functional_call(_Causal(generator), {f"inner.{n}": v for n, v in frozen.items()}, (past, levels, text), call)
    for hook in hooks:
        hook.remove()
    tokens = generator.tokens_per_frame(*SHAPE[1:])
    seen = [frame for frames in causality.past(block) for frame in frames]
    frames = [
        (
            torch.stack([keys[:, f * tokens : (f + 1) * tokens] for keys, _ in kept]),
            torch.stack([values[:, f * tokens : (f + 1) * tokens] for _, values in kept]),
        )
        for f in seen
    ]
    here = slice(block.start, block.stop)
    prompt = generator.text_cache(text)
    return generator.denoise_after(frames, block, video[:, here], levels[:, here], prompt, modulation[:, here])


class _Causal(torch.nn.Module):
    def __init__(self, inner: CausalWanModel) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.inner.block_causal(*args, **kwargs)


@pytest.mark.parametrize("exit_step", [0, 2])
def test_gradients_are_those_of_a_straightforward_reference(exit_step: int) -> None:
    """In float64: without cache, in full passes over the video so far, to the weights and to the actions."""
    generator = small_generator().double()
    inputs = {name: value.double() for name, value in small_inputs(8).items()}
    modulation = inputs["modulation"].requires_grad_()
    parameters = [*generator.parameters(), modulation]
    aim = torch.randn(2, 8, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    _, clip = made(generator, WINDOWED, inputs, exit_step, 0)
    ours = clip.with_gradient(generator, inputs["text"], SCHEDULE, modulation)
    theirs = reference(generator, WINDOWED, inputs, exit_step)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    gradients = [torch.autograd.grad((video * aim).sum(), parameters, allow_unused=True) for video in (ours, theirs)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)
    assert all(gradient is not None and gradient.abs().max() > 1e-6 for gradient in gradients[0])


def test_checkpointed_layers_find_the_cache_as_it_was() -> None:
    """The cache has moved on when the backward pass computes a layer again."""
    found = []
    for checkpointing in (False, True):
        generator, inputs = small_generator(activation_checkpointing=checkpointing), small_inputs(10)
        _, clip = made(generator, WINDOWED, inputs, 1, 0)
        video = clip.with_gradient(generator, inputs["text"], SCHEDULE, inputs["modulation"])
        video.square().sum().backward()
        found.append([parameter.grad for parameter in generator.parameters()])
    for plain, again in zip(*found, strict=True):
        assert plain is not None and torch.equal(plain, again)


def test_a_rollout_goes_on_in_a_second_call() -> None:
    generator, inputs = small_generator(), small_inputs(10)
    rollouts, whole = made(generator, WINDOWED, inputs, 1, 0)
    session = rollouts.begin(inputs["text"], frame_noise(3, (4, 9), SHAPE), (10, *SHAPE))
    modulation = inputs["modulation"]
    parts = [rollouts.make(session, 4, 1, modulation[:, :4]), rollouts.make(session, 6, 1, modulation[:, 4:])]
    assert torch.equal(torch.cat([part.clean for part in parts], dim=1), whole.clean)
    again = parts[1].with_gradient(generator, inputs["text"], SCHEDULE, modulation[:, 4:])
    torch.testing.assert_close(again, whole.clean[:, 4:], atol=2e-5, rtol=0)


def test_a_step_that_does_not_exist_and_nothing_to_generate_are_refused() -> None:
    generator, inputs = small_generator(), small_inputs(4)
    with pytest.raises(ValueError, match="the exit step is one of 0 to 2, got 3"):
        made(generator, WINDOWED, inputs, 3, 0)
    with pytest.raises(ValueError, match="of 4 latent frames 4 are given: there is nothing to generate"):
        made(generator, WINDOWED, inputs, 0, 4)


def test_without_gradient_nothing_is_kept() -> None:
    generator, inputs = small_generator(), small_inputs(6)
    rollouts, clip = made(generator, WINDOWED, inputs, 1, 0)
    session = rollouts.begin(inputs["text"], frame_noise(3, (4, 9), SHAPE), (6, *SHAPE))
    bare = rollouts.make(session, 6, 1, inputs["modulation"], for_gradient=False)
    assert torch.equal(bare.clean, clip.clean) and bare.exits == () and len(clip.exits) == 3


def test_the_last_step_may_be_the_exit_more_often() -> None:
    assert exit_probabilities(4).tolist() == [0.25] * 4
    torch.testing.assert_close(exit_probabilities(3, 0.6), torch.tensor([0.2, 0.2, 0.6]))
    assert exit_probabilities(1, 0.6).tolist() == [1]
    with pytest.raises(ValueError, match="last_exit_probability"):
        exit_probabilities(2, 1.5)


def test_the_session_of_a_rollout_is_the_one_that_others_use() -> None:
    generator, inputs = small_generator(), small_inputs(6)
    rollouts, clip = made(generator, WINDOWED, inputs, 2, 0)
    noise = frame_noise(3, (4, 9), SHAPE)
    sampler = partial(few_step, timesteps=rollouts.timesteps, schedule=SCHEDULE)
    session = CausalRollout(generator, inputs["text"], WINDOWED, sampler, noise, SHAPE, 6)
    with torch.no_grad():
        blocks = list(rollout(session, 6, inputs["modulation"]))
    assert torch.equal(torch.cat(blocks, dim=1), clip.clean)
