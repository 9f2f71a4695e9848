"""ThroughputMonitor with a clock that the test turns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.callbacks import ThroughputMonitor, throughput_monitor
from tests.support import short_fits
from tests.support.someones_dit import SomeonesDiT, moving_spots

B, T, F = 2, 9, 3
# The first step, which warms up, would spoil every figure.
WARM_UP, STEP, VALIDATION = 1000.0, 0.5, 77.0


class Clock:
    def __init__(self) -> None:
        self.time = 5.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(throughput_monitor, "perf_counter", clock)
    return clock


class Timed(BoringModel):
    """Every batch takes its time; batches are dicts with one kind of tensor."""

    def __init__(self, clock: Clock, kind: str = "video") -> None:
        super().__init__()
        self.clock = clock
        self.kind = kind

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        self.clock.time += STEP + (WARM_UP if self.global_step == 0 else 0)
        return super().training_step(batch[self.kind].flatten(1)[:, :32], batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.clock.time += VALIDATION

    def train_dataloader(self) -> DataLoader[Any]:
        shape = (T, 3, 4, 5) if self.kind == "video" else (F, 4, 3, 5)
        samples: Any = [{self.kind: torch.randn(*shape)} for _ in range(16 * B)]
        return DataLoader(samples, batch_size=B)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()


def test_frames_of_videos_without_warm_up_and_validation(tmp_path: Path, clock: Clock) -> None:
    options: dict[str, Any] = {"limit_val_batches": 2, "val_check_interval": 4, "num_sanity_val_steps": 1}
    shown = short_fits.fit(tmp_path, Timed(clock), ThroughputMonitor(), max_steps=9, log_every_n_steps=3, **options)
    throughput = {tag: values for tag, values in shown.items() if tag.startswith("throughput")}
    assert throughput == {
        "throughput/train/steps_per_second": dict.fromkeys((2, 5, 8), 1 / STEP),
        "throughput/train/video_frames_per_second_with_vae": dict.fromkeys((2, 5, 8), B * T / STEP),
    }


def test_accumulated_batches_count(tmp_path: Path, clock: Clock) -> None:
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "max_steps": 4, "log_every_n_steps": 2}
    shown = short_fits.fit(tmp_path, Timed(clock), ThroughputMonitor(), **options)
    assert shown["throughput/train/steps_per_second"] == {1: 0.5 / STEP, 3: 0.5 / STEP}
    assert shown["throughput/train/video_frames_per_second_with_vae"] == {1: B * T / STEP, 3: B * T / STEP}


def test_frames_that_latents_stand_for_are_named_as_without_vae(tmp_path: Path, clock: Clock) -> None:
    monitor = ThroughputMonitor(temporal_compression_ratio=4, every_n_steps=2)
    shown = short_fits.fit(tmp_path, Timed(clock, "latents"), monitor, max_steps=2)
    assert shown["throughput/train/video_frames_per_second_without_vae"] == {1: B * (1 + 4 * (F - 1)) / STEP}
    assert not [tag for tag in shown if tag.endswith("with_vae")]


class KnowsFlops(Timed):
    flops_per_batch = 30.0


def test_utilization_where_the_peak_is_known(tmp_path: Path, clock: Clock) -> None:
    monitor = ThroughputMonitor(peak_flops=240.0, every_n_steps=2)
    shown = short_fits.fit(tmp_path, KnowsFlops(clock), monitor, max_steps=4)
    assert shown["throughput/train/flop_utilization"] == {1: 0.25, 3: 0.25}


class CountsReads(Timed):
    reads = 0

    @property
    def flops_per_batch(self) -> float:
        self.reads += 1
        return 30.0


@pytest.mark.parametrize(("peak", "reads"), [(240.0, 3), (None, 1)])
def test_operations_are_read_only_where_they_are_of_use(
    tmp_path: Path, clock: Clock, peak: float | None, reads: int
) -> None:
    """A module may count them by formulas. Whether it knows them at all is asked once, where no peak is given."""
    module = CountsReads(clock)
    short_fits.fit(tmp_path, module, ThroughputMonitor(peak_flops=peak, every_n_steps=2), max_steps=4)
    assert module.reads == reads


def test_the_peak_comes_from_lightning(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def look_up(device: torch.device, dtype: torch.dtype) -> int:
        asked.append((device.type, dtype))
        return 120

    monkeypatch.setattr(throughput_monitor, "get_available_flops", look_up)
    monitor = ThroughputMonitor(every_n_steps=2)
    shown = short_fits.fit(tmp_path, KnowsFlops(clock), monitor, max_steps=2, precision="bf16-mixed")
    assert asked == [("cpu", torch.bfloat16)]
    assert shown["throughput/train/flop_utilization"] == {1: 0.5}


@pytest.mark.parametrize(("module", "peak"), [(KnowsFlops, None), (Timed, 240.0)])
def test_no_utilization_where_one_side_is_not_known(
    tmp_path: Path, clock: Clock, module: type[Timed], peak: float | None
) -> None:
    shown = short_fits.fit(tmp_path, module(clock), ThroughputMonitor(peak_flops=peak, every_n_steps=2), max_steps=2)
    assert not [tag for tag in shown if "flop" in tag]


def test_modules_without_videos_show_steps(tmp_path: Path) -> None:
    for name, module, loaders in (("boring", BoringModel(), ()), ("dit", SomeonesDiT(), (moving_spots(),))):
        shown = short_fits.fit(
            tmp_path / name, module, ThroughputMonitor(every_n_steps=2), loaders=loaders, max_steps=4
        )
        assert shown["throughput/train/steps_per_second"][3] > 0


class Generates(BoringModel):
    def __init__(self, clock: Clock, measures: bool = True) -> None:
        super().__init__()
        self.clock = clock
        self.measures = measures

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        self.clock.time += 4.0
        times = {"block_seconds": [1.0, 0.5 + 0.1 * batch_idx, 0.5], "decode_seconds": 0.25}
        return {"video": torch.zeros(B, T, 3, 4, 5)} | (times if self.measures else {})


def predict(folder: Path, module: BoringModel) -> dict[str, float]:
    logger = TensorBoardLogger(folder)
    trainer = short_fits.quiet_trainer(folder, ThroughputMonitor(), logger=logger, limit_predict_batches=3)
    trainer.predict(module, module.train_dataloader(), return_predictions=False)
    return {tag: values[0] for tag, values in short_fits.scalars(logger).items()}


def test_prediction_with_and_without_vae_and_the_latency_of_blocks(tmp_path: Path, clock: Clock) -> None:
    blocks = [1.0, 0.5, 0.5, 1.0, 0.6, 0.5, 1.0, 0.7, 0.5]
    frames = 3 * B * T
    assert predict(tmp_path, Generates(clock)) == pytest.approx(
        {
            "throughput/predict/video_frames_per_second_without_vae": frames / sum(blocks),
            "throughput/predict/video_frames_per_second_with_vae": frames / (sum(blocks) + 0.75),
            "throughput/predict/block_seconds_p50": 0.6,
            "throughput/predict/block_seconds_p95": 1.0,
        }
    )


def test_a_prediction_that_is_not_measured_inside_counts_as_a_whole(tmp_path: Path, clock: Clock) -> None:
    shown = predict(tmp_path, Generates(clock, measures=False))
    assert shown == pytest.approx({"throughput/predict/video_frames_per_second_with_vae": 3 * B * T / 12.0})


def test_a_prediction_without_videos_shows_nothing(tmp_path: Path, clock: Clock) -> None:
    assert predict(tmp_path, BoringModel()) == {}


def test_the_device_is_waited_for_at_logged_steps_only(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    module = Timed(clock)

    def now(pl_module: Any) -> float:
        waits.append(pl_module.global_step)
        return clock()

    monkeypatch.setattr(throughput_monitor, "_now", now)
    short_fits.fit(tmp_path, module, ThroughputMonitor(), max_steps=9, log_every_n_steps=4)
    # After the first step, from which on it counts, then after the fourth and the eighth.
    assert waits == [1, 4, 8]


def test_csv_and_no_logger(tmp_path: Path) -> None:
    names = short_fits.fit_with_csv(tmp_path, BoringModel(), ThroughputMonitor(every_n_steps=2), max_steps=2)
    assert "throughput/train/steps_per_second" in names


@pytest.mark.parametrize("options", [{"temporal_compression_ratio": 0}, {"peak_flops": 0.0}, {"every_n_steps": 0}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be (at least 1|above 0)"):
        ThroughputMonitor(**options)


class Anything(BoringModel):
    """Batches that say nothing about frames, and operations that nobody knows."""

    flops_per_batch = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(torch.ones(1, 32), batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return batch


@pytest.mark.parametrize("kind", ["video", "latents"])
@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(()), [1, 2, 3], None])
def test_batches_without_frames_are_steps(tmp_path: Path, kind: str, value: Any) -> None:
    loader: Any = DataLoader([{kind: value}] * 4, batch_size=None)
    monitor, options = ThroughputMonitor(peak_flops=1.0), {"max_steps": 4, "log_every_n_steps": 2}
    shown = short_fits.fit(tmp_path, Anything(), monitor, loaders=(loader,), **options)
    assert [tag for tag in shown if tag.startswith("throughput")] == ["throughput/train/steps_per_second"]
    short_fits.quiet_trainer(tmp_path, monitor).predict(Anything(), loader)
