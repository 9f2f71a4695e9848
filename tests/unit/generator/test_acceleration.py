from __future__ import annotations

import sys

import pytest
import torch

from lightning_action.generator.acceleration import Acceleration, Quantization, quantize_layers
from lightning_action.generator.causality import BlockCausality
from tests.support.small_generator import small_generator, small_inputs


@pytest.mark.parametrize(("quantization", "error"), [("fp8_weight_only", 0.06), ("int8_weight_only", 0.02)])
@torch.no_grad()
def test_layers_compute_nearly_the_same_with_8_bit_weights(quantization: Quantization, error: float) -> None:
    """Float8 has 3 bits of mantissa, so a weight is off by up to 1/16; 8-bit integers by up to 1/254 of the largest."""
    generator, x = small_generator(), small_inputs(4)
    arguments = (x["noisy"], x["timestep"], x["text"], BlockCausality(2), x["modulation"])
    before = generator.block_causal(*arguments)
    quantize_layers(generator.blocks, quantization)
    after = generator.block_causal(*arguments)
    assert 0 < (after - before).norm() / before.norm() < error
    assert type(generator.blocks[0].ffn[0].weight) is not torch.nn.Parameter
    assert type(generator.head.head.weight) is torch.nn.Parameter


def test_dynamic_float8_needs_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="fp8_dynamic does not work on this device .*compute capability"):
        quantize_layers(small_generator().blocks, "fp8_dynamic")


def test_without_torchao_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning_action\[quantization\]'"):
        quantize_layers(small_generator().blocks, "int8_weight_only")


def test_a_pass_and_its_layers_are_not_compiled_both() -> None:
    with pytest.raises(ValueError, match="capture_pass compiles the whole pass"):
        Acceleration(compile_mode="default", capture_pass=True)
