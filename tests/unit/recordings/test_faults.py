from __future__ import annotations

from pathlib import Path

import pytest

from lightning_action.recordings.faults import Faults, reading


def test_the_first_fault_is_refused() -> None:
    faults = Faults("refuse")
    with faults.of("episode 1"):
        pass
    with (
        pytest.raises(ValueError, match=r"^episode 2: too short\. Mend the data, or pass .* with bad_episodes: skip$"),
        faults.of("episode 2"),
    ):
        raise ValueError("too short")


def test_faults_are_passed_over_and_the_first_five_told() -> None:
    faults = Faults("skip")
    for number in range(7):
        with faults.of(f"episode {number}"):
            if number != 3:
                raise FileNotFoundError("gone") if number % 2 else ValueError("short")
    assert faults.found == [f"episode {i}: {('short', 'gone')[i % 2]}" for i in (0, 1, 2, 4, 5, 6)]
    assert faults.summary(9) == (
        "passed over 6 of 9 episodes: episode 0: short; episode 1: gone; episode 2: short; episode 4: short; "
        "episode 5: gone; ..."
    )
    with pytest.raises(TypeError), faults.of("episode 8"):
        raise TypeError("a fault of the program, not of an episode")


def test_there_are_two_ways() -> None:
    with pytest.raises(ValueError, match="expected bad_episodes refuse or skip, got 'keep'"):
        Faults("keep")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("length"), "a.json cannot be read: no 'length'"),
        (ZeroDivisionError("division\n   by zero."), "a.json cannot be read: division by zero"),
    ],
)
def test_whatever_a_parser_meets_names_the_file(error: Exception, told: str) -> None:
    with pytest.raises(ValueError) as caught, reading(Path("a.json")):
        raise error
    assert str(caught.value) == told and caught.value.__cause__ is error


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), MemoryError()])
def test_what_is_no_fault_of_the_file_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, reading("a.json"):
        raise error
    assert caught.value is error
