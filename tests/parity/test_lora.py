"""Merged LoRA against peft's own merge, bit for bit, and the files that peft and diffusers write."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_action.checkpoints.lora import LoRASettings, inject_lora, merged_state_dict, split_parameters
from lightning_action.weights.low_rank import add_changes, read_low_rank, scales
from lightning_action.weights.names import from_diffusers_name
from lightning_action.weights.tensor_files import as_lazy
from tests.support.small_generator import fill, small_generator

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


SETTINGS: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"rank_pattern": {"net.2": 2}}, None),
    ({"convolution": True}, None),
    ({"use_rslora": True}, "sets .*use_rslora"),
    ({"use_dora": True}, "a part of DoRA"),
    ({"alpha_pattern": {"net.2": 4}}, "sets .*alpha_pattern.net.2"),
    ({"init_lora_weights": "pissa"}, "sets .*init_lora_weights"),
    ({"lora_bias": True}, "it holds .*lora_B.*bias.*which has no meaning here"),
]


def small_transformer() -> Any:
    from diffusers import WanTransformer3DModel

    sizes = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2, "in_channels": 5, "out_channels": 5}
    model = WanTransformer3DModel(**sizes, text_dim=11, freq_dim=20, ffn_dim=52)
    fill(model)
    return model


def write_lora(library: str, settings: dict[str, Any], folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Let a library put LoRA into a model and write its file; returns the weights without and, merged by it, with."""
    from diffusers import WanPipeline
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    model = small_transformer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = dict(settings)
    convolution = ["patch_embedding"] if settings.pop("convolution", False) else []
    config = LoraConfig(r=3, lora_alpha=12, target_modules=["to_q", "net.2", "proj_out", *convolution], **settings)
    if library == "peft":
        model = get_peft_model(model, config)
    else:
        model.add_adapter(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    if library == "diffusers pipeline":
        told = model.peft_config["default"].to_dict()
        told["target_modules"] = sorted(told["target_modules"])
        layers = get_peft_model_state_dict(model)
        WanPipeline.save_lora_weights(str(folder), layers, transformer_lora_adapter_metadata=told)
    else:
        (model.save_pretrained if library == "peft" else model.save_lora_adapter)(str(folder))
    if library == "peft":
        return before, model.merge_and_unload().state_dict()
    model.fuse_lora()
    model.unload_lora()
    return before, model.state_dict()


@pytest.mark.parametrize("library", ["peft", "diffusers model", "diffusers pipeline"])
@pytest.mark.parametrize(("settings", "refusal"), SETTINGS)
def test_files_of_the_libraries_merge_as_they_merge_them_or_are_refused(
    tmp_path: Path, library: str, settings: dict[str, Any], refusal: str | None
) -> None:
    before, after = write_lora(library, settings, tmp_path)
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            read_low_rank(tmp_path)
        return
    base = as_lazy({from_diffusers_name(name): tensor for name, tensor in before.items()})
    changes = read_low_rank(tmp_path)
    assert {text.split()[0] for text in scales(changes)} == ({"4", "6"} if "rank_pattern" in settings else {"4"})
    added = dict(add_changes(base, changes, "x"))
    assert added.keys() == {from_diffusers_name(name) for name in after}
    for name, expected in after.items():
        torch.testing.assert_close(added[from_diffusers_name(name)], expected)
    assert not torch.allclose(after["blocks.1.ffn.net.2.weight"], before["blocks.1.ffn.net.2.weight"], atol=0.1)
    assert ("convolution" in settings) != torch.equal(after["patch_embedding.weight"], before["patch_embedding.weight"])


def of_every_layer(name: str, down: str, up: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Random LoRA for the linear layers of all blocks, called by the pattern `name`."""
    tensors: dict[str, Tensor] = {}
    for weight, value in weights.items():
        dotted = weight.removesuffix(".weight")
        if dotted.startswith("blocks.") and dotted != weight and value.ndim == 2:
            layer = name.format(dotted=dotted, flat=dotted.replace(".", "_"))
            tensors[f"{layer}.{down}.weight"] = torch.randn(3, value.shape[1])
            tensors[f"{layer}.{up}.weight"] = torch.randn(value.shape[0], 3)
            tensors[f"{layer}.alpha"] = torch.tensor(12.0 + len(tensors))
    return tensors


@pytest.mark.parametrize(
    ("name", "down", "up", "biases"),
    [
        ("diffusion_model.{dotted}", "lora_A", "lora_B", False),
        ("diffusion_model.{dotted}", "lora_down", "lora_up", True),
        ("lora_unet_{flat}", "lora_down", "lora_up", False),
    ],
)
def test_files_of_other_trainers_merge_as_diffusers_takes_them(
    tmp_path: Path, name: str, down: str, up: str, biases: bool
) -> None:
    from diffusers import WanPipeline

    model = small_transformer()
    before = {from_diffusers_name(key): tensor.clone() for key, tensor in model.state_dict().items()}
    tensors = of_every_layer(name, down, up, before)
    if biases:
        layers = [key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")]
        tensors |= {f"{layer}.diff_b": torch.randn(tensors[f"{layer}.{up}.weight"].shape[0]) for layer in layers}
    save_file(tensors, tmp_path / "x.safetensors")
    changes = read_low_rank(tmp_path)
    added = dict(add_changes(as_lazy(before), changes, "x"))
    model.load_lora_adapter(WanPipeline.lora_state_dict(str(tmp_path), weight_name="x.safetensors"))
    model.fuse_lora()
    model.unload_lora()
    assert len(changes) == 2 * 10 * (1 + biases)
    for key, expected in model.state_dict().items():
        torch.testing.assert_close(added[from_diffusers_name(key)], expected, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(added["blocks.1.ffn.2.weight"], before["blocks.1.ffn.2.weight"], atol=0.1)
