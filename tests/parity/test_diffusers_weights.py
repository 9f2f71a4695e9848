"""Weights that diffusers wrote, and diffusers on weights that we wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_action.checkpoints.export import export_generator
from lightning_action.checkpoints.lora import LoRASettings, inject_lora, split_parameters
from lightning_action.checkpoints.pretrained import load_generator
from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.generator_file import read_generator
from lightning_action.weights.names import to_diffusers_name
from lightning_action.weights.size import generator_arguments
from tests.support.small_generator import fill

MAX_SHARD_SIZE = [None, "60KB"]


def diffusers_model(**changes: Any) -> Any:
    from diffusers import WanTransformer3DModel

    sizes = {"patch_size": (1, 2, 2), "num_attention_heads": 4, "attention_head_dim": 12, "num_layers": 3}
    sizes |= {"in_channels": 6, "out_channels": 6, "text_dim": 11, "freq_dim": 20, "ffn_dim": 52}
    model = WanTransformer3DModel(**{**sizes, **changes}).eval()
    fill(model)
    return model


@torch.no_grad()
def ours_and_theirs(ours: nn.Module, theirs: nn.Module) -> tuple[Tensor, Tensor]:
    latents, text, level = torch.randn(2, 5, 6, 8, 4), torch.randn(2, 10, 11), torch.tensor([720.0, 35.0])
    expected = theirs(latents.transpose(1, 2), level, text, return_dict=False)[0].transpose(1, 2)
    assert expected.abs().mean() > 1e-2
    return ours(latents, level[:, None].expand(2, 5), text), expected


def save_pretrained(model: Any, folder: Path, max_shard_size: str | None) -> None:
    model.save_pretrained(str(folder), **({} if max_shard_size is None else {"max_shard_size": max_shard_size}))
    assert (len(list(folder.glob("*.safetensors"))) > 1) == (max_shard_size is not None)


@pytest.mark.parametrize("max_shard_size", MAX_SHARD_SIZE)
@pytest.mark.parametrize("meta", [False, True])
def test_what_diffusers_saved_loads_and_agrees(tmp_path: Path, max_shard_size: str | None, meta: bool) -> None:
    theirs = diffusers_model()
    save_pretrained(theirs, tmp_path / "transformer", max_shard_size)
    arguments = generator_arguments(read_generator(tmp_path).tensors.entries, num_heads=4)
    with torch.device("meta" if meta else "cpu"):
        ours = CausalWanModel(**arguments, text_len=10)
    load_generator(ours, tmp_path)
    torch.testing.assert_close(*ours_and_theirs(ours.eval(), theirs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("max_shard_bytes", [None, 60_000])
@pytest.mark.parametrize("lora", [False, True])
def test_diffusers_opens_what_we_export_and_agrees(tmp_path: Path, max_shard_bytes: int | None, lora: bool) -> None:
    from diffusers import WanTransformer3DModel

    ours = CausalWanModel(48, 52, 4, 3, 6, 6, freq_dim=20, text_dim=11, text_len=10).eval()
    fill(ours)
    if lora:
        inject_lora(ours, LoRASettings(rank=3, target_modules=["v", "ffn.2"]))
        for parameter in split_parameters(ours)[0].values():
            nn.init.normal_(parameter, std=0.2)
    export_generator(ours, tmp_path / "out", "diffusers", max_shard_bytes)
    theirs, report = WanTransformer3DModel.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    torch.testing.assert_close(*ours_and_theirs(ours, theirs.eval()), atol=1e-5, rtol=0)


def test_image_to_video_models_of_diffusers_are_renamed(tmp_path: Path) -> None:
    theirs = diffusers_model(in_channels=36, image_dim=13, added_kv_proj_dim=48, pos_embed_seq_len=6)
    theirs.save_pretrained(str(tmp_path))
    tensors = read_generator(tmp_path).tensors
    of_image = {name for name in tensors if "img" in name}
    parts = [f"img_emb.proj.{part}.{kind}" for part in (0, 1, 3, 4) for kind in ("weight", "bias")]
    layer = ("k_img.weight", "k_img.bias", "v_img.weight", "v_img.bias", "norm_k_img.weight")
    assert of_image == {
        "img_emb.emb_pos",
        *parts,
        *(f"blocks.{index}.cross_attn.{part}" for index in range(3) for part in layer),
    }
    assert all(torch.equal(tensor, theirs.state_dict()[to_diffusers_name(name)]) for name, tensor in tensors.items())
    arguments = generator_arguments(tensors.entries, num_heads=4)
    assert (arguments["image_dim"], arguments["num_image_positions"], arguments["in_dim"]) == (13, 6, 36)
