"""Time and manner in which a callback logs: to every logger of the Trainer that has a method for it.

Scalars go to every logger. Histograms, images and videos go to those whose `experiment` has the methods of
TensorBoard's SummaryWriter; the others are warned of once, and the fit goes on. The first rank writes, the others do
nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from .part_names import is_named

_warned_of: WeakKeyDictionary[Logger, set[str]] = WeakKeyDictionary()


def current_step(trainer: Trainer) -> int:
    """Place on the horizontal axis of what Lightning itself logs: the steps before that of the running batch.

    A step is a batch, or the batches of one accumulation, however many optimizers step in it: `trainer.global_step`
    counts each of theirs.
    """
    # Lightning's own callbacks read it there; it has no public name.
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def has_stepped(trainer: Trainer) -> bool:
    """Tell whether the batch of `on_train_batch_end` ends a step, which takes several under accumulation."""
    # The only place that knows of the last batch of an epoch, which ends a step early.
    return not trainer.fit_loop.epoch_loop._should_accumulate()


def is_logging_step(trainer: Trainer, every_n_steps: int | None = None, steps_ahead: int = 0) -> bool:
    """Tell whether the step about to be taken is one to log; the steps are the same as `self.log` chooses.

    From `on_train_batch_start` to `on_train_batch_end` the answer stays, and under gradient accumulation all batches of
    a step get the same.

    Args:
        trainer: Trainer of the fit.
        every_n_steps: Steps from one logging step to the next; None stands for the Trainer's `log_every_n_steps`, of
            which 0 means never.
        steps_ahead: Number of steps after the present one; 0 asks about the present one.
    """
    interval = trainer.log_every_n_steps if every_n_steps is None else every_n_steps  # type: ignore[attr-defined]
    return bool(interval) and (current_step(trainer) + steps_ahead + 1) % interval == 0


def scalars(trainer: Trainer, values: Mapping[str, float], step: int) -> None:
    """Log numbers to every logger."""
    if values and trainer.is_global_zero:
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), step=step)


def histogram(trainer: Trainer, tag: str, values: Tensor, step: int) -> None:
    """Log the distribution of the finite values of a tensor; SummaryWriter refuses others, and having none at all."""
    for writer in _writers(trainer, "add_histogram"):
        finite = values.detach().float().cpu()
        finite = finite[finite.isfinite()]
        if len(finite):
            writer.add_histogram(tag, finite, step)


def image(trainer: Trainer, tag: str, picture: Tensor, step: int) -> None:
    """Log a picture, uint8 `[3, H, W]`."""
    for writer in _writers(trainer, "add_image"):
        writer.add_image(tag, picture.cpu(), step)


def gif(trainer: Trainer, tag: str, encoded: bytes, height: int, width: int, step: int) -> None:
    """Log a video, the content of a GIF file, among the images.

    SummaryWriter's own `add_video` needs a release of moviepy that is no longer current.
    """
    for writer in _writers(trainer, "file_writer"):
        from torch.utils.tensorboard.summary import Summary  # type: ignore[attr-defined]

        picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encoded)
        writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)


def custom_scalars(trainer: Trainer, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
    """Group charts: title of a group -> title of a chart -> regular expressions of the tags that are its lines."""
    multiline = {
        title: {chart: ["Multiline", list(tags)] for chart, tags in charts.items()} for title, charts in layout.items()
    }
    for writer in _writers(trainer, "add_custom_scalars"):
        writer.add_custom_scalars(multiline)


def _writers(trainer: Trainer, method: str) -> Iterator[Any]:
    """The `experiment` of every logger that has the method; warns once of each logger that lacks it."""
    if not trainer.is_global_zero:
        return
    for logger in trainer.loggers:
        if is_named(logger, "DummyLogger"):  # the logger of fast_dev_run, which seems to have every method
            continue
        experiment = getattr(logger, "experiment", None)
        if hasattr(experiment, method):
            yield experiment
        elif method not in _warned_of.setdefault(logger, set()):
            _warned_of[logger].add(method)
            rank_zero_warn(
                f"{type(logger).__name__} has no experiment with `{method}`: what needs it is not logged there. "
                "TensorBoardLogger has it."
            )
