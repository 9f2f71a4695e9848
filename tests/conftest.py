"""What all tests share: markers by folder, one thread, a fixed seed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).resolve().parent
FOLDERS = ("unit", "parity", "integration", "gpu")

# Tensors of tests are too small to share out, and threads of several processes would wait for each other.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_cuda = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        for folder in FOLDERS:
            if TESTS / folder in item.path.parents:
                item.add_marker(folder)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without_cuda)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    return 0
