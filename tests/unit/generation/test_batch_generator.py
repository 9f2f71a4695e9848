"""What generates the videos of batches, against the same by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_action.generation.sampling import Sampling
from lightning_action.module.action_video_module import ActionVideoModule
from tests.support.small_generator import fill
from tests.support.small_module import batch_of, small_module

SAMPLING = Sampling(num_inference_steps=2, seed=4)


@pytest.fixture(scope="module")
def module() -> ActionVideoModule:
    module = small_module("cpu")
    module.frozen.vae.fit(batch_of()["video"])  # type: ignore[attr-defined]
    fill(module.generator)
    fill(module.action_projection)  # type: ignore[arg-type]
    return module


def generated(module: ActionVideoModule, sampling: Sampling = SAMPLING, **changes: object) -> Tensor:
    blocks = module.batch_generator.latents(batch_of(**changes), sampling, module.generator, module.conditioning)  # type: ignore[arg-type]
    return torch.cat(list(blocks), dim=1)


@torch.no_grad()
def test_latents_are_those_of_the_encoded_batch(module: ActionVideoModule) -> None:
    torch.manual_seed(1)
    batch = batch_of()
    batches = module.batch_generator
    start = batches.start_of(batch, SAMPLING)
    assert start.shape == (4, 5, 2, 3) and start.num_initial_latents == 1
    rows = module.conditioning.of_rollout(batch["action"], False, 4, start.text, module.causality, None)
    guided = replace(SAMPLING, prompt_guidance_scale=2.0, negative_prompt="c")
    told = {"negative_text": batches.negative_text(batch, guided)}
    told["switches"] = {2: module.frozen.encode_text(["b"] * 3, "cpu", torch.float32)}  # type: ignore[assignment]
    switched = {**batch, "prompt_switches": [[(2, "b")]] * 3}
    for sampling, asked, more in ((SAMPLING, batch, {}), (guided, switched, told)):
        videos = batches.videos(module.generator, sampling)
        expected = videos.stream_latents(start.text, [0, 1, 2], start.shape, rows, start.initial, **more)  # type: ignore[arg-type]
        found = batches.latents(asked, sampling, module.generator, module.conditioning)
        torch.testing.assert_close(torch.cat(list(found), dim=1), torch.cat(list(expected), dim=1), rtol=0, atol=0)


@torch.no_grad()
def test_prompts_actions_and_starts_matter(module: ActionVideoModule) -> None:
    torch.manual_seed(1)
    batch = batch_of()
    plain = generated(module, **batch)
    assert torch.equal(plain, generated(module, **batch)), "the control"
    for change in ({"prompt": ["c", "c", "c"]}, {"action": -batch["action"]}, {"video": -batch["video"]}):
        assert not torch.equal(plain, generated(module, **{**batch, **change}))


@torch.no_grad()
def test_the_negative_prompt_is_the_empty_one_unless_told(module: ActionVideoModule) -> None:
    batches, batch = module.batch_generator, batch_of()
    empty = module.frozen.encode_text([""] * 3, "cpu", torch.float32)
    assert torch.equal(batches.negative_text(batch, SAMPLING), empty)
    told = batches.negative_text(batch, replace(SAMPLING, negative_prompt="b"))
    assert torch.equal(told, module.frozen.encode_text(["b"] * 3, "cpu", torch.float32)) and not torch.equal(
        told, empty
    )


def test_prompts_switch_where_blocks_begin(module: ActionVideoModule) -> None:
    batches = module.batch_generator
    assert batches.blocks_and_initial(batch_of(), SAMPLING) == ([range(2), range(2, 4)], 1)
    assert batches.blocks_and_initial(batch_of(video=..., frame_size=torch.tensor([[16, 24]] * 3)), SAMPLING)[1] == 0
    switches = [[(2, name)] for name in "xyz"]
    assert batches.switched_prompts(batch_of(prompt_switches=switches), SAMPLING) == {2: ["x", "y", "z"]}
    with pytest.raises(ValueError, match="cannot begin at latent frame 3"):
        batches.switched_prompts(batch_of(prompt_switches=[[(3, "x")]] * 3), SAMPLING)
