from __future__ import annotations

import atexit
import os

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from lightning_action.cli.support.usage_messages import WITHOUT_TRAINER
from lightning_action.cli.trainer_verbs import leave_process_group, run


def test_the_help_of_all_names_the_other_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["--help"])
    told = capsys.readouterr().out.replace("-\n", "-").replace("\n", " ")
    assert ended.value.code == 0 and "Available subcommands" in told
    assert [verb for verb in WITHOUT_TRAINER if f"`{verb}`" not in told] == []


def test_without_ranks_there_is_nothing_to_leave() -> None:
    leave_process_group()
    leave_process_group(1)


def test_one_rank_leaves_and_goes_on(mesh: DeviceMesh) -> None:
    leave_process_group(1)
    assert dist.is_initialized(), "after a failure nothing is waited for"
    leave_process_group()
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("exit_code", "expected"), [(0, ["barrier", "left", "at exit", "exit 0"]), (2, ["at exit", "exit 2"])]
)
def test_one_of_two_ranks_ends_at_once(
    mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch, exit_code: int, expected: list[str]
) -> None:
    done: list[str] = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: done.append("left"))
    monkeypatch.setattr(atexit, "_run_exitfuncs", lambda: done.append("at exit"))
    monkeypatch.setattr(os, "_exit", lambda code: done.append(f"exit {code}"))
    leave_process_group(exit_code)
    monkeypatch.undo()
    assert done == expected
