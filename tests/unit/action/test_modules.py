"""The ready action modules see the history and nothing else, and learn from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_action import ActionModulationProjection, ActionVideoModule, LinearVideoCodec
from lightning_action.action.conditioning import for_prompts, inferred_vectors
from lightning_action.action.modules import ConvActionModule, DiscreteActionModule, VisualTextActionModule
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.generator.causality import BlockCausality
from tests.support.small_generator import fill, small_generator

BATCH, LATENT, TEXT, ACTION, HIDDEN = 3, 5, 7, 2, 8


def conv(**changes: Any) -> ConvActionModule:
    return ConvActionModule(LATENT, ACTION, **{"hidden_dim": HIDDEN, "num_frames": 4, **changes})


def discrete(**changes: Any) -> DiscreteActionModule:
    return DiscreteActionModule(LATENT, ACTION, **{"num_codes": 6, "hidden_dim": HIDDEN, **changes})


def visual_text(**changes: Any) -> VisualTextActionModule:
    return VisualTextActionModule(LATENT, TEXT, ACTION, **{"hidden_dim": HIDDEN, "num_heads": 2, **changes})


MODULES = [conv, discrete, visual_text]


def made(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    module = build()
    fill(module)
    return module


def frames(num_frames: int, height: int = 6, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(BATCH, num_frames, LATENT, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("build", MODULES)
@pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 6, 4), (3, 1, 2), (9, 5, 7)])
def test_any_history_of_any_size_gives_an_action(
    build: Callable[[], nn.Module], num_frames: int, height: int, width: int
) -> None:
    action = made(build)(frames(num_frames, height, width))
    assert action.shape == (BATCH, ACTION) and bool(torch.isfinite(action).all())
    if num_frames > 1:  # before that, nothing has changed that discrete actions could name
        assert (action - action[:1]).abs().max() > 1e-4


@pytest.mark.parametrize("build", MODULES)
def test_samples_do_not_mix_and_order_counts(build: Callable[[], nn.Module]) -> None:
    module, history = made(build), frames(4)
    action = module(history)
    torch.testing.assert_close(module(history[1:2]), action[1:2], atol=1e-5, rtol=0)
    assert (module(history.flip(1)) - action).abs().max() > 1e-4


@pytest.mark.parametrize("build", MODULES)
def test_every_parameter_learns(build: Callable[[], nn.Module]) -> None:
    module = made(build)
    text = torch.randn(BATCH, 5, TEXT)
    vectors, _ = inferred_vectors(for_prompts(module, text), frames(6), BlockCausality(2))
    vectors.square().sum().backward()
    silent = [name for name, p in module.named_parameters() if p.grad is None or not bool((p.grad != 0).any())]
    assert silent == []


def test_a_short_history_is_one_in_which_nothing_moved_before() -> None:
    module, history = made(conv), frames(2)
    assert torch.equal(module(history), module(history[:, [0, 0, 0, 1]]))
    assert torch.equal(module(frames(9)), module(frames(9)[:, -4:])), "it looks back num_frames and no further"
    assert not torch.equal(module(frames(9)), module(frames(9)[:, -3:]))


def test_the_action_is_that_of_the_codes() -> None:
    module = made(discrete)
    assert isinstance(module, DiscreteActionModule)
    codes = module.codes(frames(5))
    assert codes.shape == (BATCH, 5) and codes.min() >= 0 and codes.max() < 6 and len(codes.unique()) > 1
    torch.testing.assert_close(module(frames(5)), module.encode_codes(codes), atol=1e-5, rtol=0)
    assert (module.encode_codes(codes.flip(1)) - module.encode_codes(codes)).abs().max() > 1e-4


def test_a_code_tells_what_changed() -> None:
    """Between two equal frames nothing did, whatever they show; else it does not matter what stood before."""
    module = made(discrete)
    assert isinstance(module, DiscreteActionModule)
    history = frames(6)
    assert torch.equal(module.codes(history)[:, 2:], module.codes(history[:, 1:])[:, 1:])
    pictures = torch.cat([scale * history[:, :1] for scale in (-3, -1, 0, 2, 5)])
    still = module.codes(pictures.expand(-1, 4, -1, -1, -1))
    assert len(still.unique()) == 1 and torch.equal(still[:BATCH, 0], module.codes(history)[:, 0])


def test_a_new_module_uses_many_codes() -> None:
    """At the sizes of real latents too; codes that nothing chooses would get no gradient."""
    torch.manual_seed(0)
    module = DiscreteActionModule(16, ACTION)
    assert len(module.codes(torch.randn(2, 21, 16, 30, 52)).unique()) >= 6


def test_the_prompt_counts_and_its_padding_does_not() -> None:
    module = made(visual_text)
    assert isinstance(module, VisualTextActionModule)
    history, text = frames(3), torch.randn(BATCH, 4, TEXT)
    action = module.with_text(text)(history)
    padded = torch.cat([text, torch.zeros(BATCH, 2, TEXT)], dim=1)
    torch.testing.assert_close(module(history, padded), action, atol=1e-5, rtol=0)
    assert (module(history, text.roll(1, 0)) - action).abs().max() > 1e-4
    torch.testing.assert_close(module(history, torch.zeros(BATCH, 4, TEXT)), module(history), atol=1e-5, rtol=0)
    assert (module(history) - action).abs().max() > 1e-4


@pytest.mark.parametrize("build", [conv, discrete])
def test_it_can_learn_to_go_on_as_before(build: Callable[[], nn.Module]) -> None:
    """A spot that moves left or right: after some steps the module says which way."""
    torch.manual_seed(0)
    module = build()
    direction = torch.tensor([-1, 1]).repeat(8)
    history = torch.zeros(16, 5, LATENT, 5, 12)
    for sample, step in enumerate(direction.tolist()):
        for frame in range(5):
            history[sample, frame, :, 2, (sample + step * frame) % 12] = 1
    wanted = direction[:, None].float().expand(-1, ACTION)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(120):
        loss = (module(history) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1, "saying nothing costs 1"


@pytest.mark.parametrize("build", MODULES)
def test_it_trains_in_the_lightning_module(build: Callable[[], nn.Module]) -> None:
    """Where a batch has no actions, the loss reaches the module through the action projection."""
    vae = LinearVideoCodec(LATENT, patch_size=4)
    videos = frames(9, 16, 24)[:, :, :3].clamp(-1, 1)
    vae.fit(videos)
    module = ActionVideoModule(
        lambda: small_generator(in_dim=LATENT, out_dim=LATENT, text_dim=TEXT),
        lambda: HashingTextEncoder(TEXT, 6),
        lambda: vae,
        ActionModulationProjection,
        build,
        ActionSchema([ActionPart(size=ACTION)], alignment="per_latent"),
        action_dropout_prob=0.0,
    )
    module.configure_model()
    fill(module.action_projection)  # type: ignore[arg-type]
    batch = {"video": videos, "prompt": ["a disc"] * BATCH, "sample_id": torch.arange(BATCH)}
    module.training_step(batch, 0)["loss"].backward()
    assert module.action_module is not None
    moved = [name for name, p in module.action_module.named_parameters() if p.grad is not None and bool(p.grad.any())]
    assert "to_action.weight" in moved or "to_action.2.weight" in moved
    assert len(moved) > 4
