"""Merged LoRA against peft's own merge, bit for bit, and peft's own files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_action.lora import LoRASettings, inject_lora, merged_state_dict, split_parameters
from lightning_action.weights import add_changes, as_lazy, read_low_rank
from tests.helpers import small_generator

TARGETS = ["q", "o", "ffn.2"]


def randomise(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in split_parameters(module)[0].values():
            parameter.normal_()


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_export_merges_as_peft_does(dtype: torch.dtype) -> None:
    from peft.tuners.lora import LoraLayer

    generator = small_generator().to(dtype)
    inject_lora(generator, LoRASettings(rank=5, alpha=7.0, target_modules=TARGETS))
    randomise(generator)
    theirs = copy.deepcopy(generator)
    layers = [module for module in theirs.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.merge()
    assert len(layers) == 2 * 5
    expected = {
        name.replace(".base_layer.", "."): tensor
        for name, tensor in theirs.state_dict().items()
        if ".lora_" not in name
    }
    assert_same(dict(merged_state_dict(generator)), expected)
    assert not torch.equal(expected["blocks.0.ffn.2.weight"], small_generator().to(dtype).blocks[0].ffn[2].weight)


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16])
def test_a_file_of_peft_merges_at_load_as_peft_does(tmp_path: Path, base_dtype: torch.dtype) -> None:
    from peft import LoraConfig, get_peft_model

    base = small_generator().to(base_dtype)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    wrapped = get_peft_model(base, LoraConfig(r=5, lora_alpha=7, target_modules=TARGETS))
    randomise(wrapped)
    wrapped.save_pretrained(str(tmp_path))
    merged = wrapped.merge_and_unload().state_dict()
    assert_same(dict(add_changes(as_lazy(weights), read_low_rank(tmp_path), "x")), merged)
    assert not torch.equal(merged["blocks.0.ffn.2.weight"], weights["blocks.0.ffn.2.weight"])
