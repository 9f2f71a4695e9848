"""What the base of the modules builds and gives; test_action_video_module.py trains, generates and predicts with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lightning_action import ActionModulationProjection, HashingTextEncoder, LinearVideoCodec
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.acceleration import Acceleration
from lightning_action.generator.causality import BlockCausality
from lightning_action.module.generative_module import GenerativeModule
from tests.support.small_generator import fill, small_generator

SCHEMA = ActionSchema([ActionPart("stick", size=3)])


def build(**changes: Any) -> GenerativeModule:
    settings: dict[str, Any] = {
        "generator": small_generator,
        "text_encoder": lambda: HashingTextEncoder(text_dim=9, text_len=7),
        "vae": lambda: LinearVideoCodec(latent_dim=5, patch_size=4),
        "action_projection": lambda action_dim, dim: ActionModulationProjection(action_dim, dim, 10),
        "schema": SCHEMA,
        "causality": BlockCausality(2),
        "sampling": Sampling(num_inference_steps=1),
    }
    return GenerativeModule(**{**settings, **changes})


@pytest.fixture
def module() -> GenerativeModule:
    built = build()
    built.frozen.vae.fit(torch.rand(3, 9, 3, 16, 24) * 2 - 1)  # type: ignore[attr-defined]
    built.configure_model()
    fill(built.action_projection)  # type: ignore[arg-type]
    return built.eval()


@pytest.fixture
def batch() -> dict[str, Any]:
    """Two starts of 16 x 24 pixels, and actions for 4 latent frames."""
    random = torch.Generator().manual_seed(1)
    return {
        "video": torch.rand(2, 1, 3, 16, 24, generator=random) * 2 - 1,
        "action": torch.rand(2, 12, 3, generator=random) * 2 - 1,
        "prompt": ["a", "b c"],
        "sample_id": torch.tensor([3, 8]),
    }


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5])
def test_a_seed_is_a_whole_number_of_63_bits(seed: Any) -> None:
    with pytest.raises(ValueError, match="seed"):
        build(seed=seed)
    build(seed=2**63 - 1)


def test_something_trains() -> None:
    with pytest.raises(ValueError, match="nothing would train: optimization.train_backbone is false"):
        build(action_projection=None, train_backbone=False)
    build(action_projection=None, action_module=torch.nn.Identity, train_backbone=False)


def test_the_schema_may_be_open_until_somebody_says_it() -> None:
    class Data:
        action_schema = SCHEMA

    module = build(schema="auto")
    assert not hasattr(module, "schema")
    module.settle_schema(None, Data())
    assert module.schema == SCHEMA
    settled = build()
    settled.settle_schema(None, object())
    assert settled.schema == SCHEMA
    with pytest.raises(ValueError, match="temporal_compression_ratio"):
        build(schema=ActionSchema(temporal_compression_ratio=2))


def test_networks_follow_from_the_seed_and_are_built_once() -> None:
    module, same, other = (build(seed=seed) for seed in (5, 5, 6))
    for each in (module, same, other):
        each.configure_model()
    projections = [each.action_projection for each in (module, same, other)]
    values = [torch.cat([p.flatten() for p in each.parameters()]) for each in projections]  # type: ignore[union-attr]
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    module.configure_model()
    assert module.action_projection is projections[0]
    assert module.conditioning.projection is module.action_projection and module.batch_checks.vae is module.frozen.vae


def test_settings_say_all_that_a_prediction_depends_on(module: GenerativeModule) -> None:
    told = module.generation_settings()
    assert told["seed"] == module.sampling.seed
    settings = told["generation"]
    assert settings["sampling"]["num_inference_steps"] == 1 and settings["causality"]["num_frame_per_block"] == 2
    assert (settings["timestep_shift"], settings["compute_dtype"]) == (5.0, "torch.float32")
    assert settings["schema"] == SCHEMA.to_dict()
    assert settings["parts"].keys() == {"generator", "action_projection", "text_encoder", "vae"}


def test_the_true_video_is_that_of_the_batch(module: GenerativeModule, batch: dict[str, Any]) -> None:
    shown = module.true_video(batch)
    assert shown is not None and torch.equal(shown, (batch["video"] + 1) / 2)
    latents = module.frozen.encode_video(batch["video"], "cpu", torch.float32)  # type: ignore[arg-type]
    decoded = module.true_video({"latents": latents, "frame_size": torch.tensor([[16, 24]] * 2)})
    assert decoded is not None and decoded.shape == shown.shape and 0 <= decoded.min() <= decoded.max() <= 1
    assert module.true_video({"prompt": ["a"]}) is None


def test_blocks_and_pieces_are_the_video(module: GenerativeModule, batch: dict[str, Any]) -> None:
    whole = module.generate(batch)
    blocks, pieces = list(module.stream_latents(batch)), list(module.stream_video(batch))
    assert [block.shape[1] for block in blocks] == [2, 2] and [piece.shape[1] for piece in pieces] == [5, 8]
    assert whole.shape == (2, 13, 3, 16, 24) and torch.equal(torch.cat(pieces, dim=1), whole)


def test_a_call_has_settings_of_its_own(module: GenerativeModule, batch: dict[str, Any]) -> None:
    longer = module.generate(batch, Sampling(num_inference_steps=2))
    assert longer.shape == (2, 13, 3, 16, 24) and not torch.equal(longer, module.generate(batch))
    with pytest.raises(ValueError, match="leaves nothing to generate"):
        module.generate(batch, Sampling(num_initial_latents=4))


def test_a_batch_that_does_not_fit_is_refused_before_anything_is_made(
    module: GenerativeModule, batch: dict[str, Any]
) -> None:
    calls: Iterator[Any] = module.stream_latents({**batch, "action": batch["action"][..., :2]})
    module.frozen.text_encoder = None  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"got \[2, 12, 2\]"):
        next(calls)


def test_a_session_is_bounded(module: GenerativeModule, batch: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="max_latents"):
        module.open_session(2)
    with module.open_session(2, max_latents=4) as session:
        assert session.causality == BlockCausality(2) and session.schema == SCHEMA
    with module.open_session(causality=BlockCausality(1, 4)) as session:
        assert session.causality == BlockCausality(1, 4)


def test_weights_are_quantized_where_it_was_asked_for(module: GenerativeModule) -> None:
    module.quantize()
    module.on_load_checkpoint(saved(module))
    quantized = build(acceleration=Acceleration(quantization="int8_weight_only"))
    quantized.configure_model()
    checkpoint = saved(quantized)
    quantized.quantize()
    with pytest.raises(ValueError, match="the weights of this module are in 8 bits since its last prediction"):
        quantized.on_load_checkpoint(checkpoint)


def saved(module: GenerativeModule) -> dict[str, Any]:
    """A checkpoint of a module, as Lightning makes it."""
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    return checkpoint
