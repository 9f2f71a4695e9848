"""What is written comes back out of TensorBoard and CSV; loggers that lack a method are warned of once."""

import csv
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image

from lightning_action.callbacks.support import log_writing
from lightning_action.callbacks.support.pictures import encode_gif
from tests.support import short_fits


def build_trainer(folder: Path, *loggers: Logger, **options: Any) -> Trainer:
    return short_fits.quiet_trainer(folder, *options.pop("callbacks", []), logger=list(loggers), **options)


def test_tensorboard_shows_what_was_written(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = build_trainer(tmp_path, logger)
    frames = torch.randint(256, (4, 3, 10, 14), dtype=torch.uint8)
    log_writing.scalars(trainer, {"a/b": 0.25, "a/c": -3.0}, step=7)
    log_writing.histogram(trainer, "histogram", torch.tensor([1.0, 2.0, 6.0]), step=8)
    log_writing.image(trainer, "image", frames[0], step=9)
    log_writing.gif(trainer, "video", encode_gif(frames, fps=5), 10, 14, step=10)
    events = short_fits.events(logger)
    assert [(e.step, e.value) for tag in ("a/b", "a/c") for e in events.Scalars(tag)] == [(7, 0.25), (7, -3.0)]
    (histogram,) = events.Histograms("histogram")
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.sum) == (8, 3, 9)
    (picture,), (moving,) = events.Images("image"), events.Images("video")
    assert (picture.step, picture.width, picture.height) == (9, 14, 10)
    assert (moving.step, moving.width, moving.height) == (10, 14, 10)
    gif = Image.open(BytesIO(moving.encoded_image_string))
    assert (gif.format, getattr(gif, "n_frames", 1), gif.info["duration"]) == ("GIF", 4, 200)


def test_csv_gets_the_scalars_and_one_warning_for_each_thing_that_it_cannot_show(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer = build_trainer(tmp_path, logger)
    log_writing.scalars(trainer, {"a/b": 0.25}, step=7)
    logger.save()
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"a/b": "0.25", "step": "7"}]
    with pytest.warns(UserWarning, match="CSVLogger has no experiment with `add_histogram`"):
        log_writing.histogram(trainer, "histogram", torch.ones(3), step=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_writing.histogram(trainer, "histogram", torch.ones(3), step=9)
    with pytest.warns(UserWarning, match="`add_image`"):
        log_writing.image(trainer, "image", torch.zeros(3, 2, 2, dtype=torch.uint8), step=8)


@pytest.mark.parametrize(("values", "num"), [([float("nan"), 1.0, float("inf"), 2.0], 2), ([float("nan")], 0), ([], 0)])
def test_histograms_are_of_finite_values(tmp_path: Path, values: list[float], num: int) -> None:
    logger = TensorBoardLogger(tmp_path)
    log_writing.histogram(build_trainer(tmp_path, logger), "histogram", torch.tensor(values), step=0)
    shown = short_fits.events(logger)
    assert shown.Tags()["histograms"] == (["histogram"] if num else [])
    assert not num or shown.Histograms("histogram")[0].histogram_value.num == num


def test_without_a_logger_nothing_happens(tmp_path: Path) -> None:
    trainer = build_trainer(tmp_path)
    log_writing.scalars(trainer, {"a": 1.0}, step=0)
    log_writing.histogram(trainer, "histogram", torch.ones(3), step=0)


@pytest.mark.parametrize("fast_dev_run", [False, True])
def test_a_fast_dev_run_shows_nothing_and_says_nothing(tmp_path: Path, fast_dev_run: bool) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = build_trainer(tmp_path, logger, fast_dev_run=fast_dev_run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_writing.gif(trainer, "video", b"", 4, 6, step=0)
        log_writing.scalars(trainer, {"a": 1.0}, step=0)
    shown = short_fits.events(logger).Tags()
    assert (shown["images"], shown["scalars"]) == (([], []) if fast_dev_run else (["video"], ["a"]))


class Asker(Callback):
    def __init__(self, every_n_steps: int | None) -> None:
        self.every_n_steps = every_n_steps
        self.chosen: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if log_writing.is_logging_step(trainer, self.every_n_steps):
            self.chosen.append(log_writing.current_step(trainer))


class Logging(BoringModel):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", 1.0)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_logging_steps_are_those_of_the_trainer(tmp_path: Path, accumulate: int) -> None:
    logger, asker, own = TensorBoardLogger(tmp_path), Asker(None), Asker(5)
    trainer = build_trainer(
        tmp_path,
        logger,
        max_steps=11,
        log_every_n_steps=4,
        accumulate_grad_batches=accumulate,
        callbacks=[asker, own],
    )
    trainer.fit(Logging())
    of_lightning = [event.step for event in short_fits.events(logger).Scalars("loss")]
    assert sorted(set(asker.chosen)) == of_lightning == [3, 7]
    assert own.chosen == [step for step in (4, 9) for _ in range(accumulate)]


class TwoOptimizers(BoringModel):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", 1.0)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
            self.manual_backward(self(batch).sum())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.1) for _ in range(2)]


class StepsEveryFifth(TwoOptimizers):
    """As a GAN does: its second optimizer steps in every fifth batch, and in one batch none does."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("loss", 1.0)
        for optimizer, interval in zip(self.optimizers(), (1, 5), strict=True):  # type: ignore[arg-type]
            if batch_idx % interval == 0 and batch_idx != 7:
                optimizer.zero_grad()
                self.manual_backward(self(batch).sum())
                optimizer.step()


class Shows(Callback):
    """Logs one number in each of the hooks in which callbacks log."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        log_writing.scalars(trainer, {"start": 0.0}, log_writing.current_step(trainer))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if log_writing.has_stepped(trainer):
            log_writing.scalars(trainer, {"end": 0.0}, log_writing.current_step(trainer))

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        log_writing.scalars(trainer, {"validation": 0.0}, log_writing.current_step(trainer))


class Validates(StepsEveryFifth):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("validation_loss", 1.0)


def test_one_axis_with_optimizers_that_step_unequally_often(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    options: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 10, "val_check_interval": 4}
    build_trainer(
        tmp_path,
        logger,
        log_every_n_steps=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        callbacks=[Shows()],
        **options,
    ).fit(Validates())
    shown = short_fits.scalars(logger)
    assert list(shown["start"]) == list(shown["end"]) == list(shown["loss"]) == list(range(10))
    assert list(shown["validation"]) == list(shown["validation_loss"]) == [3, 7]


def test_logging_steps_with_several_optimizers_are_those_of_the_trainer(tmp_path: Path) -> None:
    logger, asker = TensorBoardLogger(tmp_path), Asker(None)
    options: dict[str, Any] = {"max_steps": 18, "log_every_n_steps": 4, "callbacks": [asker]}
    module: LightningModule = TwoOptimizers()
    build_trainer(tmp_path, logger, **options).fit(module)
    assert asker.chosen == [event.step for event in short_fits.events(logger).Scalars("loss")] == [3, 7]


def test_log_every_n_steps_of_zero_logs_nothing(tmp_path: Path) -> None:
    asker = Asker(None)
    build_trainer(tmp_path, max_steps=3, log_every_n_steps=0, callbacks=[asker]).fit(BoringModel())
    assert asker.chosen == []
