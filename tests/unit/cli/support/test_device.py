from __future__ import annotations

import pytest
import torch

from lightning_action.cli.support.device import choose_device


def test_devices() -> None:
    assert choose_device("cpu", 3) == torch.device("cpu")
    assert choose_device("cuda:1", 0) == torch.device("cuda", 1)
    if not torch.cuda.is_available():
        assert choose_device("auto", 3) == torch.device("cpu")
    with pytest.raises(ValueError, match="expected a device such as cuda:0 or cpu, or auto, got 'gpu'"):
        choose_device("gpu", 0)
