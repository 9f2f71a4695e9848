"""LoRA files of every make add to the weights what peft adds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_action.weights.low_rank import add_changes, read_low_rank
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.safetensors_files import write_safetensors
from lightning_action.weights.tensor_files import as_lazy
from tests.support.small_generator import small_generator

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


def fun(layer: str) -> tuple[str, str]:
    flat = f"lora_unet__{layer.replace('.', '_')}"
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"


def half_flat(layer: str) -> tuple[str, str]:
    flat = f"lora_unet_{layer.replace('.', '_', 1)}"
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"


def flat_diffusers(layer: str) -> tuple[str, str]:
    flat = f"lora_transformer_{to_diffusers_name(f'{layer}.').removesuffix('.').replace('.', '_')}"
    return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"


def lycoris(layer: str) -> tuple[str, str]:
    return fun(layer)[0].replace("lora_unet__", "lycoris_"), fun(layer)[1].replace("lora_unet__", "lycoris_")


def dollars(layer: str) -> tuple[str, str]:
    theirs = diffusers(layer)[0].removesuffix(".lora_A.weight").replace(".", "$$")
    return f"{theirs}.lora_down.weight", f"{theirs}.lora_up.weight"


def diffsynth(layer: str) -> tuple[str, str]:
    return f"pipe.dit.{layer}.lora_A.default.weight", f"pipe.dit.{layer}.lora_B.default.weight"


def official(layer: str) -> tuple[str, str]:
    return f"model.diffusion_model.{layer}.lora.down.weight", f"model.diffusion_model.{layer}.lora.up.weight"


def older(layer: str) -> tuple[str, str]:
    return f"model.{layer}_lora.down.weight", f"model.{layer}_lora.up.weight"


def bare(layer: str) -> tuple[str, str]:
    return f"{layer}.lora_linear_layer.down.weight", f"{layer}.lora_linear_layer.up.weight"


def parameters(layer: str) -> tuple[str, str]:
    return f"diffusion_model.{layer}.lora_A", f"diffusion_model.{layer}.lora_B"


ADDED = [parameters, fun, half_flat, flat_diffusers, lycoris, dollars, diffsynth, official, older, bare]


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


@pytest.mark.parametrize("names", [peft, peft_default, wrapped, diffusers, comfy, kohya, *ADDED])
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


DIFFERENCES = {
    "diffusion_model.blocks.0.diff_m": "blocks.0.modulation",
    "diffusion_model.head.diff_m": "head.modulation",
    "blocks.1.modulation.diff": "blocks.1.modulation",
    "transformer.proj_out.diff": "head.head.weight",
    "lora_unet_blocks_0_norm3.w_norm": "blocks.0.norm3.weight",
    "lora_unet_blocks_0_norm3.b_norm": "blocks.0.norm3.bias",
    "diffusion_model.blocks.1.self_attn.norm_q.diff": "blocks.1.self_attn.norm_q.weight",
    "diffusion_model.patch_embedding.diff": "patch_embedding.weight",
    "diffusion_model.patch_embedding.diff_b": "patch_embedding.bias",
    "diffusion_model.time_projection.1.diff_b": "time_projection.1.bias",
}


@pytest.mark.parametrize("beside", [False, True])
def test_differences_need_no_matrices(tmp_path: Path, beside: bool) -> None:
    changes = {name: torch.randn(BASE[target].shape) for name, target in DIFFERENCES.items()}
    write_safetensors(tmp_path / "x.safetensors", changes | (factors(comfy) if beside else {}), {})
    expected = merged(1.0) if beside else dict(BASE)
    for name, target in DIFFERENCES.items():
        expected[target] = expected[target] + changes[name]
    assert_same(add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x"), expected)


def test_a_difference_beside_the_matrices_of_a_weight_is_added_too(tmp_path: Path) -> None:
    difference = torch.randn(BASE["text_embedding.0.weight"].shape)
    write_safetensors(
        tmp_path / "x.safetensors", factors(comfy) | {"diffusion_model.text_embedding.0.diff": difference}, {}
    )
    added = add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x")["text_embedding.0.weight"]
    torch.testing.assert_close(added, merged(1.0)["text_embedding.0.weight"] + difference)


@pytest.mark.parametrize("flat", [False, True])
def test_the_lora_of_a_convolution_is_merged(tmp_path: Path, flat: bool) -> None:
    weight = BASE["patch_embedding.weight"]
    down, up = torch.randn(RANK, *weight.shape[1:]), torch.randn(weight.shape[0], RANK)
    names = comfy("patch_embedding")
    tensors = dict(zip(names, (down.flatten(1), up) if flat else (down, up[:, :, None, None, None]), strict=True))
    write_safetensors(tmp_path / "x.safetensors", tensors, {"lora_alpha": "1.5"})
    added = add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x")
    assert added.entries["patch_embedding.weight"].shape == weight.shape
    expected = weight + 0.5 * torch.einsum("or,rijkl->oijkl", up, down)
    torch.testing.assert_close(added["patch_embedding.weight"], expected)


def test_matrices_of_two_dtypes_are_multiplied_in_the_wider(tmp_path: Path) -> None:
    tensors = {name: t.bfloat16() if ".lora_down." in name else t for name, t in factors(comfy).items()}
    write_safetensors(tmp_path / "x.safetensors", tensors, {})
    change = read_low_rank(tmp_path)["diffusion_model.text_embedding.0.weight"]
    assert torch.equal(change.read(), UP["text_embedding.0"] @ DOWN["text_embedding.0"].bfloat16().float())
    assert change.dtype == torch.float32


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int64, torch.bool, torch.complex64]
)
@pytest.mark.parametrize("name", [*comfy("text_embedding.0"), "diffusion_model.blocks.0.norm3.diff"])
def test_what_is_no_plain_floating_point_is_refused(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    tensors = factors(comfy) | {"diffusion_model.blocks.0.norm3.diff": torch.ones(36)}
    write_safetensors(tmp_path / "x.safetensors", tensors | {name: tensors[name].to(dtype)}, {})
    with pytest.raises(ValueError, match=rf"{name} in .*x.safetensors is of {dtype}: expected float16"):
        read_low_rank(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", [*comfy("text_embedding.0"), "diffusion_model.blocks.0.norm3.diff"])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float, name: str) -> None:
    tensors = factors(comfy) | {"diffusion_model.blocks.0.norm3.diff": torch.ones(36)}
    damaged = tensors[name].clone()
    damaged.view(-1)[-1] = value
    save_file(tensors | {name: damaged}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"{name} in .*x.safetensors holds values that are not finite"):
        read_low_rank(tmp_path)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("dora_scale", "DoRA"),
        ("hada_w1_a", "LoHa"),
        ("lokr_w1", "LoKr"),
        ("lora_mid.weight", "LoCon"),
        ("oft_blocks", "OFT"),
        ("lora_A.weight.absmax", ""),
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_other_kinds_than_lora_are_named(tmp_path: Path, part: str, kind: str, beside: bool) -> None:
    name = f"lora_unet_text_embedding_0.{part}"
    write_safetensors(tmp_path / "x.safetensors", {name: torch.ones(3, 3)} | (factors(kohya) if beside else {}), {})
    message = rf"is not plain LoRA: it holds {name}.*{kind}" if kind or beside else rf"holds no LoRA: .*found {name}"
    with pytest.raises(ValueError, match=message):
        read_low_rank(tmp_path)


def test_the_lora_of_another_model_is_not_taken_for_one_of_ours(tmp_path: Path) -> None:
    layer = to_diffusers_name("blocks.0.self_attn.q.").removesuffix(".")
    shapes = {"A": (3, 36), "B": (36, 3)}
    tensors = {f"transformer_{layer}.lora_{side}.weight": torch.ones(shape) for side, shape in shapes.items()}
    write_safetensors(tmp_path / "x.safetensors", tensors, {})
    with pytest.raises(ValueError, match=r"x changes 1 weights that the generator does not have: transformer_blocks"):
        add_changes(as_lazy(BASE), read_low_rank(tmp_path), "x")


@pytest.mark.parametrize("scheme", [str, to_diffusers_name])
def test_names_stay_apart_without_their_dots(scheme: Callable[[str], str]) -> None:
    names = small_generator(image_dim=13).state_dict()
    assert len({scheme(name).replace(".", "_") for name in names}) == len(names)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {peft("text_embedding.0")[0]: torch.zeros(0, 9), peft("text_embedding.0")[1]: torch.zeros(36, 0)},
            r"is \[36, 0\] times \[0, 9\]: expected \[out, rank\]",
        ),
        ({"text_embedding.2.diff": torch.zeros(36, 8)}, r"text_embedding.2.weight \[36, 8\] \(expected \[36, 36\]\)"),
        (
            {"base_model.model.text_embedding.0.diff": torch.zeros(36, 8)},
            r"by matrices for \[36, 9\] and by a difference of \[36, 8\]",
        ),
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
