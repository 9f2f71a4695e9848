"""Place where a fit goes on that was saved at any moment: at which batch of which epoch."""

from __future__ import annotations

from typing import Any

from lightning_action.data.resumable import move_to_batch

Progress = dict[str, Any]


def count_unstepped(fit_loop: Progress, accumulate_grad_batches: int) -> int:
    """Count batches since the last optimizer step, whose gradients no checkpoint holds."""
    batches = fit_loop["epoch_loop.batch_progress"]
    return 0 if _is_epoch_over(batches) else batches["current"]["processed"] % accumulate_grad_batches


def settle_position(fit_loop: Progress, stops_by_steps: bool, num_unstepped: int = 0) -> None:
    """Let a fit go on with the batch after the last one that it has stepped with.

    Lightning counts a step's batch, its epoch and its validation at different moments. It goes on rightly from a
    checkpoint that was saved after a batch in mid-epoch, with the batch not counted as completed, or before an epoch.
    So all others are turned into one of these.

    Args:
        fit_loop: State of the fit loop in a checkpoint, which is changed.
        stops_by_steps: True if the Trainer that goes on has `max_steps`, for Lightning then counts in another way.
        num_unstepped: Result of `count_unstepped` when the checkpoint was saved.
    """
    batches, epochs = fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_progress"]["current"]
    if epochs["started"] < epochs["ready"] or batches["current"]["processed"] == 0:
        num_epochs, num_batches = epochs["processed"], 0
    elif _is_epoch_over(batches):
        num_epochs, num_batches = epochs["ready"], 0
    else:
        num_epochs, num_batches = epochs["ready"] - 1, batches["current"]["processed"] - num_unstepped
    in_epoch = num_batches > 0
    total = batches["total"]["processed"] - num_unstepped
    if batches["total"]["processed"] == 0:
        return
    begun = num_epochs + in_epoch
    fit_loop["epoch_progress"] = {
        key: {"ready": begun, "started": begun, "processed": num_epochs, "completed": num_epochs}
        for key in ("total", "current")
    }
    batches["is_last_batch"] = False
    batches["current"] = _counted(num_batches, num_batches - in_epoch)
    batches["total"] = _counted(total, total - in_epoch)
    if not in_epoch:
        # Equal to `ready`, it would tell Lightning to skip a validation and to count the step before once more.
        batches["total"]["started"] -= 1
    validation = fit_loop["epoch_loop.val_loop.batch_progress"]
    validation["current"] = _counted(0, 0)
    validation["total"] = _counted(validation["total"]["completed"], validation["total"]["completed"])
    num_steps = fit_loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    if num_steps or total == 0:
        # The axis of what the module logs; Lightning adds the last step when it goes on.
        adds_one = in_epoch or stops_by_steps
        fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] = num_steps - adds_one
    for state in fit_loop["state_dict"].get("combined_loader", []):
        move_to_batch(state, num_epochs, num_batches)


def _is_epoch_over(batches: Progress) -> bool:
    """Tell whether the last batch of an epoch is behind, however the epoch was limited."""
    return bool(batches["is_last_batch"]) and batches["current"]["processed"] == batches["current"]["ready"]


def _counted(done: int, completed: int) -> Progress:
    return {"ready": done, "started": done, "processed": done, "completed": completed}
