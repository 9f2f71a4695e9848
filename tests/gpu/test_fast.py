"""What makes passes faster, against what is slower: kernels, checkpointing, a captured pass, 8 bits, a tiny decoder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks._gpu_bench import tiny_decoder_tensors
from lightning_action.frozen.tiny_vae import TinyWanVAE
from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.rollout import rollout
from lightning_action.generator.attention import attend_by_block, attend_dense, attend_masked, frame_mask
from lightning_action.generator.attention_fp8 import attend_fp8, enable_fp8_attention
from lightning_action.generator.attention_kernels import hold_attention_kernels
from lightning_action.generator.causality import BlockCausality, teacher_forcing
from lightning_action.generator.prompt import pad, padding_bias
from lightning_action.weights.safetensors_files import write_safetensors
from tests.support.attentions import Attentions, watch_dtypes
from tests.support.small_generator import small_generator, small_inputs
from tests.support.small_rollout import session

CUDA = torch.device("cuda")
# Fused kernels take heads of 64 channels, in bfloat16.
WIDE: dict[str, Any] = {"dim": 128, "num_heads": 2}


def on_cuda(values: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: value.to(CUDA, torch.float32 if name == "timestep" else dtype) for name, value in values.items()}


def inputs(num_frames: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    x = on_cuda(small_inputs(num_frames, height=16, width=16), dtype)
    return {**x, "modulation": 0.1 * torch.randn(2, num_frames, 6, WIDE["dim"], device=CUDA, dtype=dtype)}


def error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().float(), expected.detach().float()
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("with_gradient", [False, True])
def test_few_zeros_that_count_do_what_all_of_them_do(with_gradient: bool) -> None:
    hold_attention_kernels(CUDA)
    torch.manual_seed(0)
    results = []
    for num_tokens in (20, 512):
        torch.manual_seed(1)
        query = torch.randn(2, 640, 2, 64, device=CUDA, dtype=torch.bfloat16, requires_grad=with_gradient)
        text = torch.randn(2, 20, 128, device=CUDA, dtype=torch.bfloat16)
        text = torch.cat([text, text.new_zeros(2, num_tokens - 20, 128)], dim=1)
        padded = pad(text, 512)
        bias = padding_bias(num_tokens, padded.shape[1], 512, CUDA, torch.bfloat16)
        keys = (padded + 0.1).unflatten(-1, (2, 64))
        out = attend_dense(query, keys, keys, bias)
        if with_gradient:
            out.float().square().sum().backward()
        results.append(out if query.grad is None else query.grad)
    assert error(results[0], results[1]) < 0.02


def test_calls_by_block_agree_with_the_mask() -> None:
    plan = teacher_forcing(6, BlockCausality(3, 6, 1))
    grads = []
    for attend in (attend_by_block, attend_masked):
        torch.manual_seed(0)
        shape = (2, frame_mask(plan).shape[0] * 64, 2, 64)
        operands = [torch.randn(shape, device=CUDA, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        out = attend(*operands, plan, 64)
        out.float().square().sum().backward()
        grads.append([out, *(x.grad for x in operands)])
    for found, expected in zip(*grads, strict=True):
        assert found is not None and expected is not None and error(found, expected) < 0.02


def test_kept_attention_is_computed_once_and_changes_nothing() -> None:
    hold_attention_kernels(CUDA)
    results = []
    for way in (False, "keep_attention"):
        generator = small_generator(activation_checkpointing=way, flex_on_cuda=False, **WIDE).to(CUDA, torch.bfloat16)
        x = inputs(4)
        with Attentions() as attentions:
            velocity = generator.teacher_forcing(
                x["clean"], x["noisy"], x["timestep"], x["text"], BlockCausality(2), x["modulation"]
            )
            velocity.float().square().mean().backward()
        results.append((attentions.count, generator.blocks[0].self_attn.q.weight.grad))
    assert results[0][0] == results[1][0]
    assert error(results[1][1], results[0][1]) < 0.02


def test_under_autocast_tokens_queries_and_keys_are_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, x = small_generator(**WIDE).to(CUDA), inputs(4, torch.float32)
    seen = watch_dtypes(generator, monkeypatch)
    with torch.autocast("cuda", torch.bfloat16):
        generator.block_causal(x["noisy"], x["timestep"], x["text"], BlockCausality(2), x["modulation"])
    assert set(seen) == {torch.bfloat16} and len(seen) == 2 * 5


@pytest.mark.parametrize("context", ["clean", "last_step"])
@torch.no_grad()
def test_a_captured_pass_is_the_plain_one(context: str) -> None:
    generator, x = small_generator(**WIDE).to(CUDA, torch.bfloat16), inputs(24)
    videos = []
    for capture in (None, CapturedPass):
        # Twice each: the second video is replayed from its beginning on.
        for _ in range(2):
            run = session(
                generator, x["text"], BlockCausality(2, 6, 2), 24, shape=(5, 16, 16), capture=capture, context=context
            )
            videos.append(torch.cat(list(rollout(run, 24, x["modulation"])), dim=1))
    assert torch.equal(videos[0], videos[1]) and torch.equal(videos[2], videos[3])
    assert error(videos[2], videos[0]) < 0.05


@torch.no_grad()
def test_attention_in_8_bits_is_that_of_the_cpu() -> None:
    """On Hopper with FlashAttention 3; elsewhere it says what is missing."""
    if torch.cuda.get_device_capability() != (9, 0) or find_spec("flash_attn_interface") is None:
        with pytest.raises((RuntimeError, ImportError), match="attention in float8 needs"):
            enable_fp8_attention(CUDA, 128)
        return
    enable_fp8_attention(CUDA, 128)
    torch.manual_seed(0)
    operands = [torch.randn(1, number, 2, 128, dtype=torch.bfloat16) for number in (300, 1000, 1000)]
    found = attend_fp8(*(x.to(CUDA) for x in operands)).cpu()
    assert error(found, attend_fp8(*operands)) < 0.03
    assert 0.001 < error(found, attend_dense(*operands)) < 0.08


@torch.no_grad()
def test_the_tiny_decoder_is_that_of_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "taew2_1.safetensors"
    write_safetensors(file, tiny_decoder_tensors((16, 12, 8, 8)), {})
    latents, videos = torch.randn(1, 6, 16, 5, 7), []
    for device in (torch.device("cpu"), CUDA):
        vae = TinyWanVAE(str(file))
        vae.to(device)
        decode = vae.streaming_decoder()
        videos.append(torch.cat([decode(part.to(device)).cpu() for part in latents.split(3, dim=1)], dim=1))
    torch.testing.assert_close(videos[0], videos[1], atol=5e-3, rtol=0)
