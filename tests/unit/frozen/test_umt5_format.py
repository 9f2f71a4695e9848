"""Names and sizes of UMT5 files, at the full size of `umt5-xxl`: nothing is allocated on the meta device."""

from __future__ import annotations

import torch

from lightning_action.frozen.umt5_format import config_of, is_original, to_transformers_name
from tests.support.wan_parts import original_umt5_name

DIM, FFN_DIM, NUM_HEADS, NUM_BUCKETS, NUM_LAYERS, VOCABULARY = 4096, 10240, 64, 32, 24, 256384


def original_shapes() -> dict[str, tuple[int, ...]]:
    """What `models_t5_umt5-xxl-enc-bf16.pth` holds."""
    layer = {
        "norm1.weight": (DIM,),
        **{f"attn.{part}.weight": (DIM, DIM) for part in "qkvo"},
        "norm2.weight": (DIM,),
        "ffn.gate.0.weight": (FFN_DIM, DIM),
        "ffn.fc1.weight": (FFN_DIM, DIM),
        "ffn.fc2.weight": (DIM, FFN_DIM),
        "pos_embedding.embedding.weight": (NUM_BUCKETS, NUM_HEADS),
    }
    return {
        "token_embedding.weight": (VOCABULARY, DIM),
        **{f"blocks.{index}.{name}": shape for index in range(NUM_LAYERS) for name, shape in layer.items()},
        "norm.weight": (DIM,),
    }


def transformers_tensors() -> dict[str, torch.Tensor]:
    from transformers import UMT5Config, UMT5EncoderModel

    sizes = {"d_model": DIM, "d_ff": FFN_DIM, "num_heads": NUM_HEADS, "num_layers": NUM_LAYERS, "d_kv": 64}
    with torch.device("meta"):
        model = UMT5EncoderModel(UMT5Config(vocab_size=VOCABULARY, feed_forward_proj="gated-gelu", **sizes))
    tensors: dict[str, torch.Tensor] = model.state_dict()
    del tensors["encoder.embed_tokens.weight"]
    return tensors


def test_original_names_and_shapes_at_full_size() -> None:
    original = original_shapes()
    assert len(original) == 242
    assert sum(torch.Size(shape).numel() for shape in original.values()) == 5_680_910_336
    theirs = {name: tuple(tensor.shape) for name, tensor in transformers_tensors().items()}
    assert {to_transformers_name(name): shape for name, shape in original.items()} == theirs
    assert {original_umt5_name(name): shape for name, shape in theirs.items()} == original
    assert is_original(original) and not is_original(theirs)


def test_sizes_are_seen_in_the_tensors() -> None:
    assert config_of(transformers_tensors()) == {
        "vocab_size": VOCABULARY,
        "d_model": DIM,
        "d_kv": 64,
        "d_ff": FFN_DIM,
        "num_layers": NUM_LAYERS,
        "num_heads": NUM_HEADS,
        "relative_attention_num_buckets": NUM_BUCKETS,
        "feed_forward_proj": "gated-gelu",
    }


def test_unknown_names_stay() -> None:
    assert to_transformers_name("blocks.3.surprise") == "encoder.block.3.surprise"
    assert original_umt5_name("surprise") == to_transformers_name("surprise") == "surprise"
