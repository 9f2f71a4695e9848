"""The scale of a LoRA is the one that its file tells, wherever trainers write it, or an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lightning_action.weights.low_rank import read_low_rank, scales

RANK, LAYERS = 3, ("blocks.0.self_attn.q", "blocks.1.ffn.0")
PLAIN = {"transformer.r": RANK, "transformer.lora_alpha": 12}


def factors(alpha: float | None = None, layers: tuple[str, ...] = LAYERS) -> dict[str, Tensor]:
    tensors = {f"transformer.{layer}.lora_A.weight": torch.full((RANK, 5), 0.5) for layer in layers}
    tensors |= {f"transformer.{layer}.lora_B.weight": torch.full((7, RANK), 2.0) for layer in layers}
    return tensors | ({} if alpha is None else {f"transformer.{layer}.alpha": torch.tensor(alpha) for layer in layers})


def scale_of(file: Path, alpha: float | None = None) -> float:
    changes = read_low_rank(file, alpha)
    assert len(changes) == len(LAYERS)
    values = {change.read()[0, 0].item() / RANK for change in changes.values()}
    assert len(values) == 1
    assert [text.split()[0] for text in scales(changes)] == [f"{value:g}" for value in values]
    return values.pop()


def diffusers(**more: Any) -> dict[str, str]:
    return {"format": "pt", "lora_adapter_metadata": json.dumps(PLAIN | more)}


HEADERS = [
    ({}, 1.0),
    ({"format": "pt", "ss_network_dim": "3"}, 1.0),
    (diffusers(), 4.0),
    ({"lora_adapter_metadata": json.dumps({"r": RANK, "lora_alpha": 1.5})}, 0.5),
    (diffusers(**{"text_encoder.lora_alpha": 1, "transformer.alpha_pattern": {}, "transformer.use_dora": False}), 4.0),
    (diffusers(**{"transformer.rank_pattern": {"q": RANK}, "transformer.init_lora_weights": "gaussian"}), 4.0),
    ({"transformer.lora_alpha": "12", "transformer.r": "3", "transformer.use_rslora": "False"}, 4.0),
    ({"lora_alpha": "12.0", "rank": "3"}, 4.0),
    ({"ss_network_alpha": "1.5", "ss_network_dim": "3", "lora_alpha": "1.5"}, 0.5),
    ({"network_alpha": "6"}, 2.0),
    ({"alpha": "6"}, 2.0),
    ({"training.alpha": "6"}, 1.0),
    ({"transformer.lora_alpha": "6", "transformer.alpha_pattern": "{}", "peft_type": "PeftType.LORA"}, 2.0),
    ({"lora_config": json.dumps({"r": RANK, "lora_alpha": 6})}, 2.0),
    ({"config": json.dumps({"network": {"r": RANK, "lora_alpha": 6}})}, 2.0),
    ({"training": json.dumps({"alpha": 6}), "modelspec.title": "{", "tags": "[6]"}, 1.0),
]


@pytest.mark.parametrize(("header", "scale"), HEADERS)
def test_the_header_is_read(tmp_path: Path, header: dict[str, str], scale: float) -> None:
    save_file(factors(), tmp_path / "x.safetensors", header)
    assert scale_of(tmp_path / "x.safetensors") == scale
    assert scale_of(tmp_path / "x.safetensors", alpha=9.0) == 3.0
    # peft scales the file beside it, and no other.
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 27.0}))
    assert scale_of(tmp_path / "x.safetensors") == scale
    (tmp_path / "x.safetensors").rename(tmp_path / "adapter_model.safetensors")
    assert scale_of(tmp_path) == (9.0 if scale == 1.0 else scale)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        *(
            (
                diffusers(**{f"transformer.{key}": value}),
                rf"header of .*x.safetensors sets transformer.{key}.*: only",
            )
            for key, value in {
                "use_rslora": True,
                "use_dora": True,
                "alpha_pattern": {"blocks.0.self_attn.q": 4},
                "init_lora_weights": "pissa_niter_4",
                "peft_type": "LOHA",
                "use_qalora": True,
            }.items()
        ),
        ({"transformer.lora_alpha": "12", "transformer.use_rslora": "True"}, "sets transformer.use_rslora: only"),
        ({"ss_network_args": json.dumps({"use_rslora": "True"})}, "sets ss_network_args.use_rslora: only"),
        ({"lora_adapter_metadata": "{"}, "lora_adapter_metadata in .* is no configuration of a LoRA: expected JSON"),
        ({"lora_adapter_metadata": "[3]"}, "lora_adapter_metadata in .* is no configuration of a LoRA: expected JSON"),
        (
            {"lora_alpha": "8", "ss_network_alpha": "4"},
            "contradicts itself .lora_alpha 8, ss_network_alpha 4.: correct",
        ),
        *(
            ({key: value}, rf"{key} in the header of .*x.safetensors is '.*': expected the alpha of a LoRA, a finite")
            for key in ("lora_alpha", "ss_network_alpha", "transformer.lora_alpha")
            for value in ("", "nan", "inf", "0", "-8", "None", "eight")
        ),
        (diffusers(**{"transformer.lora_alpha": None}), "transformer.lora_alpha in .* is None: expected the alpha"),
        (diffusers(**{"transformer.lora_alpha": float("nan")}), "transformer.lora_alpha in .* is nan: expected"),
        (diffusers(**{"transformer.lora_alpha": True}), "transformer.lora_alpha in .* is True: expected"),
    ],
)
def test_a_header_that_cannot_be_followed_is_refused(tmp_path: Path, header: dict[str, str], message: str) -> None:
    save_file(factors(), tmp_path / "x.safetensors", header)
    with pytest.raises(ValueError, match=message):
        read_low_rank(tmp_path)
    assert scale_of(tmp_path / "x.safetensors", alpha=6.0) == 2.0


def test_the_alpha_of_a_layer_counts_before_the_header(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(factors(1.5), file, {"ss_network_alpha": "Dynamic", "ss_network_dim": "Dynamic"})
    assert scale_of(file) == 0.5
    assert scales(read_low_rank(file)) == ("0.5 (from the alpha of each layer)",)
    assert scale_of(file, alpha=6.0) == 2.0
    save_file(factors(1.5, LAYERS[:1]) | factors(None, LAYERS[1:]), file, {"lora_alpha": "12"})
    assert scales(read_low_rank(file)) == (
        "0.5 (from the alpha of each layer)",
        f"4 (lora_alpha in the header of {file})",
    )
    save_file(factors(1.5), file, {"lora_alpha": "12", "use_dora": "True"})
    with pytest.raises(ValueError, match=r"sets use_dora: only plain LoRA"):
        read_low_rank(file)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 0.0, -1.5, True, 1j, [1.5, 1.5]])
def test_an_alpha_that_is_no_number_is_refused(tmp_path: Path, alpha: Any) -> None:
    tensors = {name: torch.tensor(alpha) if name.endswith(".alpha") else t for name, t in factors(1.5).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"the alpha of transformer.blocks.* is .*: expected the alpha of a LoRA"):
        read_low_rank(tmp_path)
    with pytest.raises(ValueError, match=r"`lora_alpha` is .*: expected the alpha of a LoRA"):
        read_low_rank(tmp_path, alpha)


def test_integers_are_alphas(tmp_path: Path) -> None:
    tensors = {name: torch.tensor(6) if name.endswith(".alpha") else t for name, t in factors(1.5).items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert scale_of(tmp_path / "x.safetensors") == 2.0


@pytest.mark.parametrize(
    ("beside", "scale"),
    [
        ({"lora_alpha": 6}, 2.0),
        ({"lora_alpha": torch.tensor(6.0)}, 2.0),
        ({"lora_config": {"r": RANK, "alpha": 6}}, 2.0),
        ({"critic_lora": {"lora_alpha": torch.tensor(9.0)}, "lora_alpha": torch.tensor(6.0)}, 2.0),
        ({"step": 7, "config": {"focal": {"alpha": 6}}}, 1.0),
        ({f"transformer.{layer}.alpha": 6 for layer in LAYERS}, 2.0),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_numbers_in_files_of_torch_save_count(
    tmp_path: Path, beside: dict[str, Any], scale: float, nested: bool
) -> None:
    inside = {name: value for name, value in beside.items() if name.startswith("transformer.")}
    torch.save({**beside, "generator_lora": factors() | inside} if nested else factors() | beside, tmp_path / "x.pt")
    assert scale_of(tmp_path / "x.pt") == scale


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"lora_config": {"lora_alpha": 6, "use_rslora": True}}, "sets lora_config.use_rslora: only plain"),
        ({"lora_config": {"alpha_pattern": {"q": 6}}}, "sets lora_config.alpha_pattern.q: only plain"),
        ({"lora_alpha": float("nan")}, "lora_alpha in .* is nan: expected the alpha"),
        ({"lora_alpha": torch.tensor(float("nan"))}, "lora_alpha in .* is nan: expected the alpha"),
        ({"transformer.blocks.1.ffn.0.alpha": float("inf")}, "blocks.1.ffn.0.alpha in .* is inf: expected the alpha"),
    ],
)
def test_numbers_in_files_of_torch_save_are_checked(tmp_path: Path, beside: dict[str, Any], message: str) -> None:
    torch.save(factors() | beside, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=message):
        read_low_rank(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_configuration_of_peft_may_be_in_any_encoding_of_json(tmp_path: Path, encoding: str) -> None:
    save_file(factors(), tmp_path / "adapter_model.safetensors", {"format": "pt"})
    config = tmp_path / "adapter_config.json"
    config.write_bytes(json.dumps({"lora_alpha": 6, "peft_type": "LORA"}).encode(encoding))
    assert scale_of(tmp_path) == 2.0
    assert scales(read_low_rank(tmp_path)) == (f"2 (lora_alpha in {config})",)
