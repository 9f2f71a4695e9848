from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.batch import to_bytes
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.samplers import few_step
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.frozen.wan_vae import WanVideoVAE
from lightning_action.generation.rollout import CausalRollout, rollout
from lightning_action.generation.video import to_host
from lightning_action.generator.attention import attend_flex, attend_masked, frame_mask
from lightning_action.generator.causality import BlockCausality, teacher_forcing
from lightning_action.generator.quantization import Fp8Linear
from tests.support.small_generator import small_generator, small_inputs
from tests.support.wan_parts import GEOMETRY, small_umt5, small_vae, video, write_word_tokenizer


def test_flex_attention_agrees_with_the_mask() -> None:
    plan = teacher_forcing(6, BlockCausality(3, 6, 1))
    grads = []
    for attend in (attend_flex, attend_masked):
        torch.manual_seed(0)
        tokens = frame_mask(plan).shape[0] * 24
        inputs = [torch.randn(2, tokens, 2, 32, device="cuda", requires_grad=True) for _ in range(3)]
        out = attend(*inputs, plan, 24)
        out.square().sum().backward()
        grads.append([out, *(x.grad for x in inputs)])
    torch.testing.assert_close(grads[0], grads[1], atol=2e-3, rtol=2e-3)


@torch.no_grad()
def test_rollout_is_that_of_the_cpu() -> None:
    generator, x = small_generator(), small_inputs(9)
    causality = BlockCausality(3, 6, 3)
    sampler = partial(few_step, timesteps=(1000.0, 500.0), schedule=FlowMatchSchedule(5.0))
    videos = []
    for device in ("cpu", "cuda"):
        noise = frame_noise(0, (3, 8), (5, 4, 3), device)
        session = CausalRollout(generator.to(device), x["text"].to(device), causality, sampler, noise, (5, 4, 3), 9)
        videos.append(torch.cat(list(rollout(session, 9, x["modulation"].to(device))), dim=1).cpu())
    torch.testing.assert_close(videos[0], videos[1], atol=1e-3, rtol=0)


@torch.no_grad()
def test_products_in_float8_are_those_of_the_cpu() -> None:
    """To a rounding to bfloat16 more; on a card of compute capability 8.9 or newer."""
    joined, x = Fp8Linear.of(torch.nn.Linear(64, 48), torch.nn.Linear(64, 32)), torch.randn(3, 7, 64)
    expected = joined(x), joined(x, first_out=48)
    joined.cuda()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = joined(x.cuda().to(dtype)), joined(x.cuda().to(dtype), first_out=48)
        assert found[0].dtype == dtype and torch.equal(found[1], found[0][..., 48:])
    found = joined(x.cuda()).cpu(), joined(x.cuda(), first_out=48).cpu()
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=2**-7)


@torch.no_grad()
def test_low_memory_text_encoder_leaves_the_gpu(tmp_path: Path) -> None:
    small_umt5().save_pretrained(tmp_path)
    write_word_tokenizer(tmp_path)
    encoder = UMT5TextEncoder(str(tmp_path), dtype="float32", low_memory=True)
    on_cpu = UMT5TextEncoder(str(tmp_path), dtype="float32").encode(["a red disc"])
    encoder.to(torch.device("cuda"))
    before = torch.cuda.memory_allocated()
    encoded = encoder.encode(["a red disc"])
    assert encoder._model.device.type == "cpu"
    assert torch.cuda.memory_allocated() - before <= 512 + encoded.untyped_storage().nbytes()
    torch.testing.assert_close(encoded.cpu(), on_cpu, atol=1e-4, rtol=0)


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_video_vae_is_that_of_the_cpu(version: str, tmp_path: Path) -> None:
    small_vae(version).save_pretrained(tmp_path)
    pixels = video(version)
    results = []
    for device in ("cpu", "cuda"):
        vae = WanVideoVAE(str(tmp_path), **GEOMETRY[version])
        vae.to(torch.device(device))
        latents = vae.encode(pixels)
        results.append((latents.cpu(), vae.decode(latents).cpu()))
    torch.testing.assert_close(results[0], results[1], atol=1e-2, rtol=0)


@torch.no_grad()
def test_pixels_on_the_host_are_those_of_the_device() -> None:
    weight = torch.randn(512, 512, device="cuda") / 512**0.5

    def blocks() -> Iterator[Tensor]:
        latents = torch.ones(512, 512, device="cuda")
        for _ in range(6):
            for _ in range(20):
                latents = (latents @ weight).tanh()
            yield latents

    def decode(latents: Tensor) -> Tensor:
        for _ in range(20):
            latents = (latents @ weight.T).tanh()
        return latents

    expected = [to_bytes(decode(latents)).cpu() for latents in blocks()]
    for overlaps in (False, True):
        for pixels, (on_host, finite) in zip(expected, to_host(blocks(), decode, overlaps), strict=True):
            assert on_host.is_pinned() and finite.item() and torch.equal(on_host, pixels)
            assert pixels.unique().numel() > 1
