"""The pipeline: the three ways to say what the action is, and what a call takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_action import (
    ActionCausalInferencePipeline,
    ActionModulationProjection,
    ActionVideoModule,
)
from lightning_action.action.modules import VisualTextActionModule
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise, starting_from
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.generation.prompt_switches import PromptSwitch
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import ImageCondition
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import fill, small_generator

SHAPE = (5, 4, 3)
PROMPTS = ["a red disc", "two"]
SAMPLING = Sampling(denoising_step_list=[1000, 600], seed=7)


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


NOISE = drawn(2, 6, *SHAPE)
FEATURES = drawn(2, 6, 4, seed=5)


def codec() -> LinearVideoCodec:
    vae = LinearVideoCodec(5, patch_size=2)
    vae.fit(drawn(2, 9, 3, 8, 6).clamp(-1, 1))
    return vae


def projection(action_dim: int = 4, num_layers: int | None = None, seed: int = 0) -> ActionModulationProjection:
    made = ActionModulationProjection(action_dim, 36, hidden_dim=20, num_layers=num_layers, layer_rank=8)
    fill(made, seed)
    return made


def pipeline(kind: type[ActionCausalInferencePipeline] = ActionCausalInferencePipeline, **changes: Any) -> Any:
    """Blocks of 3 of `small_generator`; the projection acts, unless it is replaced."""
    settings: dict[str, Any] = {
        "generator": small_generator(),
        "text_encoder": HashingTextEncoder(9, 7),
        "vae": codec(),
        "action_dim": 4,
        "sampling": SAMPLING,
    }
    if changes.get("enable_adaln_zero", True):
        settings["action_projection"] = projection()
    return kind(**{**settings, **changes})


def latents(made: ActionCausalInferencePipeline, noise: Tensor = NOISE, **inputs: Any) -> Tensor:
    prompts = PROMPTS[: len(noise)]
    _, out = made.inference(noise, prompts, return_latents=True, **inputs)
    assert isinstance(out, Tensor)
    return out


@torch.no_grad()
def plain(made: ActionCausalInferencePipeline, modulation: Any = None, start: Tensor = NOISE, known: int = 0) -> Tensor:
    """The same video by the loop itself."""
    text = HashingTextEncoder(9, 7).encode(PROMPTS)
    noise = starting_from(start, frame_noise(7, (0, 1), SHAPE))
    sampler = made.sampling.sampler(FlowMatchSchedule(5.0))
    length = start.shape[1]
    session = CausalRollout(made.generator, text, made.causality, sampler, noise, SHAPE, length)
    return torch.cat(list(rollout(session, length, modulation, start[:, :known] if known else None)), dim=1)


def by_block(made: ActionCausalInferencePipeline, features: Tensor = FEATURES, present: Any = None) -> Tensor:
    """What the projection gives, block by block as the pipeline asks it."""
    given = [
        made.action_projection(features[:, block], None if present is None else present[:, block])
        for block in map(list, made.causality.split(features.shape[1]))
    ]
    return torch.cat(given, dim=1).detach()


# Without actions


@pytest.mark.parametrize(
    "causality", [BlockCausality(3), BlockCausality(2, 4, 1), BlockCausality(1, 3), BlockCausality(5, None, 0, True)]
)
def test_without_actions_it_is_the_base_model(causality: BlockCausality) -> None:
    made = pipeline(causality=causality)
    expected = plain(made)
    assert torch.equal(latents(made), expected)
    assert torch.equal(latents(pipeline(causality=causality, enable_adaln_zero=False)), expected)
    assert torch.equal(latents(made, action_inputs={}), expected)
    fresh = pipeline(causality=causality, action_projection=None)
    assert torch.equal(latents(fresh, action_inputs={"action_features": FEATURES}), expected), "zero is zero"
    acting = latents(made, action_inputs={"action_features": FEATURES})
    assert (acting - expected).abs().max() > 1e-2, "the control: trained actions act"


def test_the_default_projection_takes_512_values() -> None:
    made = ActionCausalInferencePipeline(small_generator(), HashingTextEncoder(9, 7), codec())
    features = drawn(2, 512)
    before = latents(made, action_inputs={"action_features": features})
    assert torch.equal(before, latents(made))
    assert made.action_projection is not None
    fill(made.action_projection)
    assert (latents(made, action_inputs={"action_features": features}) - before).abs().max() > 1e-2


def test_the_video_is_the_decoded_latents_in_unit_range() -> None:
    made = pipeline()
    video, out = made.inference(NOISE, PROMPTS, return_latents=True)
    assert video.shape == (2, 21, 3, 8, 6) and video.dtype == torch.float32
    assert torch.equal(video, (codec().decode(out) * 0.5 + 0.5).clamp(0, 1))
    assert video.std() > 0.05


# Given actions


def test_features_of_a_video_are_those_of_every_frame() -> None:
    made = pipeline()
    same = latents(made, action_inputs={"action_features": FEATURES[:, 0]})
    repeated = FEATURES[:, :1].expand(-1, 6, -1)
    assert torch.equal(same, latents(made, action_inputs={"action_features": repeated}))
    assert not torch.equal(same, latents(made, action_inputs={"action_features": FEATURES}))


@pytest.mark.parametrize("num_layers", [None, 2])
def test_ready_modulation_is_what_the_projection_gives(num_layers: int | None) -> None:
    made = pipeline(action_projection=projection(num_layers=num_layers))
    modulation = by_block(made)
    assert modulation.ndim == (4 if num_layers is None else 5)
    ready = latents(made, action_inputs={"action_modulation": modulation})
    assert torch.equal(ready, latents(made, action_inputs={"action_features": FEATURES}))
    assert torch.equal(ready, plain(made, modulation))


def test_a_frame_without_an_action_is_that_of_the_base_model() -> None:
    made = pipeline()
    present = torch.tensor([[False, False, False, True, True, True], [True, False, True, True, True, True]])
    partly = latents(made, action_inputs={"action_features": FEATURES, "action_present": present})
    modulation = by_block(made, FEATURES, present)
    assert torch.equal(partly, plain(made, modulation))
    assert torch.equal(partly[0, :3], latents(made)[0, :3])
    assert not torch.equal(partly[1, :3], latents(made)[1, :3])


def test_the_scale_multiplies_what_is_projected() -> None:
    half = pipeline(action_modulation_scale=0.5)
    modulation = by_block(half)
    scaled = latents(half, action_inputs={"action_features": FEATURES})
    assert torch.equal(scaled, plain(half, 0.5 * modulation))
    assert torch.equal(latents(half, action_inputs={"action_modulation": modulation}), plain(half, modulation))
    off = pipeline(action_modulation_scale=0.0)
    assert torch.equal(latents(off, action_inputs={"action_features": FEATURES}), plain(off))


def test_guidance_goes_away_from_the_video_without_actions() -> None:
    inputs = {"action_features": FEATURES}
    outs = [
        latents(
            pipeline(sampling=Sampling(denoising_step_list=[1000, 600], seed=7, action_guidance_scale=w)),
            **{"action_inputs": inputs},
        )
        for w in (0.0, 1.0, 2.0)
    ]
    null = latents(pipeline())
    assert torch.equal(outs[0], null)
    assert (outs[2] - null).abs().mean() > (outs[1] - null).abs().mean() > 1e-3


# Inferred actions


class Recorder(nn.Module):
    """Features that tell the history apart; remembers what it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, historical_frames: Tensor) -> Tensor:
        self.seen.append(historical_frames)
        return historical_frames.mean(dim=1).flatten(1)[:, :4]


def test_a_module_infers_the_action_of_every_block_but_the_first() -> None:
    module = Recorder()
    made = pipeline(action_module=module, causality=BlockCausality(2))
    out = latents(made)
    assert [frames.shape[1] for frames in module.seen] == [2, 4]
    assert all(torch.equal(frames, out[:, : frames.shape[1]]) for frames in module.seen)

    def expected(block: range, history: Tensor) -> Tensor | None:
        if not block.start:
            return None
        features = history.mean(dim=1).flatten(1)[:, :4]
        return made.action_projection(features[:, None].expand(-1, len(block), -1))

    assert torch.equal(out, plain(made, expected))
    base = plain(made)
    assert torch.equal(out[:, :2], base[:, :2]) and (out[:, 2:] - base[:, 2:]).abs().max() > 1e-2


def test_given_actions_come_before_inferred_ones() -> None:
    module = Recorder()
    out = latents(pipeline(action_module=module), action_inputs={"action_features": FEATURES})
    assert torch.equal(out, latents(pipeline(), action_inputs={"action_features": FEATURES})) and module.seen == []


def test_a_module_that_reads_text_gets_the_prompts() -> None:
    module = VisualTextActionModule(5, 9, 4, hidden_dim=8, num_heads=2, num_frames=3)
    fill(module)
    made = pipeline(action_module=module)
    first, second = latents(made), made.inference(NOISE, ["a red disc", "three"], return_latents=True)[1]
    assert torch.equal(first[0], second[0]) and not torch.equal(first[1], second[1])
    text = HashingTextEncoder(9, 7).encode(PROMPTS)

    def expected(block: range, history: Tensor) -> Tensor | None:
        if not block.start:
            return None
        features = module(history, text)
        return made.action_projection(features[:, None].expand(-1, len(block), -1))

    assert torch.equal(first, plain(made, expected))


# Decided actions


def swerve(generated_frames: Tensor, current_frame_idx: int, action_inputs: Any) -> Tensor | None:
    """No action for the first block; then the features of the block's first frame."""
    assert generated_frames.shape[1] == current_frame_idx
    features: Tensor = action_inputs["anything"]
    return features[:, current_frame_idx] if current_frame_idx else None


class Swerve(ActionCausalInferencePipeline):
    def process_action(self, generated_frames: Tensor, current_frame_idx: int, action_inputs: Any) -> Tensor | None:
        return swerve(generated_frames, current_frame_idx, action_inputs)


@pytest.mark.parametrize("made", [pipeline(process_action=swerve), pipeline(Swerve)], ids=["function", "subclass"])
def test_a_function_decides(made: ActionCausalInferencePipeline) -> None:
    out = latents(made, action_inputs={"anything": FEATURES})
    features = FEATURES.clone()
    features[:, 3:] = FEATURES[:, 3:4]
    present = torch.tensor([[False] * 3 + [True] * 3] * 2)
    assert made.action_projection is not None
    torch.testing.assert_close(out, plain(made, made.action_projection(features, present)), atol=1e-5, rtol=0)
    assert torch.equal(out[:, :3], plain(made)[:, :3])
    assert (out[:, 3:] - plain(made)[:, 3:]).abs().max() > 1e-2


def test_a_function_that_says_none_is_the_base_model() -> None:
    made = pipeline(process_action=lambda frames, first, inputs: None)
    assert torch.equal(latents(made, action_inputs={"action_features": FEATURES}), plain(made))


@pytest.mark.parametrize(
    "answer", [lambda p, f: f, lambda p, f: p(f), lambda p, f: p(f)[:, :, None].expand(-1, -1, 2, -1, -1)]
)
def test_a_function_may_say_features_or_modulation_of_each_frame(answer: Callable[..., Tensor]) -> None:
    acts = projection()

    def decide(frames: Tensor, first: int, inputs: Any) -> Tensor:
        return answer(acts, FEATURES[:, first : first + 3])

    out = latents(pipeline(process_action=decide, action_projection=acts))
    torch.testing.assert_close(out, plain(pipeline(), acts(FEATURES).detach()), atol=1e-5, rtol=0)


# Known frames


@pytest.mark.parametrize(("known", "generated", "blocks"), [(1, 6, [1, 3, 3]), (1, 5, [3, 3]), (4, 5, [3, 3, 3])])
def test_a_video_goes_on_from_known_latents(known: int, generated: int, blocks: list[int]) -> None:
    made = pipeline()
    initial = drawn(2, known, *SHAPE, seed=11)
    _, out, seconds = made.inference(
        NOISE[:, :generated], PROMPTS, initial_latent=initial, return_latents=True, profile=True
    )
    assert torch.equal(out[:, :known], initial) and out.shape[1] == known + generated
    assert len(seconds["blocks"]) == len(blocks)
    alike = pipeline(causality=BlockCausality(3, independent_first_frame=blocks[0] == 1))
    start = torch.cat([initial, NOISE[:, :generated]], dim=1)
    assert torch.equal(out, plain(alike, None, start, known))
    assert not torch.equal(out, latents(made, NOISE[:, :generated], initial_latent=-initial))


def test_actions_of_known_frames_may_be_left_out() -> None:
    made, initial = pipeline(), drawn(2, 3, *SHAPE, seed=11)
    left_out = latents(made, initial_latent=initial, action_inputs={"action_features": FEATURES})
    every = torch.cat([torch.zeros(2, 3, 4), FEATURES], dim=1)
    present = torch.tensor([[False] * 3 + [True] * 6] * 2)
    inputs = {"action_features": every, "action_present": present}
    spelled_out = latents(made, initial_latent=initial, action_inputs=inputs)
    torch.testing.assert_close(left_out, spelled_out, atol=1e-5, rtol=0)
    acting = latents(made, initial_latent=initial, action_inputs={"action_features": every + 1})
    assert (acting - left_out).abs().max() > 1e-2


def test_history_and_position_count_known_frames() -> None:
    asked: list[tuple[int, int]] = []

    def decide(frames: Tensor, first: int, inputs: Any) -> None:
        asked.append((frames.shape[1], first))

    latents(pipeline(process_action=decide), NOISE, initial_latent=drawn(2, 1, *SHAPE))
    assert asked == [(0, 0), (1, 1), (4, 4)]


def test_an_image_condition_reaches_the_generator() -> None:
    made = pipeline(generator=small_generator(in_dim=8))
    channels = drawn(2, 6, 3, 4, 3)
    one, other = (latents(made, image=ImageCondition(sign * channels)) for sign in (1, -1))
    assert not torch.equal(one, other)
    with pytest.raises(ValueError, match="expected image channels"):
        latents(made)
    half = latents(made.to(torch.bfloat16), image=ImageCondition(channels))
    torch.testing.assert_close(half.float(), one, atol=0.3, rtol=0)


# A call


def test_noise_starts_each_frame_and_the_seed_gives_the_rest() -> None:
    made = pipeline()
    assert torch.equal(latents(made), latents(made))
    other = pipeline(sampling=Sampling(denoising_step_list=[1000, 600], seed=8))
    assert not torch.equal(latents(made), latents(other))
    one_step = [pipeline(sampling=Sampling(denoising_step_list=[1000], seed=seed)) for seed in (7, 8)]
    assert torch.equal(latents(one_step[0]), latents(one_step[1])), "one step adds no noise"
    changed = NOISE.clone()
    changed[:, 4] += 1
    assert torch.equal(latents(made)[:, :3], latents(made, changed)[:, :3])
    assert not torch.equal(latents(made)[:, 3:], latents(made, changed)[:, 3:])


def test_noise_belongs_to_the_sample() -> None:
    made = pipeline()
    together = latents(made)
    alone = made.inference(NOISE[1:], PROMPTS[1:], sample_id=[1], return_latents=True)[1]
    torch.testing.assert_close(alone, together[1:], atol=1e-5, rtol=0)
    not_its_own = made.inference(NOISE[1:], PROMPTS[1:], return_latents=True)[1]
    assert (not_its_own - together[1:]).abs().max() > 1e-2


def test_embeds_replace_prompts() -> None:
    class Untouchable(HashingTextEncoder):
        def load(self) -> None:
            raise AssertionError("the text encoder is not needed")

    made = pipeline(text_encoder=Untouchable(9, 7))
    embeds = HashingTextEncoder(9, 7).encode(PROMPTS)
    video = made.inference(NOISE, prompt_embeds=embeds)
    assert torch.equal(video, pipeline().inference(NOISE, PROMPTS))
    assert torch.equal(video, made.inference(NOISE, ["x", "y"], prompt_embeds=embeds))
    assert not torch.equal(video, pipeline().inference(NOISE, ["x", "y"]))


def test_what_is_asked_for_comes_in_order() -> None:
    made = pipeline()
    video = made.inference(NOISE, PROMPTS)
    _, out = made.inference(NOISE, PROMPTS, return_latents=True)
    with_seconds = made.inference(NOISE, PROMPTS, profile=True)
    everything = made.inference(NOISE, PROMPTS, return_latents=True, profile=True)
    assert torch.equal(with_seconds[0], video) and len(with_seconds) == 2
    assert torch.equal(everything[0], video) and torch.equal(everything[1], out) and len(everything) == 3
    for seconds in (with_seconds[-1], everything[-1]):
        assert seconds.keys() == {"text", "blocks", "vae"} and len(seconds["blocks"]) == 2
        assert min(seconds["text"], *seconds["blocks"], seconds["vae"]) > 0


class Parked(HashingTextEncoder):
    """A text encoder that logs when it is moved and used."""

    def __init__(self, log: list[str]) -> None:
        super().__init__(9, 7)
        self.log = log

    def to(self, device: torch.device) -> None:
        self.log.append(f"text to {device}")

    def encode(self, prompts: Any) -> Tensor:
        self.log.append("encode")
        return super().encode(prompts)


class ParkedCodec(LinearVideoCodec):
    log: list[str]

    def to(self, device: Any) -> Any:  # type: ignore[override]
        self.log.append(f"vae to {device}")

    def streaming_decoder(self) -> Any:
        self.log.append("stream")
        decode = super().streaming_decoder()

        def logged(latents: Tensor) -> Tensor:
            self.log.append("decode")
            return decode(latents)

        return logged


@pytest.mark.parametrize("low_memory", [False, True])
def test_low_memory_parks_what_rests_and_gives_the_same_video(low_memory: bool) -> None:
    log: list[str] = []
    vae = ParkedCodec(5, patch_size=2)
    vae.load_fitted_tensors(codec().fitted_tensors(), "another")
    vae.log = log

    def decide(frames: Tensor, first: int, inputs: Any) -> None:
        log.append(f"block at {first}")

    made = pipeline(text_encoder=Parked(log), vae=vae, process_action=decide)
    video = made.inference(NOISE, PROMPTS, low_memory=low_memory)
    assert torch.equal(video, pipeline().inference(NOISE, PROMPTS))
    parked, encoded = ["text to cpu", "vae to cpu"], ["text to cpu", "encode"]
    blocks, decoder = ["block at 0", "block at 3"], ["vae to cpu", "stream"]
    if low_memory:
        assert log == [*parked, *encoded, *parked, *blocks, *decoder, "decode", "decode", *parked]
    else:
        assert log == [*encoded, *decoder, "block at 0", "decode", "block at 3", "decode"]


def test_it_follows_the_type_of_the_generator() -> None:
    made = pipeline(action_module=Recorder()).to(torch.bfloat16)
    video, out = made.inference(NOISE, PROMPTS, return_latents=True)
    assert out.dtype == torch.bfloat16 and video.dtype == torch.float32
    assert made.action_module.seen[0].dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), latents(pipeline(action_module=Recorder())), atol=0.3, rtol=0)
    made.inference(NOISE, PROMPTS, action_inputs={"action_features": FEATURES})


def test_the_canonical_shape() -> None:
    generator = CausalWanModel(12, 16, 1, 1, freq_dim=6, text_dim=9, text_len=7)
    fill(generator)
    vae = LinearVideoCodec(16, patch_size=3)
    vae.fit(drawn(1, 5, 3, 30, 30).clamp(-1, 1))
    made = ActionCausalInferencePipeline(
        generator,
        HashingTextEncoder(9, 7),
        vae,
        causality=BlockCausality(3, 6, 3),
        sampling=Sampling(denoising_step_list=[1000]),
    )
    video = made.inference(drawn(1, 21, 16, 60, 104), ["a red disc"], low_memory=True)
    assert video.shape == (1, 81, 3, 180, 312) and 0 <= video.min() < video.max() <= 1


# Refusals


class Untouched(HashingTextEncoder):
    """Nothing may be computed for a call that is refused."""

    def encode(self, prompts: Any) -> Tensor:
        raise AssertionError("computed before it was refused")


NAN = FEATURES * torch.nan
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"text_prompts": None}, "expected text_prompts, a list of 2 strings, .* or prompt_embeds; got None"),
    ({"text_prompts": "a disc"}, "expected text_prompts, a list of 2 strings"),
    ({"text_prompts": ["a disc"]}, "expected text_prompts, a list of 2 strings"),
    ({"prompt_embeds": drawn(2, 8, 9)}, r"prompt_embeds must be \[2, at most 7, 9\], got \[2, 8, 9\]"),
    ({"prompt_embeds": drawn(2, 7, 9) * torch.nan}, "prompt_embeds hold NaN"),
    ({"noise": drawn(4)}, r"noise must be floats \[B, F, 5, H, W\], got torch.float32 \[4\]"),
    ({"noise": NOISE[0]}, r"noise must be floats \[B, F, 5, H, W\], got torch.float32 \[6, 5, 4, 3\]"),
    ({"noise": drawn(2, 6, 16, 4, 3)}, r"noise must be floats \[B, F, 5, H, W\]"),
    ({"noise": drawn(2, 6, 5, 3, 3)}, "3 x 3 are not a whole number of patches of 2 x 1"),
    ({"noise": NOISE * torch.inf}, "noise holds NaN or infinity"),
    ({"noise": NOISE[:, :4]}, "4 latent frames .* not a whole number of blocks"),
    ({"noise": NOISE[:, :0]}, "noise must have at least one frame"),
    ({"initial_latent": drawn(2, 2, *SHAPE)}, "8 latent frames .* not a whole number of blocks"),
    ({"initial_latent": drawn(1, 3, *SHAPE)}, "must be alike in all but their frames"),
    ({"initial_latent": drawn(2, 3, *SHAPE) * torch.nan}, "initial_latent holds NaN"),
    ({"sample_id": [4]}, "expected 2 sample_id, one for each video of noise, got 1"),
    ({"action_inputs": {"action_features": FEATURES[..., :3]}}, r"expected actions .* \[B, F, 4\], got \[2, 6, 3\]"),
    ({"action_inputs": {"action_features": FEATURES[:, :3]}}, "are for 3 latent frames: expected 6"),
    (
        {"action_inputs": {"action_features": FEATURES[:1]}},
        "action_features is for a batch of 1, the noise for one of 2",
    ),
    ({"action_inputs": {"action_features": NAN}}, "action_features hold NaN"),
    ({"action_inputs": {"action_features": drawn(4)}}, r"action_features must be \[B, A\] or \[B, F, A\], got \[4\]"),
    ({"action_inputs": {"action_modulation": drawn(2, 6, 6, 35)}}, r"modulation \[2, 6, 6, 36\] or \[2, 6, 2, 6, 36\]"),
    ({"action_inputs": {"action_modulation": FEATURES}}, r"action_modulation must be \[B, F, 6, D\]"),
    ({"action_inputs": {"actions": FEATURES}}, "got actions .other keys need a process_action"),
    ({"action_inputs": {"action_features": {"style": FEATURES}}}, r"action_features must be \[B, A\] .*, got dict"),
    ({"action_inputs": {"action_features": None}}, r"action_features must be \[B, A\] .*, got NoneType"),
    (
        {"action_inputs": {"action_features": FEATURES, "action_modulation": drawn(2, 6, 6, 36)}},
        "either action_features or action_modulation",
    ),
    (
        {"action_inputs": {"action_features": FEATURES, "action_present": FEATURES[..., 0]}},
        "action_present must be bool",
    ),
    (
        {"action_inputs": {"action_features": FEATURES, "action_present": torch.ones(1, 6, dtype=torch.bool)}},
        "action_present is for a batch of 1",
    ),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_a_wrong_call_is_refused_before_anything_is_computed(call: dict[str, Any], message: str) -> None:
    made = pipeline(text_encoder=Untouched(9, 7))
    with pytest.raises(ValueError, match=message):
        made.inference(**{"noise": NOISE, "text_prompts": PROMPTS, **call})


def test_the_base_model_takes_no_actions() -> None:
    for acting in ({"action_module": Recorder()}, {"process_action": swerve}, {"action_projection": projection()}):
        with pytest.raises(ValueError, match="enable_adaln_zero=False is the base model"):
            pipeline(enable_adaln_zero=False, **acting)
    for given in ({"action_features": FEATURES}, {"action_modulation": drawn(2, 6, 6, 36)}):
        with pytest.raises(ValueError, match="the base model takes no actions"):
            latents(pipeline(enable_adaln_zero=False), action_inputs=given)


def test_an_action_without_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected actions \[B, 4\] or \[B, F, 4\], got \[4\]"):
        latents(pipeline(process_action=lambda *_: FEATURES[0, 0]))


def test_a_module_of_another_width_is_refused() -> None:
    made = pipeline(action_module=lambda frames: torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"expected actions .* \[B, F, 4\]"):
        latents(made)


def test_latents_that_are_not_finite_are_an_error() -> None:
    made = pipeline(action_module=lambda frames: torch.full((2, 4), torch.nan))
    with pytest.raises(RuntimeError, match="generated latents or their pixels hold NaN"):
        latents(made)


# As a LightningModule


def test_it_generates_what_the_lightning_module_does() -> None:
    """Bit for bit, from the module's own starting noise: raw actions, a known start, guidance by both."""
    guidance: dict[str, Any] = {"prompt_guidance_scale": 3.0, "negative_prompt": "dark", "action_guidance_scale": 1.5}
    sampling = Sampling(denoising_step_list=[1000, 600], seed=7, **guidance)
    schema = ActionSchema([ActionPart(size=1)])
    module = ActionVideoModule(
        small_generator,
        lambda: HashingTextEncoder(9, 7),
        codec,
        lambda action_dim, dim: projection(action_dim),
        schema=schema,
        causality=BlockCausality(1, 4, 1),
        sampling=sampling,
    )
    module.configure_model()
    fill(module.action_projection)  # type: ignore[arg-type]
    rows = drawn(2, 20, 1).clamp(-1, 1)
    batch = {
        "video": drawn(2, 1, 3, 8, 6).clamp(-1, 1),
        "action": rows,
        "prompt": PROMPTS,
        "sample_id": torch.tensor([4, 9]),
    }
    made = pipeline(
        generator=module.generator,
        vae=module.frozen.vae,
        action_projection=module.action_projection,
        causality=module.causality,
        sampling=sampling,
        schema=schema,
    )
    given = {
        "action_inputs": made.encode_actions(rows, 6),
        "initial_latent": made.encode_video(batch["video"]),
        "sample_id": [4, 9],
    }
    noise = frame_noise(7, (4, 9), SHAPE)(range(1, 6), 0)
    out = latents(made, noise, **given)
    dark, bright = (made.frozen.encode_text([prompt] * 2) for prompt in ("dark", "bright"))
    assert torch.equal(latents(made, noise, **given, negative_prompt_embeds=dark), out)
    assert not torch.equal(latents(made, noise, **given, negative_prompt_embeds=bright), out)
    with pytest.raises(ValueError, match="negative_prompt_embeds must be"):
        latents(made, noise, **given, negative_prompt_embeds=dark[:1])
    expected, other = (
        torch.cat(list(module.eval().stream_latents({**batch, "action": action})), dim=1) for action in (rows, -rows)
    )
    assert torch.equal(out, expected) and not torch.equal(out, other)


# Other prompts and actions on the way


@pytest.mark.parametrize("causality", [BlockCausality(2), BlockCausality(2, 4, 1), BlockCausality(1, 4, 2)])
@torch.no_grad()
def test_prompts_are_switched_as_in_a_session(causality: BlockCausality) -> None:
    made, encode = pipeline(causality=causality), HashingTextEncoder(9, 7).encode
    noise = starting_from(NOISE, frame_noise(7, (0, 1), SHAPE))
    sampler = made.sampling.sampler(FlowMatchSchedule(5.0))
    session = CausalRollout(made.generator, encode(PROMPTS), causality, sampler, noise, SHAPE, 6)
    texts = {2: encode(["a blue disc"] * 2), 4: encode(["x", "y"])}
    expected = torch.cat(list(rollout(session, 6, switches=texts)), dim=1)
    found, without = latents(made, prompt_switches=[(2, "a blue disc"), (4, ["x", "y"])]), latents(made)
    assert torch.equal(found, expected)
    assert torch.equal(found[:, :2], without[:, :2])
    assert (found - without)[:, 2:].abs().amax((0, 2, 3, 4)).min() > 1e-3
    second = latents(made, NOISE[:1], prompt_switches=[(2, "a blue disc"), (4, "x")])
    torch.testing.assert_close(second, expected[:1], atol=1e-5, rtol=0)


def test_the_settings_say_when_prompts_are_switched_and_a_call_says_otherwise() -> None:
    made = pipeline(sampling=replace(SAMPLING, prompt_switches=(PromptSwitch(3, "a blue disc"),)))
    switched = latents(pipeline(), prompt_switches=[(3, "a blue disc")])
    assert torch.equal(latents(made), switched)
    assert torch.equal(latents(made, prompt_switches=()), latents(pipeline()))
    embeds = HashingTextEncoder(9, 7).encode(PROMPTS)
    _, out = made.inference(NOISE, prompt_embeds=embeds, return_latents=True, low_memory=True)
    assert torch.equal(out, switched)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ([(2, "a")], "latent frame 2: .* the nearest: 4"),
        ([(1, "a")], "latent frame 1: .* the 2 initial ones of 7 latent frames, the nearest: 4"),
        ([(4, "a"), (4, "b")], "two prompts for one latent frame"),
        ([(4, ["a"])], "one prompt for all videos at latent frame 4, or one for each of 2"),
        ([(4, [3, "b"])], "prompt must be a string, got 3"),
    ],
)
def test_switches_that_do_not_fit_are_refused_before_anything_is_computed(switches: Any, message: str) -> None:
    made = pipeline(causality=BlockCausality(3, independent_first_frame=True))
    made.generator.text_embedding.register_forward_hook(lambda *_: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        made.inference(NOISE[:, :5], PROMPTS, initial_latent=drawn(2, 2, *SHAPE), prompt_switches=switches)


@pytest.mark.parametrize("causality", [BlockCausality(3), BlockCausality(1, 4, 1)])
def test_actions_that_change_at_a_block_change_what_follows_alone(causality: BlockCausality) -> None:
    made, changed = pipeline(causality=causality), FEATURES.clone()
    changed[:, 3:] *= -1
    before, after = (latents(made, action_inputs={"action_features": features}) for features in (FEATURES, changed))
    assert torch.equal(after[:, :3], before[:, :3])
    assert (after - before)[:, 3:].abs().amax((0, 2, 3, 4)).min() > 1e-3
    # What follows is what those who had nothing but the past and the new actions would generate.
    modulation = by_block(made, changed)
    assert torch.equal(plain(made, modulation), after)
