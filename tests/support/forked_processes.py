"""Processes that are copies of one which has imported everything: ranks with gloo on the CPU, and commands."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only

from lightning_action.cli import main

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 300
# What says which rank a process is, and where the others are.
PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
# What takes seconds to import is imported once. A copy of this process could hang for its threads; that one has none.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["lightning_action.cli.trainer_verbs", "lightning_action.callbacks"])


def random_port() -> int:
    """Draw one below the ports that the system hands out, so that nobody takes it before the ranks do."""
    return random.SystemRandom().randrange(20000, 30000)


def facts_of(script: Callable[[Path, int], None], folder: Path, processes: int = 2) -> dict[str, Any]:
    """What a script, called with the folder and the rank, writes to `facts.json` in the folder."""
    place = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random_port())}
    outputs = [folder / f"rank_{rank}.txt" for rank in range(processes)]
    ranks = [start_rank(rank, place, outputs[rank], run_in, folder, script, rank) for rank in range(processes)]
    running = {rank.sentinel: rank for rank in ranks}
    # One that fails leaves the others waiting for it.
    while running and (ended := wait(list(running), TIMEOUT_SECONDS)):
        if any(running.pop(sentinel).exitcode for sentinel in ended):  # type: ignore[call-overload]
            break
    codes = [rank.exitcode for rank in ranks]
    for each in ranks:
        end_of(each, seconds=0)
    assert codes == [0] * processes, "\n".join(output.read_text()[-5000:] for output in outputs)
    seen: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return seen


def run_in(folder: Path, script: Callable[[Path, int], None], rank: int) -> None:
    """Call a script in its folder."""
    os.chdir(folder)
    torch.set_num_threads(1)
    script(folder, rank)


def start_command(words: Sequence[str], output: Path) -> BaseProcess:
    """Start what `python main.py` does with these words; see `start`."""
    return start(output, main, list(words))


def start_rank(
    rank: int, place: Mapping[str, str], output: Path, function: Callable[..., None], *args: Any
) -> BaseProcess:
    """Start a rank, with `place` and what says which rank it is in its environment; see `start`."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return start(output, function, *args, environment={**place, **own})


def start(
    output: Path, function: Callable[..., None], *args: Any, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Start `function(*args)` in the checkout's folder, in a process that prints to a file.

    It has the environment of this process, with what is in `environment`.
    """
    output.touch()  # so that it can be read even if the process ends before it prints
    process = FORKS.Process(target=_begin, args=(output, dict(os.environ) | dict(environment or {}), function, *args))
    process.start()
    return process


def end_of(process: BaseProcess, seconds: float = TIMEOUT_SECONDS) -> int | None:
    """The exit code of a process, which is killed if it has not ended by then: nobody would end without it."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode


def _begin(output: Path, environment: Mapping[str, str], function: Callable[..., None], *args: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # Lightning has asked for it when it was imported
    write_to(output)
    os.chdir(ROOT)
    function(*args)


def write_to(output: Path) -> None:
    """Send what this process and its libraries print to a file, from its beginning."""
    with output.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
