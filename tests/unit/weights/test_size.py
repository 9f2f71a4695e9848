"""The size of a generator follows from the shapes of its tensors."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from lightning_action.generator.model import CausalWanModel
from lightning_action.weights.size import detect_size, generator_arguments
from tests.support.small_generator import small_generator

SIZES: dict[str, dict[str, Any]] = {
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    "I2V 14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40, "in_dim": 36},
    "5B": {"dim": 3072, "ffn_dim": 14336, "num_heads": 24, "num_layers": 30, "in_dim": 48, "out_dim": 48},
}


def meta_model(arguments: dict[str, Any]) -> CausalWanModel:
    with torch.device("meta"):
        return CausalWanModel(**arguments)


@pytest.mark.parametrize("name", SIZES)
def test_released_models_are_recognised(name: str) -> None:
    model = meta_model(SIZES[name])
    arguments = generator_arguments(model.state_dict())
    assert {key: arguments[key] for key in SIZES[name]} == SIZES[name]
    again = meta_model(arguments)
    assert {key: t.shape for key, t in again.state_dict().items()} == {
        key: t.shape for key, t in model.state_dict().items()
    }


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("cross_attn_norm", [True, False])
def test_every_argument_that_shapes_a_tensor_is_recognised(qk_norm: bool, cross_attn_norm: bool) -> None:
    expected = {
        "dim": 36,
        "ffn_dim": 44,
        "num_layers": 2,
        "in_dim": 5,
        "out_dim": 7,
        "patch_size": (1, 2, 1),
        "freq_dim": 14,
        "text_dim": 9,
        "qk_norm": qk_norm,
        "cross_attn_norm": cross_attn_norm,
    }
    generator = small_generator(out_dim=7, qk_norm=qk_norm, cross_attn_norm=cross_attn_norm)
    assert detect_size(generator.state_dict()) == expected
    assert generator_arguments(generator.state_dict(), num_heads=3) == {**expected, "num_heads": 3}


def test_image_inputs_are_recognised() -> None:
    tensors = small_generator().state_dict()
    tensors["img_emb.proj.0.weight"] = torch.zeros(13)
    assert detect_size(tensors)["image_dim"] == 13
    assert "num_image_positions" not in detect_size(tensors)
    tensors["img_emb.emb_pos"] = torch.zeros(1, 6, 13)
    assert detect_size(tensors)["num_image_positions"] == 6


def test_a_width_without_whole_heads_needs_their_number() -> None:
    with pytest.raises(ValueError, match="a width of 36 is not a whole number of heads of 128: give num_heads"):
        generator_arguments(small_generator().state_dict())


def test_other_tensors_are_refused() -> None:
    tensors = small_generator().state_dict()
    del tensors["head.head.weight"], tensors["blocks.0.ffn.0.weight"]
    with pytest.raises(ValueError, match=re.escape("lack blocks.0.ffn.0.weight, head.head.weight")):
        detect_size(tensors)
