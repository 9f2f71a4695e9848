"""Which errors are mistakes of the user, failures of the machine or faults of the program, and how they are told."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gymnasium.error import DependencyNotInstalled
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, Dataset

from lightning_action.cli import main
from lightning_action.cli.support.mistakes import UsageError, exit_code, one_paragraph, report, wants_traceback
from lightning_action.seeding import mix_seed


def raised(act: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:  # noqa: B017
        act()
    return caught.value


def throw(error: BaseException) -> Callable[[], object]:
    def act() -> None:
        raise error

    return act


class NoNumbers(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise ValueError("row 3 of x.csv\nholds no number")


MISTAKES = [
    throw(ValueError("x")),
    throw(UsageError("x")),
    throw(ImportError("x")),
    throw(FileNotFoundError("x")),
    throw(FileExistsError("x")),
    throw(NotADirectoryError("x")),
    throw(IsADirectoryError("x")),
    throw(MisconfigurationException("x")),
    throw(DependencyNotInstalled("pygame is not installed")),
    throw(RuntimeError("the training loss is nan")),
    lambda: Path("nowhere/x").read_text(),
    lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
    lambda: torch.zeros(2, 3) + torch.zeros(4),
    lambda: torch.zeros(6).view(4, 2),
    lambda: torch.nn.Linear(2, 3)(torch.zeros(1, 2, dtype=torch.float64)),
    lambda: torch.nn.Linear(2, 3).load_state_dict({"weight": torch.zeros(4, 5)}),
    lambda: torch.zeros(1, device="nonsense"),
    lambda: mix_seed(2**63),
]
FAILURES = [
    throw(MemoryError()),
    throw(OSError(errno.ENOSPC, "No space left on device", "/x")),
    throw(PermissionError(errno.EACCES, "Permission denied", "/x")),
    throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    throw(RuntimeError("CUDA error: an illegal memory access was encountered")),
    throw(RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 772864 vs 772752")),
    lambda: torch.empty(10**15),
]
FAULTS = [
    throw(AssertionError("x")),
    throw(AttributeError("x")),
    throw(KeyError("x")),
    throw(TypeError("x")),
    throw(ZeroDivisionError("x")),
    lambda: {}["action"],
    lambda: [][1],
    lambda: None.shape,  # type: ignore[attr-defined]
    lambda: len(3),  # type: ignore[arg-type]
    lambda: iter(()).__next__(),
]


@pytest.mark.parametrize(("acts", "code"), [(MISTAKES, 2), (FAILURES, 1), (FAULTS, None)])
def test_exit_codes(acts: list[Callable[[], object]], code: int | None) -> None:
    errors = [raised(act) for act in acts]
    assert [(type(error), exit_code(error)) for error in errors] == [(type(error), code) for error in errors]


def test_one_paragraph() -> None:
    assert one_paragraph(ValueError("\n a\n  b \n\n c ")) == "a b c"
    assert one_paragraph(MemoryError()) == "MemoryError"
    inside = raised(lambda: next(iter(DataLoader(NoNumbers(), num_workers=1))))
    assert "Traceback" in str(inside)
    assert one_paragraph(inside) == "row 3 of x.csv holds no number"


def test_a_traceback_on_demand(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    error = raised(throw(ValueError("x is\nwrong")))
    assert report(error, with_traceback=False) == 2
    assert capsys.readouterr().err == "error: x is wrong (--traceback or LIGHTNING_ACTION_TRACEBACK=1 shows where)\n"
    assert report(error, with_traceback=True) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last)") and told.endswith("\nerror: x is wrong\n")
    for value, wanted in ((None, False), ("", False), ("0", False), ("1", True)):
        monkeypatch.delenv("LIGHTNING_ACTION_TRACEBACK", raising=False)
        if value is not None:
            monkeypatch.setenv("LIGHTNING_ACTION_TRACEBACK", value)
        assert wants_traceback(["fit"]) == wanted and wants_traceback(["fit", "--traceback"])


def test_a_fault_of_the_program_is_left_to_python(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(raised(FAULTS[0]), with_traceback=False) is None
    assert capsys.readouterr().err == ""


def test_other_ranks_leave_the_word_to_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose end shows in that somebody else is the parent; if it goes on, they speak."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("lightning_action.cli.support.mistakes._SECONDS_FOR_THE_FIRST_RANK", 0.1)
    for seen, told in (([7, 7, 1], ""), ([7], "error: x")):
        parents = iter(seen)
        monkeypatch.setattr("os.getppid", lambda seen=seen, parents=parents: next(parents, seen[-1]))
        assert report(ValueError("x"), with_traceback=False) == 2
        assert capsys.readouterr().err[:8] == told


@pytest.mark.parametrize("arguments", [["--traceback", "fitt"], ["fitt", "--traceback"], ["export"], ["check"], []])
def test_main_turns_mistakes_into_exit_codes(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    told = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and told[-1].startswith("error: ")
    assert (len(told) > 1) == ("--traceback" in arguments)
