"""Parts of a module by name."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn

from lightning_action.callbacks.support.part_names import check_parts_exist, is_in, named_modules, named_parameters


@pytest.mark.parametrize(
    ("name", "part", "expected"),
    [
        ("generator", "generator", True),
        ("generator.blocks.0.ffn.weight", "generator", True),
        ("generator.blocks.0.ffn.weight", "generator.blocks.0", True),
        ("generator.blocks.10.ffn.weight", "generator.blocks.1", False),
        ("generator2.weight", "generator", False),
        ("action.generator.weight", "generator", False),
        ("generator.blocks.0.self_attn.q.lora_A.default.weight", "generator.*.lora_*", True),
        ("generator.blocks.0.self_attn.q.base_layer.weight", "generator.*.lora_*", False),
        ("generator.blocks.0.self_attn.q.lora_A", "generator.*.lora_A", True),
        ("head.lora_A.default.weight", "generator.*.lora_*", False),
    ],
)
def test_names_and_patterns(name: str, part: str, expected: bool) -> None:
    assert is_in(name, [part]) == expected
    assert is_in(name, ["elsewhere", part]) == expected


def test_wrappers_do_not_show_in_names() -> None:
    plain, wrapped = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Module())
    wrapped[0].add_module("_fsdp_wrapped_module", nn.Module())
    wrapped[0]._fsdp_wrapped_module.add_module("_checkpoint_wrapped_module", plain[0])  # type: ignore[union-attr, operator]
    assert dict(named_parameters(wrapped)) == dict(plain.named_parameters())
    assert dict(named_modules(wrapped)) == dict(plain.named_modules()) | {"": wrapped}


def test_compiled_parts_have_the_names_of_others() -> None:
    """One configuration serves a module that is compiled and one that is not."""
    module = BoringModel()
    plain = dict(named_parameters(module))
    module.layer = torch.compile(module.layer, backend="eager")
    assert "layer._orig_mod.weight" in dict(module.named_parameters()), "the control"
    assert dict(named_parameters(module)) == plain and plain.keys() == {"layer.weight", "layer.bias"}
    check_parts_exist(module, ["layer", "layer.weight"])


def test_part_that_nothing_has() -> None:
    check_parts_exist(BoringModel(), ["layer", "layer.weight", "*.bias"])
    for part in ("encoder", "*.lora_*"):
        with pytest.raises(MisconfigurationException, match=r"BoringModel has no part .* It has: layer"):
            check_parts_exist(BoringModel(), ["layer", part])
