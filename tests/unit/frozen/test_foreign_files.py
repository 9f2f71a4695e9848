"""VAE and text encoder in files that hold more than them, under other names, or nothing that can be computed with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import ByT5Tokenizer, UMT5Config, UMT5ForConditionalGeneration

from lightning_action.frozen.tiny_vae import TinyWanVAE
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.frozen.wan_vae import WanVideoVAE
from tests.support.tiny_vae import tensors_of
from tests.support.wan_parts import GEOMETRY, original_tensors, original_umt5_name, small_umt5, small_vae, video

Change = Callable[[Tensor], Tensor]
CASTS: dict[str, Change] = {
    "float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "int8": lambda tensor: tensor.to(torch.int8),
    "NaN": lambda tensor: tensor * float("nan"),
}


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor.clone() for name, tensor in tensors.items()}


def changed(tensors: dict[str, Tensor], change: Change) -> dict[str, Tensor]:
    last = list(tensors)[-1]
    return {**tensors, last: change(tensors[last])}


@pytest.mark.parametrize("prefix", ["model.", "vae.", "module.model.", "first_stage_model.", "pipe.vae.model."])
@pytest.mark.parametrize("original", [True, False])
def test_a_vae_under_any_prefix_is_read(tmp_path: Path, prefix: str, original: bool) -> None:
    vae = small_vae("2.1")
    tensors = original_tensors("2.1", vae) if original else vae.state_dict()
    for name, content in (("plain", tensors), ("x", prefixed(tensors, prefix) | {"other": torch.tensor(3)})):
        save_file({key: tensor.contiguous() for key, tensor in content.items()}, tmp_path / f"{name}.safetensors")
    pixels = video("2.1", 5, 1)
    latents = [
        WanVideoVAE(str(tmp_path / f"{name}.safetensors"), **GEOMETRY["2.1"]).encode(pixels) for name in ("plain", "x")
    ]
    assert torch.equal(*latents)


@pytest.mark.parametrize("cast", CASTS)
def test_a_vae_that_is_no_plain_one_is_refused(tmp_path: Path, cast: str) -> None:
    save_file(changed(dict(small_vae("2.1").state_dict()), CASTS[cast]), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=f"x.safetensors .*{cast}"):
        WanVideoVAE(str(tmp_path / "x.safetensors"), **GEOMETRY["2.1"]).load()


@pytest.mark.parametrize("version", ["2.1", "2.2"])
@pytest.mark.parametrize("name", ["taew{}.pth", "lighttae{}.safetensors"])
def test_of_two_tiny_decoders_that_of_the_channels_is_read(tmp_path: Path, version: str, name: str) -> None:
    for each in ("2.1", "2.2"):
        path = tmp_path / name.format(each.replace(".", "_"))
        save_file(tensors_of(each), path) if path.suffix == ".safetensors" else torch.save(tensors_of(each), path)
    TinyWanVAE(str(tmp_path), **GEOMETRY[version]).load()


@pytest.mark.parametrize("version", ["2.1", "2.2"])
def test_of_two_vaes_that_of_the_channels_is_read(tmp_path: Path, version: str) -> None:
    for each in ("2.1", "2.2"):
        torch.save(original_tensors(each, small_vae(each)), tmp_path / f"Wan{each}_VAE.pth")
    WanVideoVAE(str(tmp_path), **GEOMETRY[version]).load()


@pytest.mark.parametrize("cast", CASTS)
def test_a_tiny_decoder_that_is_no_plain_one_is_refused(tmp_path: Path, cast: str) -> None:
    save_file(changed(tensors_of("2.1"), CASTS[cast]), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=f"x.safetensors .*{cast}"):
        TinyWanVAE(str(tmp_path / "x.safetensors"), **GEOMETRY["2.1"]).load()


def whole_umt5() -> Any:
    sizes = {"vocab_size": 384, "d_model": 20, "d_kv": 6, "d_ff": 28, "num_layers": 2, "num_heads": 3}
    config = UMT5Config(**sizes, num_decoder_layers=1, feed_forward_proj="gated-gelu")
    return UMT5ForConditionalGeneration(config).eval().requires_grad_(False)


def umt5_tensors(kind: str) -> tuple[Any, dict[str, Tensor]]:
    """The encoder, and the tensors of a file that holds it."""
    if kind == "whole":
        whole = whole_umt5()
        return whole.encoder, {**whole.state_dict()}
    encoder = small_umt5()
    tensors = dict(encoder.state_dict())
    if kind == "embedding under its other name":
        del tensors["shared.weight"]
    if kind == "original":
        del tensors["encoder.embed_tokens.weight"]
        tensors = {original_umt5_name(name): tensor for name, tensor in tensors.items()}
    if kind != "embedding under its other name":
        tensors["spiece_model"] = torch.arange(9, dtype=torch.uint8)
    return encoder, tensors


@pytest.mark.parametrize("prefix", ["", "text_encoder.", "umt5xxl.transformer."])
@pytest.mark.parametrize("kind", ["whole", "original", "transformers", "embedding under its other name"])
def test_the_encoder_is_read_out_of_files_that_hold_more(tmp_path: Path, kind: str, prefix: str) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path / "tokenizer")
    encoder, tensors = umt5_tensors(kind)
    save_file(prefixed(tensors, prefix), tmp_path / "x.safetensors")
    read = UMT5TextEncoder(str(tmp_path / "x.safetensors"), dtype="float32").encode(["a red disc"])
    tokens = ByT5Tokenizer()(["a red disc"], return_tensors="pt").input_ids
    assert torch.equal(read, encoder(tokens).last_hidden_state)


def test_a_folder_that_transformers_wrote_of_the_whole_model_is_read(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path / "tokenizer")
    whole = whole_umt5()
    whole.save_pretrained(tmp_path)
    read = UMT5TextEncoder(str(tmp_path), dtype="float32").encode(["a red disc"])
    tokens = ByT5Tokenizer()(["a red disc"], return_tensors="pt").input_ids
    assert torch.equal(read, whole.encoder(tokens).last_hidden_state)


@pytest.mark.parametrize("cast", CASTS)
def test_a_text_encoder_that_is_no_plain_one_is_refused(tmp_path: Path, cast: str) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path / "tokenizer")
    tensors = dict(small_umt5().state_dict())
    name = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file(prefixed({**tensors, name: CASTS[cast](tensors[name])}, ""), tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=f"x.safetensors .*{cast}"):
        UMT5TextEncoder(str(tmp_path / "x.safetensors")).load()


def test_no_code_of_a_tokenizer_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    ByT5Tokenizer().save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", null]}}'
    )
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    save_file(prefixed(dict(small_umt5().state_dict()), ""), tmp_path / "x.safetensors")
    encoder = UMT5TextEncoder(str(tmp_path / "x.safetensors"))
    with patch("builtins.input", side_effect=AssertionError("asked")), pytest.raises(ValueError, match="code of its"):
        encoder.load()
    assert not (tmp_path / "ran").exists()
