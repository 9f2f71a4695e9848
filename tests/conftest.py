"""What all tests share: markers by folder, one thread, a fixed seed."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from tests.support.browser import MISSING

TESTS = Path(__file__).resolve().parent
FOLDERS = ("unit", "parity", "integration", "gpu", "browser")

# Files of tests/unit that take more than about four seconds each, which `make test-fast` leaves out.
SLOW = {
    *("callbacks/test_action_sensitivity.py", "callbacks/test_freeze_backbone_first.py"),
    *("callbacks/test_prediction_writer.py", "callbacks/test_rollout_logger.py"),
    *("cli/test_check.py", "cli/test_encode.py", "cli/test_evaluate_videos.py", "cli/test_export.py"),
    *("cli/test_misfits.py", "cli/test_play.py", "cli/support/test_mistakes.py", "configuration/test_class_paths.py"),
    *("data/test_environment_simulator.py", "generator/test_estimates.py", "play/test_server.py"),
    *("distillation/test_distilled_module.py", "distillation/test_dmd.py"),
    *("evaluation/test_obedience.py", "evaluation/test_unknown_state.py"),
    *("frozen/test_conv_codec.py", "frozen/test_wan_vae.py", "module/test_action_video_module.py"),
    *("generation/test_captured_pass.py", "generation/test_prompt_switches.py", "generation/test_rollout.py"),
    *("generation/test_world_session.py", "pipeline/test_parts.py"),
}

# Tensors of tests are too small to share out, and threads of several processes would wait for each other: in this one
# and in those that it starts.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"
# What tests compile is so little that processes which compile, each of which imports torch, would cost more than they
# share; and trying which vector instructions the compiler knows costs as much as a dozen kernels.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "1"


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if MISSING is not None:
        left_out = [item for item in items if TESTS / "browser" in item.path.parents]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    slow = {TESTS / "unit" / name for name in SLOW}
    without_cuda = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        for folder in FOLDERS:
            if TESTS / folder in item.path.parents:
                item.add_marker(folder)
        if item.path in slow:
            item.add_marker("slow")
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(without_cuda)


@pytest.fixture(scope="module", autouse=True)
def _lightning_logs_as_before() -> Iterator[None]:
    """Benchmarks make Lightning say less for the rest of their process, which here goes on with other tests."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if MISSING is not None:
        told = f"the tests of the page in a browser were left out: there is {MISSING} (apt-get install chromium)"
        terminalreporter.write_line(told, yellow=True)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
    return 0


@pytest.fixture(autouse=True)
def no_ranks_left() -> Iterator[None]:
    """A sharded fit leaves its process group and says in the environment which rank it is: others would wait for it."""
    yield
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not ask how wide the intervals of a report are: those of 200 draws take most of a second."""
    from lightning_action.evaluation import evaluator

    monkeypatch.setattr(evaluator, "intervals", partial(evaluator.intervals, num_draws=20))


@pytest.fixture
def scalar_code() -> Iterator[None]:
    """Code that torch compiles has no vector instructions: the C++ compiler takes a quarter less time for it."""
    import torch._inductor.config as settings  # slow, and only what compiles needs it

    with settings.patch({"cpp.simdlen": 0}):
        yield


@pytest.fixture
def mesh(no_ranks_left: None) -> DeviceMesh:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return init_device_mesh("cpu", (1,))
