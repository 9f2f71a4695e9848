"""A generator in every format of the family comes back bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action.weights.generator_file import read_action_projection, read_generator
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.safetensors_files import write_safetensors
from tests.support.small_generator import small_generator

OURS: dict[str, Tensor] = dict(small_generator(1).state_dict())
OTHER = {name: tensor + 1 for name, tensor in OURS.items()}
IMAGE = {
    "img_emb.emb_pos": torch.randn(1, 6, 13),
    "img_emb.proj.0.weight": torch.randn(13),
    "img_emb.proj.1.weight": torch.randn(13, 13),
    "img_emb.proj.3.bias": torch.randn(36),
    "img_emb.proj.4.weight": torch.randn(36),
    "blocks.1.cross_attn.k_img.weight": torch.randn(36, 36),
    "blocks.1.cross_attn.v_img.bias": torch.randn(36),
    "blocks.1.cross_attn.norm_k_img.weight": torch.randn(36),
}
IMAGE_IN_DIFFUSERS = {
    "condition_embedder.image_embedder.pos_embed",
    "condition_embedder.image_embedder.norm1.weight",
    "condition_embedder.image_embedder.ff.net.0.proj.weight",
    "condition_embedder.image_embedder.ff.net.2.bias",
    "condition_embedder.image_embedder.norm2.weight",
    "blocks.1.attn2.add_k_proj.weight",
    "blocks.1.attn2.add_v_proj.bias",
    "blocks.1.attn2.norm_added_k.weight",
}


def prefixed(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def wrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As sharding, activation checkpointing and compilation name them, inside too."""
    return {
        f"model._fsdp_wrapped_module.{name}".replace(
            "blocks.1.", "blocks.1._orig_mod._fsdp_wrapped_module._checkpoint_wrapped_module."
        ): tensor
        for name, tensor in tensors.items()
    }


def in_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {to_diffusers_name(name): tensor for name, tensor in tensors.items()}


def fused(tensors: Mapping[str, Tensor], parts: tuple[str, ...], attention: str, name: str) -> dict[str, Tensor]:
    """With the projections `parts` of `attention` as one."""
    result = dict(tensors)
    for layer in (0, 1):
        for attribute in ("weight", "bias"):
            rows = [result.pop(f"blocks.{layer}.{attention}.{part}.{attribute}") for part in parts]
            result[f"blocks.{layer}.{attention}.{name}.{attribute}"] = torch.cat(rows)
    return result


def save(content: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        torch.save(content, folder / "model.pt")
        return folder / "model.pt"

    return write


def save_safetensors(tensors: Mapping[str, Tensor]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
        return folder / "model.safetensors"

    return write


def save_shards(tensors: Mapping[str, Tensor]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        files = {name: f"model-{index % 3 + 1:05}-of-00003.safetensors" for index, name in enumerate(sorted(tensors))}
        for file in set(files.values()):
            write_safetensors(folder / file, {name: tensors[name] for name in files if files[name] == file}, {})
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
        return folder

    return write


def lightning_checkpoint(tensors: Mapping[str, Tensor], **more: Any) -> dict[str, Any]:
    state = prefixed(tensors, "generator.") | {"action_projection.action_projection.weight": torch.zeros(2)}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {"state_dict": state, "optimizer_states": [optimizer], "epoch": 3, "loops": {"fit_loop": {}}, **more}


FORMATS: dict[str, Callable[[Path], Path]] = {
    "safetensors, original names": save_safetensors(OURS),
    "safetensors, model.": save_safetensors(prefixed(OURS, "model.")),
    "safetensors, model.diffusion_model.": save_safetensors(prefixed(OURS, "model.diffusion_model.")),
    "safetensors, diffusion_model.": save_safetensors(prefixed(OURS, "diffusion_model.")),
    "safetensors, diffusers names": save_safetensors(in_diffusers(OURS)),
    "shards, original names": save_shards(OURS),
    "shards, diffusers names": save_shards(in_diffusers(OURS)),
    "flat": save(OURS),
    "module. of data parallelism": save(prefixed(OURS, "module.")),
    "compiled": save(prefixed(OURS, "_orig_mod.")),
    "generator": save({"generator": prefixed(OURS, "model."), "critic": prefixed(OTHER, "model."), "step": 7}),
    "generator without model.": save({"generator": OURS}),
    "generator_ema before generator": save({"generator": OTHER, "critic": OTHER, "generator_ema": OURS}),
    "generator_ema, wrapped": save({"generator": prefixed(OTHER, "model."), "generator_ema": wrapped(OURS)}),
    "generator_ema alone": save({"generator_ema": prefixed(OURS, "model.")}),
    "model": save({"model": OURS}),
    "state_dict": save({"state_dict": prefixed(OURS, "model.")}),
    "nested twice": save({"state_dict": {"module": {"generator": OURS}}}),
    "to_qkv": save_safetensors(fused(OURS, ("q", "k", "v"), "self_attn", "to_qkv")),
    "to_qkv and to_kv, diffusers names": save_safetensors(
        in_diffusers(fused(fused(OURS, ("q", "k", "v"), "self_attn", "to_qkv"), ("k", "v"), "cross_attn", "to_kv"))
    ),
    "Lightning checkpoint": save(lightning_checkpoint(OURS)),
    "Lightning checkpoint with averaged weights": save(
        lightning_checkpoint(OURS, current_model_state=prefixed(OTHER, "generator."))
    ),
    "Lightning checkpoint of a sharded run": save(
        {"state_dict": prefixed(OURS, "generator._fsdp_wrapped_module."), "epoch": 1}
    ),
}


def assert_same(read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


@pytest.mark.parametrize("kind", FORMATS)
def test_round_trip(tmp_path: Path, kind: str) -> None:
    checkpoint = read_generator(FORMATS[kind](tmp_path))
    assert_same(checkpoint.tensors, OURS)
    shapes = {name: entry.shape for name, entry in checkpoint.tensors.entries.items()}
    assert shapes == {name: tensor.shape for name, tensor in OURS.items()}
    assert (checkpoint.dropped, checkpoint.num_merged) == ((), 0)


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    checkpoint = read_generator(save({"generator": OTHER, "generator_ema": OURS})(tmp_path))
    assert_same(checkpoint.tensors, OURS)
    assert checkpoint.ignored == ("generator",)


def test_so_do_those_of_lightnings_own_averaging(tmp_path: Path) -> None:
    path = save(lightning_checkpoint(OURS, current_model_state=prefixed(OTHER, "generator.")))(tmp_path)
    assert_same(read_generator(path).tensors, OURS)


def test_so_does_the_average_beside_the_state_of_our_own_checkpoints(tmp_path: Path) -> None:
    path = save(lightning_checkpoint(OTHER, ema_state_dict=prefixed(OURS, "generator.")))(tmp_path)
    assert_same(read_generator(path).tensors, OURS)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_sharded_checkpoint_that_lightning_joined_loads(tmp_path: Path) -> None:
    from lightning.fabric.utilities.load import _load_distributed_checkpoint
    from torch.distributed.checkpoint import save as save_distributed

    folder = tmp_path / "last.ckpt"
    tensors = prefixed(OURS, "generator.") | {"action_projection.x": torch.zeros(2)}
    save_distributed({"state_dict": tensors, "optimizer_0": {"state": {"m": torch.zeros(3)}}}, checkpoint_id=folder)
    torch.save({"epoch": 3, "action_schema": {"parts": [{"name": "move"}]}}, folder / "meta.pt")
    with pytest.raises(ValueError, match="is a sharded checkpoint: make a file of its generator"):
        read_generator(folder)
    # As `python -m lightning.fabric.utilities.consolidate_checkpoint` does.
    torch.save(_load_distributed_checkpoint(folder), tmp_path / "last.ckpt.consolidated")
    checkpoint = read_generator(tmp_path / "last.ckpt.consolidated")
    assert_same(checkpoint.tensors, OURS)
    assert checkpoint.ignored == ("optimizer_0", "state_dict.action_projection")


def test_a_fused_projection_that_is_no_whole_number_of_parts_is_not_split(tmp_path: Path) -> None:
    tensors = {**OURS, "blocks.0.self_attn.to_qkv.bias": torch.zeros(37)}
    assert_same(read_generator(save(tensors)(tmp_path)).tensors, tensors)


@pytest.mark.parametrize("diffusers", [False, True])
def test_image_conditions_are_renamed_both_ways(tmp_path: Path, diffusers: bool) -> None:
    tensors = OURS | IMAGE
    assert {to_diffusers_name(name) for name in IMAGE} == IMAGE_IN_DIFFUSERS
    written = in_diffusers(tensors) if diffusers else tensors
    assert_same(read_generator(save_safetensors(written)(tmp_path)).tensors, tensors)


HEADS = ("_cls_pred_branch.0.weight", "_register_tokens.x", "_gan_ca_blocks.2.q.bias", "_state_probe.z", "rgs_head.w")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_extra_heads_are_dropped_by_name(tmp_path: Path, prefix: str) -> None:
    extra = {**dict.fromkeys(HEADS, torch.zeros(2)), "action_projection.action_embedding.0.weight": torch.zeros(1)}
    content = prefixed(OURS | extra, prefix)
    checkpoint = read_generator(save({"generator": content})(tmp_path))
    assert_same(checkpoint.tensors, OURS)
    assert set(checkpoint.dropped) == extra.keys()


def test_what_lies_beside_the_generator_is_told(tmp_path: Path) -> None:
    beside = {"_cls_pred_branch.0.weight": torch.zeros(2)}
    content = {"generator": prefixed(OURS, "model.") | beside, "optimizer": {"state": {0: {"m": torch.zeros(1)}}}}
    checkpoint = read_generator(save(content)(tmp_path))
    assert_same(checkpoint.tensors, OURS)
    assert checkpoint.ignored == ("generator._cls_pred_branch", "optimizer")


def unmerged(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As peft leaves a module that it wrapped, and what it stands for."""
    tensors, merged = {}, dict(OURS)
    for name, tensor in OURS.items():
        layer, _, attribute = name.rpartition(".")
        if layer.endswith(("self_attn.q", "ffn.2")):
            tensors[f"base_model.model.{layer}.base_layer.{attribute}"] = tensor
            if attribute == "weight":
                down, up = torch.randn(rank, tensor.shape[1]), torch.randn(tensor.shape[0], rank)
                tensors[f"base_model.model.{layer}.lora_A.default.weight"] = down
                tensors[f"base_model.model.{layer}.lora_B.default.weight"] = up
                merged[name] = tensor + up @ down
        else:
            tensors[f"base_model.model.{name}"] = tensor
    return tensors, merged


@pytest.mark.parametrize("nest", [lambda t: t, lambda t: {"generator": prefixed(t, "model.")}])
def test_lora_layers_of_a_module_that_peft_wrapped_are_merged(tmp_path: Path, nest: Callable[[Any], Any]) -> None:
    tensors, merged = unmerged(3)
    checkpoint = read_generator(save(nest(tensors))(tmp_path))
    assert checkpoint.num_merged == 4
    assert_same(checkpoint.tensors, merged)
    halved = read_generator(tmp_path, lora_alpha=1.5).tensors
    name = "blocks.0.ffn.2.weight"
    torch.testing.assert_close(halved[name] - OURS[name], (merged[name] - OURS[name]) / 2)
    for alpha in (torch.tensor(1.5), 1.5):
        folder = tmp_path / type(alpha).__name__
        folder.mkdir()
        told = read_generator(save({**nest(tensors), "lora_alpha": alpha})(folder))
        assert_same(told.tensors, halved)
        assert told.ignored == ()
        assert [text.partition(" (")[0] for text in told.scales] == ["0.5"]
    torch.save({**nest(tensors), "lora_alpha": float("nan")}, folder / "x.pt")
    with pytest.raises(ValueError, match=r"lora_alpha in .*x.pt is nan: expected the alpha of a LoRA"):
        read_generator(folder / "x.pt")


@pytest.mark.parametrize(
    "name", ["blocks.0.ffn.0.quantized_weight_values", "blocks.0.ffn.0.weight_scale", "model.scaled_fp8"]
)
def test_quantized_files_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"model.safetensors is quantized \(it holds {name}\): only plain floating"):
        read_generator(save_safetensors(OURS | {name: torch.zeros(2)})(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"critic": OURS, "step": 3}, r"holds no generator: expected patch_embedding.weight, .*; it holds critic$"),
        ({"vae": {"x": torch.zeros(1)}}, r"holds no generator: .*; it holds vae$"),
        ({"model": {"a": OURS, "b": OURS}}, r"holds several generators \(model.a., model.b.\): save the one you mean"),
        ({**OURS, **prefixed(OURS, "module.")}, r"holds .* several times, under module\..* and another wrapper's name"),
    ],
)
def test_what_holds_no_single_generator_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_generator(save(content)(tmp_path))


PROJECTION = {
    "action_embedding.0.weight": torch.randn(5, 3),
    "action_embedding.1.bias": torch.randn(5),
    "action_projection.weight": torch.randn(4, 5),
}
TOKENS = {"action_embedding.0.weight": torch.randn(5, 3), "token_projection.weight": torch.randn(4, 5)}


@pytest.mark.parametrize(
    "content",
    [
        PROJECTION,
        {"action_projection": PROJECTION, "action_token_projection": TOKENS, "lora": {"a": torch.zeros(1)}},
        {"generator": prefixed(OURS, "model.") | prefixed(PROJECTION, "model.action_projection.")},
        {"state_dict": prefixed(OURS, "generator.") | prefixed(PROJECTION, "action_projection.module.")},
        {
            "state_dict": prefixed(TOKENS | PROJECTION, "action_projection.")
            | prefixed(TOKENS | PROJECTION, "critic.action_projection."),
            "ema_state_dict": prefixed(PROJECTION, "action_projection."),
        },
    ],
)
def test_action_projections_are_found(tmp_path: Path, content: Any) -> None:
    assert_same(read_action_projection(save(content)(tmp_path)), PROJECTION)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (OURS, "holds 0 action projections: expected one part with action_embedding.0.weight and action_projection"),
        ({"a": PROJECTION, "b": PROJECTION}, r"holds 2 action projections: a\., b\.: expected one"),
    ],
)
def test_no_action_projection_or_several_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_action_projection(save(content)(tmp_path))


@pytest.mark.parametrize(
    "prefix",
    ["pipe.dit.", "transformer.", "dit.", "model.diffusion_model.", "pipe.transformer.", "net.", "module.dit."],
)
def test_prefixes_of_other_programs_are_read(tmp_path: Path, prefix: str) -> None:
    path = save_safetensors(prefixed(OURS, prefix) | {"vae.decoder.weight": torch.ones(3)})(tmp_path)
    tensors = read_generator(path).tensors
    assert tensors.keys() == OURS.keys()
    assert all(torch.equal(tensors[name], OURS[name]) for name in OURS)


@pytest.mark.parametrize("beside", ["critic", "target"])
def test_the_student_is_taken_out_of_what_a_distillation_keeps(tmp_path: Path, beside: str) -> None:
    content = {"state_dict": prefixed(OURS, "generator.") | prefixed(OTHER, f"{beside}.generator.")}
    checkpoint = read_generator(save(content)(tmp_path))
    assert_same(checkpoint.tensors, OURS)
    with pytest.raises(ValueError, match="holds no generator"):
        read_generator(save({"state_dict": prefixed(OTHER, f"{beside}.generator.")})(tmp_path))


@pytest.mark.parametrize("pair", [("transformer.", "transformer_2."), ("pipe.dit.", "pipe.dit2."), ("dit.", "dit2.")])
def test_two_experts_in_one_file_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    path = save_safetensors(prefixed(OURS, pair[0]) | prefixed(OTHER, pair[1]))(tmp_path)
    with pytest.raises(ValueError, match=rf"holds several generators \({pair[0]}, {pair[1]}\)"):
        read_generator(path)


def test_a_folder_of_shards_that_torch_made_a_file_keeps_its_averages(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    from torch.distributed.checkpoint.state_dict_saver import save as save_folder

    state = {
        "state_dict": prefixed(OURS, "generator."),
        "optimizer_0": {"state": {"generator.head.head.bias": {"exp_avg": torch.ones(3)}}},
        "optimizer_1": {"ema": prefixed(OTHER, "generator.")},
    }
    save_folder(state, checkpoint_id=tmp_path / "folder", no_dist=True)
    dcp_to_torch_save(tmp_path / "folder", tmp_path / "x.pt")
    tensors = read_generator(tmp_path / "x.pt").tensors
    assert all(torch.equal(tensors[name], OTHER[name]) for name in OURS)
