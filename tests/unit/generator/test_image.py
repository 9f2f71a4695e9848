"""Image conditions in all modes of the generator."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.image import ImageCondition, ImageEmbedding, mask_and_latents
from lightning_action.generator.kv_cache import KVCache
from lightning_action.generator.model import CausalWanModel
from tests.support.small_generator import fill, small_generator, small_inputs

CAUSALITY = BlockCausality(2, 4, 1)


def generator_and_image(**changes: object) -> tuple[CausalWanModel, ImageCondition]:
    random = torch.Generator().manual_seed(3)
    generator = small_generator(in_dim=13, image_dim=10, **changes)
    channels = torch.randn(2, 6, 8, 4, 3, generator=random)
    return generator, ImageCondition(channels, torch.randn(2, 11, 10, generator=random))


def run(generator: CausalWanModel, mode: str, image: ImageCondition) -> Tensor:
    x = small_inputs(6)
    if mode == "bidirectional":
        return generator(x["noisy"], x["timestep"], x["text"], x["modulation"], image)
    if mode == "block_causal":
        return generator.block_causal(x["noisy"], x["timestep"], x["text"], CAUSALITY, x["modulation"], image)
    if mode == "teacher_forcing":
        return generator.teacher_forcing(
            x["clean"], x["noisy"], x["timestep"], x["text"], CAUSALITY, x["modulation"], image
        )
    return denoise_after_clean_blocks(generator, image)


def denoise_after_clean_blocks(generator: CausalWanModel, image: ImageCondition) -> Tensor:
    x = small_inputs(6)
    cache = KVCache(2, 2, 3, 12, 6, 6, CAUSALITY)
    context = generator.text_cache(x["text"], image.embeds)
    velocity = []
    while cache.position < 6:
        here = slice(cache.block.start, cache.block.stop)
        modulation, channels = x["modulation"][:, here], image.of_frames(cache.block)
        velocity.append(
            generator.denoise(x["noisy"][:, here], x["timestep"][:, here], context, cache, modulation, channels)
        )
        generator.write(x["clean"][:, here], context, cache, modulation, channels)
    return torch.cat(velocity, dim=1)


@torch.no_grad()
def test_the_cache_gives_what_teacher_forcing_trains() -> None:
    generator, image = generator_and_image()
    cached = run(generator, "cached", image)
    torch.testing.assert_close(cached, run(generator, "teacher_forcing", image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["bidirectional", "block_causal", "teacher_forcing", "cached"])
@torch.no_grad()
def test_channels_and_embeds_act_and_are_required(mode: str) -> None:
    generator, image = generator_and_image()
    velocity = run(generator, mode, image)
    assert image.channels is not None and image.embeds is not None
    assert velocity.shape == (2, 6, 5, 4, 3)
    other_embeds = run(generator, mode, ImageCondition(image.channels, image.embeds.roll(1, 0)))
    other_channels = run(generator, mode, ImageCondition(image.channels.roll(1, 1), image.embeds))
    assert (velocity - other_embeds).abs().max() > 1e-2 and (velocity - other_channels).abs().max() > 1e-2
    with pytest.raises(ValueError, match=r"needs the CLIP embeds of an image.*\[B, 257, 10\]"):
        run(generator, mode, ImageCondition(image.channels))
    with pytest.raises(ValueError, match=r"takes 13 channels, 5 of them .*\[B, F, 8, H, W\] .*got 0 channels"):
        run(generator, mode, ImageCondition(embeds=image.embeds))


@pytest.mark.parametrize("mode", ["bidirectional", "block_causal", "teacher_forcing", "cached"])
def test_a_model_without_image_condition_refuses_one(mode: str) -> None:
    _, image = generator_and_image()
    with pytest.raises(ValueError, match="has no image_dim"):
        run(small_generator(), mode, ImageCondition(embeds=image.embeds))
    with pytest.raises(ValueError, match="takes 5 channels, 5 of them .*got 8 channels"):
        run(small_generator(), mode, ImageCondition(image.channels))


def test_names_of_the_image_to_video_model() -> None:
    generator, _ = generator_and_image(num_image_positions=22)
    shapes = {name: list(tensor.shape) for name, tensor in generator.state_dict().items()}
    added = {name: shape for name, shape in shapes.items() if name not in small_generator().state_dict()}
    of_layers = {
        f"blocks.{layer}.cross_attn.{name}": shape
        for layer in range(2)
        for name, shape in {
            "k_img.weight": [36, 36],
            "k_img.bias": [36],
            "v_img.weight": [36, 36],
            "v_img.bias": [36],
            "norm_k_img.weight": [36],
        }.items()
    }
    assert added == of_layers | {
        "img_emb.emb_pos": [1, 22, 10],
        **{f"img_emb.proj.0.{kind}": [10] for kind in ("weight", "bias")},
        "img_emb.proj.1.weight": [10, 10],
        "img_emb.proj.1.bias": [10],
        "img_emb.proj.3.weight": [36, 10],
        "img_emb.proj.3.bias": [36],
        **{f"img_emb.proj.4.{kind}": [36] for kind in ("weight", "bias")},
    }


@torch.no_grad()
def test_positions_of_first_and_last_frame() -> None:
    embedding = ImageEmbedding(10, 12, num_positions=22)
    fill(embedding)
    embeds = torch.randn(2, 22, 10)
    assert torch.equal(embedding(embeds), embedding.proj(embeds + embedding.emb_pos))
    assert not torch.equal(embedding(embeds), embedding.proj(embeds))


def test_gradient_reaches_the_image_layers_under_checkpointing() -> None:
    generator, image = generator_and_image(activation_checkpointing=True)
    run(generator, "teacher_forcing", image).square().mean().backward()
    for name in ("img_emb.proj.1.weight", "blocks.1.cross_attn.k_img.weight", "blocks.0.cross_attn.v_img.bias"):
        gradient = generator.get_parameter(name).grad
        assert gradient is not None and gradient.abs().max() > 0, name


def test_mask_and_latents() -> None:
    """As the original computes it: a mask per pixel frame, the first one four times, folded into latent frames."""
    latents = torch.randn(2, 4, 3, 5, 6)
    pixel_mask = torch.zeros(1, 1 + 4 * 3, 5, 6)
    pixel_mask[:, : 1 + 4] = 1
    folded = torch.cat([pixel_mask[:, :1].repeat_interleave(4, dim=1), pixel_mask[:, 1:]], dim=1).view(4, 4, 5, 6)
    channels = mask_and_latents(latents, num_initial_latents=2)
    assert torch.equal(channels[:, :, :4], folded.expand(2, -1, -1, -1, -1))
    assert torch.equal(channels[:, :, 4:], latents)


def test_condition_for_two_halves() -> None:
    _, image = generator_and_image()
    twice_in_time, twice_in_batch = image.twice_in_time(), image.repeated(2)
    assert twice_in_time.channels is not None and twice_in_time.channels.shape == (2, 12, 8, 4, 3)
    assert twice_in_time.embeds is image.embeds
    assert twice_in_batch.channels is not None and twice_in_batch.channels.shape == (4, 6, 8, 4, 3)
    assert twice_in_batch.embeds is not None and twice_in_batch.embeds.shape == (4, 11, 10)
    of_frames = image.of_frames(range(2, 4))
    assert image.channels is not None and of_frames is not None
    assert torch.equal(of_frames, image.channels[:, 2:4])
    with pytest.raises(ValueError, match="channels for 6 latent frames, the video goes on to 7"):
        image.of_frames(range(5, 7))
