"""Parts of a module by name."""

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_action.callbacks.part_names import check_parts_exist, is_in


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


def test_part_that_nothing_has() -> None:
    check_parts_exist(BoringModel(), ["layer", "layer.weight", "*.bias"])
    for part in ("encoder", "*.lora_*"):
        with pytest.raises(MisconfigurationException, match=r"BoringModel has no part .* It has: layer"):
            check_parts_exist(BoringModel(), ["layer", part])
