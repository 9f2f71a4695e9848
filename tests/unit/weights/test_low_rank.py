"""LoRA files of every make add to the weights what peft adds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action.weights import add_changes, as_lazy, read_low_rank, to_diffusers_name, write_safetensors
from tests.helpers import small_generator

RANK, ALPHA = 3, 1.5
BASE: dict[str, Tensor] = dict(small_generator(1).state_dict())
LAYERS = ("blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.cross_attn.k", "text_embedding.0")
DOWN = {layer: torch.randn(RANK, BASE[f"{layer}.weight"].shape[1]) for layer in LAYERS}
UP = {layer: torch.randn(BASE[f"{layer}.weight"].shape[0], RANK) for layer in LAYERS}


def peft(layer: str) -> tuple[str, str]:
    return f"base_model.model.{layer}.lora_A.weight", f"base_model.model.{layer}.lora_B.weight"


def peft_default(layer: str) -> tuple[str, str]:
    return f"base_model.model.model.{layer}.lora_A.default.weight", peft(f"model.{layer}")[1].replace(
        "_B", "_B.default"
    )


def wrapped(layer: str) -> tuple[str, str]:
    return peft_default(layer)[0].replace("blocks.0.", "blocks.0._fsdp_wrapped_module."), peft_default(layer)[1]


def diffusers(layer: str) -> tuple[str, str]:
    theirs = to_diffusers_name(f"{layer}.").removesuffix(".")
    return f"transformer.{theirs}.lora_A.weight", f"transformer.{theirs}.lora_B.weight"


def comfy(layer: str) -> tuple[str, str]:
    return f"diffusion_model.{layer}.lora_down.weight", f"diffusion_model.{layer}.lora_up.weight"


def kohya(layer: str) -> tuple[str, str]:
    flat = f"lora_unet_{layer.replace('.', '_')}"
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"


def factors(names: Callable[[str], tuple[str, str]]) -> dict[str, Tensor]:
    found = {}
    for layer in LAYERS:
        down, up = names(layer)
        found |= {down: DOWN[layer], up: UP[layer]}
    return found


def merged(scale: float) -> dict[str, Tensor]:
    changes = {f"{layer}.weight": (UP[layer] @ DOWN[layer]) * scale for layer in LAYERS}
    return {name: tensor + changes[name] if name in changes else tensor for name, tensor in BASE.items()}


def assert_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in other.items():
        assert one[name].dtype == tensor.dtype
        assert torch.equal(one[name], tensor), name


@pytest.mark.parametrize("names", [peft, peft_default, wrapped, diffusers, comfy, kohya])
def test_every_naming_is_merged(tmp_path: Path, names: Callable[[str], tuple[str, str]]) -> None:
    write_safetensors(tmp_path / "x.safetensors", factors(names), {})
    for alpha, scale in ((None, 1.0), (ALPHA, 0.5)):
        added = add_changes(as_lazy(BASE), read_low_rank(tmp_path / "x.safetensors", alpha), "x")
        assert_same(added, merged(scale))
    assert not torch.equal(added["text_embedding.0.weight"], BASE["text_embedding.0.weight"])


def test_the_alpha_of_each_layer_in_the_file_counts(tmp_path: Path) -> None:
    alphas = {f"{kohya(layer)[0].removesuffix('.lora_down.weight')}.alpha": torch.tensor(ALPHA) for layer in LAYERS}
    write_safetensors(tmp_path / "x.safetensors", factors(kohya) | alphas, {})
    assert_same(add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x"), merged(0.5))


def test_alpha_is_taken_from_the_configuration_of_peft(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors", factors(peft), {})
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "use_dora": False}))
    assert_same(add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x"), merged(0.5))
    assert_same(add_changes(as_lazy(BASE), read_low_rank(tmp_path, alpha=3.0), "x"), merged(1.0))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "use_dora": True}))
    with pytest.raises(ValueError, match=r"adapter_config.json sets use_dora: only plain LoRA with one alpha"):
        read_low_rank(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"lora_alpha": null}'])
def test_a_damaged_configuration_of_peft_is_refused(tmp_path: Path, text: str) -> None:
    write_safetensors(tmp_path / "adapter_model.safetensors", factors(peft), {})
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json is no configuration of a LoRA: expected JSON with"):
        read_low_rank(tmp_path)


@pytest.mark.parametrize("outer", ["generator_lora", "lora"])
def test_the_generators_part_of_a_training_checkpoint_is_taken(tmp_path: Path, outer: str) -> None:
    critic = {name: tensor + 1 for name, tensor in factors(peft_default).items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}}
    torch.save({outer: factors(peft_default), "critic_lora": critic, "optimizer": optimizer}, tmp_path / "lora.pt")
    assert_same(add_changes(as_lazy(BASE), read_low_rank(tmp_path / "lora.pt"), "x"), merged(1.0))


def test_differences_of_weights_and_biases_are_added(tmp_path: Path) -> None:
    bias, norm = torch.randn(36), torch.randn(36)
    more = {"diffusion_model.blocks.0.self_attn.q.diff_b": bias, "diffusion_model.blocks.0.norm3.diff": norm}
    write_safetensors(tmp_path / "x.safetensors", factors(comfy) | more, {})
    expected = merged(1.0)
    expected["blocks.0.self_attn.q.bias"] = BASE["blocks.0.self_attn.q.bias"] + bias
    expected["blocks.0.norm3.weight"] = BASE["blocks.0.norm3.weight"] + norm
    assert_same(add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x"), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({peft("blocks.9.ffn.0")[0]: torch.zeros(3, 36), peft("blocks.9.ffn.0")[1]: torch.zeros(44, 3)}, "blocks.9"),
        ({peft("text_embedding.0")[0]: torch.zeros(3, 8)}, r"text_embedding.0.weight \[36, 8\] \(expected \[36, 9\]\)"),
        ({peft("text_embedding.0")[0]: torch.zeros(4, 9)}, r"is \[36, 3\] times \[4, 9\]: expected \[out, rank\]"),
        ({peft("head.head")[0]: torch.zeros(3, 36)}, r"head.head in .* has only down: expected two matrices"),
        ({"blocks.0.self_attn.q.lora_magnitude_vector": torch.zeros(3)}, "is not plain LoRA: .*lora_magnitude_vector"),
        ({"blocks.0.self_attn.q.lora_B.bias": torch.zeros(3)}, "is not plain LoRA: .*q.lora_B.bias"),
        (
            {"base_model.model.text_embedding.0.lora_A.second.weight": torch.zeros(3, 9)},
            "holds several LoRAs of base_model.model.text_embedding.0: expected one",
        ),
    ],
)
def test_what_cannot_be_merged_is_named(tmp_path: Path, change: dict[str, Tensor], message: str) -> None:
    write_safetensors(tmp_path / "x.safetensors", factors(peft) | change, {})
    with pytest.raises(ValueError, match=message):
        add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x.safetensors")


def test_two_loras_for_one_weight_are_refused(tmp_path: Path) -> None:
    critic = {f"critic.{name}": tensor.clone() for name, tensor in factors(peft).items()}
    write_safetensors(tmp_path / "x.safetensors", factors(peft) | critic, {})
    with pytest.raises(ValueError, match="x changes .*weight several times, once under critic.base_model.model"):
        add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x")


def test_a_file_without_lora_is_refused(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "x.safetensors", BASE, {})
    with pytest.raises(ValueError, match=r"x.safetensors holds no LoRA: expected .*, found blocks.*, \.\.\."):
        read_low_rank(tmp_path)
