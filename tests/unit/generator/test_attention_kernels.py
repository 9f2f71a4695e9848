from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend

from lightning_action.generator.attention_kernels import attention_kernels, choose_kernels


@pytest.mark.parametrize(
    ("capability", "cudnn_version", "first"),
    [
        ((9, 0), 91501, SDPBackend.CUDNN_ATTENTION),
        ((10, 3), 92000, SDPBackend.CUDNN_ATTENTION),
        ((9, 0), 91500, SDPBackend.FLASH_ATTENTION),
        ((9, 0), None, SDPBackend.FLASH_ATTENTION),
        ((8, 0), 92000, SDPBackend.FLASH_ATTENTION),
        ((12, 0), 92000, SDPBackend.FLASH_ATTENTION),
    ],
)
def test_choice(capability: tuple[int, int], cudnn_version: int | None, first: SDPBackend) -> None:
    chosen = choose_kernels(capability, cudnn_version)
    assert chosen[0] == first and chosen[-1] == SDPBackend.MATH
    assert (SDPBackend.CUDNN_ATTENTION in chosen) == (first == SDPBackend.CUDNN_ATTENTION), "never one with the fault"


def test_the_order_holds_for_as_long_as_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def order() -> tuple[list[int], bool]:
        return torch._C._get_sdp_priority_order(), torch.backends.cuda.cudnn_sdp_enabled()

    before = order()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for version, first in ((91501, "cudnn_attention"), (91002, "flash_attention")):
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda version=version: version)
        with attention_kernels(torch.device("cuda")) as names:
            assert names[0] == first and names[-1] == "math"
            kernels, uses_cudnn = order()
            assert [SDPBackend(kernel).name.lower() for kernel in kernels[: len(names)]] == names
            assert uses_cudnn == (first == "cudnn_attention")
        assert order() == before


def test_other_devices_have_nothing_to_choose() -> None:
    before = torch._C._get_sdp_priority_order()
    with attention_kernels(torch.device("cpu")) as names:
        assert names == ["that of torch on cpu"] and torch._C._get_sdp_priority_order() == before
