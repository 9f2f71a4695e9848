from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from torch.nn.attention import SDPBackend

from lightning_action.generator import attention_kernels
from lightning_action.generator.attention_kernels import choose_kernels, hold_attention_kernels


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


@pytest.fixture
def forgotten() -> Iterator[None]:
    """The order is held for the process, and here for a test."""
    hold_attention_kernels.cache_clear()
    yield
    attention_kernels._HELD.close()
    hold_attention_kernels.cache_clear()


def order() -> tuple[list[int], bool]:
    return torch._C._get_sdp_priority_order(), torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize(("version", "first"), [(91501, "cudnn_attention"), (91002, "flash_attention")])
def test_the_order_is_held(version: int, first: str, monkeypatch: pytest.MonkeyPatch, forgotten: None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    names = hold_attention_kernels(torch.device("cuda"))
    gc.collect()
    assert names[0] == first and names[-1] == "math"
    kernels, uses_cudnn = order()
    assert tuple(SDPBackend(kernel).name.lower() for kernel in kernels[: len(names)]) == names
    assert uses_cudnn == (first == "cudnn_attention")


def test_other_devices_have_nothing_to_choose(forgotten: None) -> None:
    before = order()
    assert hold_attention_kernels(torch.device("cpu")) == ("that of torch on cpu",) and order() == before
