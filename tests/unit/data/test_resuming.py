"""Every moment at which Lightning saves is turned into one from which it goes on rightly."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_action.data.resuming import count_unstepped, settle_position


def counted(ready: int, started: int, processed: int, completed: int) -> dict[str, int]:
    return {"ready": ready, "started": started, "processed": processed, "completed": completed}


def saved(epochs: tuple[int, ...], batches: tuple[int, ...], is_last: bool, before: int) -> dict[str, Any]:
    """The state of a fit loop; `before`: batches of the epochs before the last one that began."""
    return {
        "epoch_progress": {key: counted(*epochs) for key in ("total", "current")},
        "epoch_loop.batch_progress": {
            "total": counted(*(number + before for number in batches)),
            "current": counted(*batches),
            "is_last_batch": is_last,
        },
        "epoch_loop.val_loop.batch_progress": {"total": counted(3, 3, 2, 2), "current": counted(3, 3, 2, 2)},
        "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": {"total": {"completed": 7}}}},
        "epoch_loop.state_dict": {"_batches_that_stepped": 99},
        "state_dict": {"combined_loader": [{"epoch": 1, "num_given": 3}, {"of": "somebody else"}]},
    }


# Of epochs of five batches; the second epoch runs.
MOMENTS = {
    "after a batch": ((2, 2, 1, 1), (3, 3, 3, 2), False, 1, 3),
    "in a validation": ((2, 2, 1, 1), (3, 3, 3, 3), False, 1, 3),
    "in a batch": ((2, 2, 1, 1), (4, 4, 3, 3), False, 1, 3),
    "in the last batch": ((2, 2, 1, 1), (5, 5, 4, 4), True, 1, 4),
    "when it was stopped in mid-epoch": ((2, 2, 2, 1), (3, 3, 3, 3), False, 1, 3),
    "when it has ended in mid-epoch": ((2, 2, 2, 2), (3, 3, 3, 3), False, 1, 3),
    "after the last batch": ((2, 2, 1, 1), (5, 5, 5, 4), True, 2, 0),
    "in the validation after it": ((2, 2, 1, 1), (5, 5, 5, 5), True, 2, 0),
    "at the end of an epoch": ((2, 2, 2, 1), (5, 5, 5, 5), True, 2, 0),
    "when it has ended there": ((2, 2, 2, 2), (5, 5, 5, 5), True, 2, 0),
    "as the next epoch begins": ((3, 2, 2, 2), (5, 5, 5, 5), True, 2, 0),
    "before its first batch": ((2, 2, 1, 1), (0, 0, 0, 0), False, 1, 0),
}


@pytest.mark.parametrize("by_steps", [True, False])
@pytest.mark.parametrize("moment", MOMENTS)
def test_moments(moment: str, by_steps: bool) -> None:
    epochs, batches, is_last, epoch, batch = MOMENTS[moment]
    loop = saved(epochs, batches, is_last, 5)
    settle_position(loop, by_steps)
    begun = epoch + (batch > 0)
    assert loop["epoch_progress"]["current"] == counted(begun, begun, epoch, epoch) == loop["epoch_progress"]["total"]
    now = loop["epoch_loop.batch_progress"]
    assert now["current"] == (counted(batch, batch, batch, batch - 1) if batch else counted(0, 0, 0, 0))
    assert now["total"]["ready"] == 5 + batches[2] and not now["is_last_batch"]
    assert loop["epoch_loop.val_loop.batch_progress"]["current"] == counted(0, 0, 0, 0)
    assert loop["epoch_loop.state_dict"]["_batches_that_stepped"] == (6 if batch or by_steps else 7)
    assert loop["state_dict"]["combined_loader"] == [{"epoch": epoch, "num_given": batch}, {"of": "somebody else"}]


def test_twice_is_once() -> None:
    loop, twice = (saved((2, 2, 2, 2), (5, 5, 5, 5), True, 5) for _ in range(2))
    settle_position(loop, True)
    settle_position(twice, True)
    settle_position(twice, True)
    assert loop == twice


def test_a_fit_that_has_not_begun_stays_as_it_is() -> None:
    loop = saved((1, 1, 0, 0), (0, 0, 0, 0), False, 0)
    settle_position(loop, True)
    assert loop == saved((1, 1, 0, 0), (0, 0, 0, 0), False, 0)


def test_batches_without_a_step_are_seen_again() -> None:
    loop = saved((2, 2, 2, 2), (4, 4, 4, 4), False, 5)
    assert count_unstepped(loop, 3) == 1 and count_unstepped(loop, 2) == 0
    settle_position(loop, True, 1)
    assert loop["epoch_loop.batch_progress"]["current"]["ready"] == 3
    assert count_unstepped(saved((2, 2, 1, 1), (5, 5, 5, 4), True, 5), 3) == 0, "the last batch makes a step"
