"""NoiseLevelLoss against the mean over the frames of each bin."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.callbacks import NoiseLevelLoss
from tests.support import short_fits
from tests.support.short_fits import Shown
from tests.support.someones_dit import SomeonesDiT, moving_spots

NUM_BINS = 4
NAMES = ["0000-0250", "0250-0500", "0500-0750", "0750-1000"]


class Recording(SomeonesDiT):
    """Writes down what it returns, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[tuple[int, Tensor, Tensor]] = []
        self.validated: list[tuple[int, Tensor, Tensor]] = []

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.record(self.frames, super().training_step(batch, batch_idx))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return self.record(self.validated, super().training_step(batch, batch_idx))

    def record(self, frames: list[tuple[int, Tensor, Tensor]], outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        frames.append((self.global_step, outputs["loss_per_frame"].detach().clone(), outputs["timestep"]))
        return outputs


def expected(frames: list[tuple[int, Tensor, Tensor]], steps: range) -> dict[str, float]:
    """The mean of each bin, frame by frame."""
    bins: dict[str, list[float]] = {}
    for step, losses, timesteps in frames:
        if step in steps:
            for loss, timestep in zip(losses.flatten().tolist(), timesteps.flatten().tolist(), strict=True):
                bins.setdefault(NAMES[min(int(timestep // 250), NUM_BINS - 1)], []).append(loss)
    return {name: sum(values) / len(values) for name, values in bins.items()}


def fit(folder: Path, module: LightningModule, *callbacks: Callback, **options: Any) -> Shown:
    loaders = (moving_spots(24), moving_spots(6)) if isinstance(module, SomeonesDiT) else ()
    return short_fits.fit(
        folder, module, *callbacks, loaders=loaders, **{"max_steps": 6, "log_every_n_steps": 3} | options
    )


def shown_at(shown: Shown, tag: str, step: int) -> dict[str, float]:
    return {
        name.removeprefix(tag): values[step]
        for name, values in shown.items()
        if name.startswith(tag) and step in values
    }


@pytest.mark.parametrize("accumulate", [1, 2])
def test_bins_hold_the_mean_over_the_interval(tmp_path: Path, accumulate: int) -> None:
    module = Recording()
    shown = fit(tmp_path, module, NoiseLevelLoss(NUM_BINS), accumulate_grad_batches=accumulate)
    for last, steps in ((2, range(3)), (5, range(3, 6))):
        values = expected(module.frames, steps)
        assert len(values) > 2
        assert shown_at(shown, "loss/noise_level/", last) == pytest.approx(values, rel=1e-6)
    assert {step for values in shown.values() for step in values} == {2, 5}


def test_validation_is_shown_apart_and_the_sanity_check_is_not(tmp_path: Path) -> None:
    module = Recording()
    shown = fit(tmp_path, module, NoiseLevelLoss(NUM_BINS), limit_val_batches=3, val_check_interval=4)
    values = expected(module.validated, range(4, 5))
    assert shown_at(shown, "loss/noise_level_validation/", 3) == pytest.approx(values, rel=1e-6)
    assert {step for tag in shown if "validation" in tag for step in shown[tag]} == {3}


def test_the_ends_and_bins_that_are_empty(tmp_path: Path) -> None:
    class Ends(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            timestep = torch.tensor([0.0, 0.25, 1.0])
            return {"loss": self.layer(batch).sum(), "level_loss": torch.tensor([1.0, 2.0, 4.0]), "sigma": timestep}

    callback = NoiseLevelLoss(4, max_timestep=1.0, loss="level_loss", timestep="sigma", every_n_steps=2)
    shown = fit(tmp_path, Ends(), callback, max_steps=2)
    assert shown_at(shown, "loss/noise_level/", 1) == {"0.00-0.25": 1.0, "0.25-0.50": 2.0, "0.75-1.00": 4.0}


def test_a_long_interval_loses_no_digits(tmp_path: Path) -> None:
    values = 0.1 + torch.rand(300, 64, generator=torch.Generator().manual_seed(0))
    timestep = torch.full((64,), 70.0)

    class Long(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.layer(batch).sum(), "loss_per_frame": values[self.global_step], "timestep": timestep}

        def train_dataloader(self) -> DataLoader[Tensor]:
            return DataLoader(torch.zeros(300, 32))  # type: ignore[arg-type]

    shown = fit(tmp_path, Long(), NoiseLevelLoss(100, every_n_steps=300), max_steps=300)
    # Bin 7 of 100 begins at 70, and events hold float32.
    assert shown_at(shown, "loss/noise_level/", 299) == {
        "0070-0080": pytest.approx(values.double().mean().item(), rel=1e-7)
    }


def test_a_loss_that_is_not_finite_stays_in_its_bin(tmp_path: Path) -> None:
    callback = NoiseLevelLoss(2)
    outputs = {"loss_per_frame": torch.tensor([[float("nan"), 3.0]]), "timestep": torch.tensor([[100.0, 900.0]])}
    sums = callback._add(torch.zeros(2, 2), outputs, "training_step")
    assert sums[0, 0].isnan() and sums[:, 1].tolist() == [3.0, 1.0]


def test_a_fit_resumed_between_logged_steps_shows_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1)
    module = Recording()
    options: dict[str, Any] = {"limit_train_batches": 4}
    whole = fit(tmp_path / "a", module, NoiseLevelLoss(NUM_BINS), checkpoint, enable_checkpointing=True, **options)
    resumed = fit(tmp_path / "b", Recording(), NoiseLevelLoss(NUM_BINS), ckpt_path=tmp_path / "step=4.ckpt", **options)
    assert shown_at(resumed, "loss/noise_level/", 5) == shown_at(whole, "loss/noise_level/", 5)
    assert shown_at(whole, "loss/noise_level/", 5) == pytest.approx(expected(module.frames, range(3, 6)), rel=1e-6)


def test_a_second_fit_starts_from_nothing(tmp_path: Path) -> None:
    callback = NoiseLevelLoss(NUM_BINS)
    fit(tmp_path / "a", Recording(), callback, max_steps=5)
    module = Recording()
    shown = fit(tmp_path / "b", module, callback, max_steps=3)
    assert shown_at(shown, "loss/noise_level/", 2) == pytest.approx(expected(module.frames, range(3)), rel=1e-6)


def test_a_module_that_returns_something_else_is_told_once(tmp_path: Path) -> None:
    with pytest.warns(UserWarning) as said:
        shown = fit(tmp_path, BoringModel(), NoiseLevelLoss())
    messages = [str(warning.message) for warning in said if "NoiseLevelLoss" in str(warning.message)]
    assert messages == [
        "NoiseLevelLoss logs nothing: it expects training_step to return a dict with two tensors of one shape, "
        "'loss_per_frame' and 'timestep', and got ['loss']"
    ]
    assert not [tag for tag in shown if tag.startswith("loss/")]


def test_csv_and_no_logger(tmp_path: Path) -> None:
    callback = NoiseLevelLoss(NUM_BINS, every_n_steps=3)
    names = short_fits.fit_with_csv(tmp_path, Recording(), callback, max_steps=3, loaders=(moving_spots(),))
    assert "loss/noise_level/0250-0500" in names


@pytest.mark.parametrize(
    ("num_bins", "max_timestep", "first"),
    [(10, 1000.0, "0000-0100"), (10, 1.0, "0.00-0.10"), (7, 1000.0, "0000.00-0142.86"), (1000, 1.0, "0.0000-0.0010")],
)
def test_names_of_bins_sort(tmp_path: Path, num_bins: int, max_timestep: float, first: str) -> None:
    outputs = {
        "loss_per_frame": torch.ones(num_bins),
        "timestep": (torch.arange(num_bins) + 0.5) * max_timestep / num_bins,
    }

    class EveryBin(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": self.layer(batch).sum(), **outputs}

    tags = list(fit(tmp_path, EveryBin(), NoiseLevelLoss(num_bins, max_timestep, every_n_steps=1), max_steps=1))
    names = [tag.removeprefix("loss/noise_level/") for tag in tags if tag.startswith("loss/noise_level/")]
    assert len(set(names)) == num_bins and min(names) == first


@pytest.mark.parametrize("options", [{"num_bins": 0}, {"max_timestep": 0.0}, {"every_n_steps": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be (at least 1|above 0)"):
        NoiseLevelLoss(**options)
