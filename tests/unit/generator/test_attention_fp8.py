from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.generation.captured_pass import CapturedPass
from lightning_action.generation.rollout import rollout
from lightning_action.generator.attention import attend_dense
from lightning_action.generator.attention_fp8 import attend_fp8, enable_fp8_attention
from lightning_action.generator.causality import BlockCausality
from lightning_action.generator.quantization import to_float8
from tests.support.small_generator import small_generator, small_inputs
from tests.support.small_rollout import session


def draw(num_queries: int, num_keys: int) -> list[Tensor]:
    torch.manual_seed(num_queries)
    return [torch.randn(2, number, 3, 16) for number in (num_queries, num_keys, num_keys)]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (7, 19), (130, 257)])
def test_it_is_attention_to_three_bits_of_mantissa(num_queries: int, num_keys: int) -> None:
    operands = draw(num_queries, num_keys)
    out = attend_fp8(*operands)
    assert out.shape == operands[0].shape and out.dtype == torch.float32
    assert 0 < error(out, attend_dense(*operands)) < 0.06
    assert attend_fp8(*(x.bfloat16() for x in operands)).dtype == torch.bfloat16


def test_what_all_keys_share_costs_no_bits() -> None:
    query, key, value = draw(9, 40)
    shifted = key + 60 * torch.randn(1, 1, 3, 16)
    assert error(attend_fp8(query, shifted, value), attend_dense(query, key, value)) < 0.06
    rounded = [to_float8(x, (1, 3)) for x in (query, shifted)]
    with_offset = attend_dense(*(x.float() * scale for x, scale in rounded), value)
    assert error(with_offset, attend_dense(query, key, value)) > 0.1, "it would, were the mean not taken away"


def test_each_head_has_its_scale() -> None:
    query, key, value = draw(5, 11)
    sizes = torch.tensor([1e-4, 1.0, 300.0])[:, None]
    expected, found = (attend(query, key, value * sizes) for attend in (attend_dense, attend_fp8))
    for head in range(3):
        assert 0 < error(found[:, :, head], expected[:, :, head]) < 0.06
    rounded, scale = to_float8(value * sizes, (1, 3))
    assert scale.shape == (2, 1, 3, 1) and float(rounded.float().abs().max()) == 448
    nothing = torch.zeros(1, 4, 2, 8)
    assert torch.equal(attend_fp8(nothing, nothing, nothing), nothing)


@torch.no_grad()
@pytest.mark.usefixtures("scalar_code")
def test_a_video_in_8_bits_is_nearly_the_same_also_in_one_captured_pass() -> None:
    generator, causality, num_frames = small_generator(), BlockCausality(1, 3, 1), 6
    x = small_inputs(num_frames, batch_size=1)
    videos = [
        torch.cat(
            list(
                rollout(
                    session(generator, x["text"], causality, num_frames, samples=(4,), **how),
                    num_frames,
                    x["modulation"],
                )
            ),
            dim=1,
        )
        for how in ({}, {"kernel": attend_fp8}, {"kernel": attend_fp8, "capture": CapturedPass})
    ]
    plain, eight_bits, captured = videos
    assert 1e-4 < error(eight_bits, plain) < 0.1
    # What is nearly in the middle between two numbers of 8 bits falls to either side.
    assert error(captured, eight_bits) < 0.02


def test_other_gpus_and_missing_packages_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    enable_fp8_attention(torch.device("cpu"), 12)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(RuntimeError, match=r"capability 9.0 .*this is \(8, 0\).*acceleration.attention: null"):
        enable_fp8_attention(torch.device("cuda"), 128)
    with pytest.raises(RuntimeError, match="this is mps"):
        enable_fp8_attention(torch.device("mps"), 128)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(ValueError, match="takes heads of 16, 32, ... 256 channels, this generator has 24"):
        enable_fp8_attention(torch.device("cuda"), 24)
    with pytest.raises((ImportError, RuntimeError), match="flash_attn_interface|needs torch 2.11 or newer"):
        enable_fp8_attention(torch.device("cuda"), 128)


def test_an_older_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without(name: str, globals: Any = None, locals: Any = None, names: Any = (), level: int = 0) -> Any:
        if "activate_flash_attention_impl" in (names or ()):
            raise ImportError(name)
        return real_import(name, globals, locals, names, level)

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RuntimeError, match="needs torch 2.11 or newer"):
        enable_fp8_attention(torch.device("cuda"), 128)
