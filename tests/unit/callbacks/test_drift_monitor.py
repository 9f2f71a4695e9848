"""DriftMonitor against direct computations, in validation and in prediction."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.callbacks import DriftMonitor, DriftWarning, RolloutLogger, drift_monitor
from lightning_action.callbacks.drift_monitor import FIGURES, STATISTICS
from lightning_action.callbacks.support import log_writing
from tests.support.short_fits import quiet_trainer, scalars

B, T, H, W = 3, 19, 7, 11
ROWS = 5


def video_of(sample_id: int, num_frames: int = T) -> Tensor:
    """Random pixels that belong to a sample."""
    return torch.rand(num_frames, 3, H, W, generator=torch.Generator().manual_seed(sample_id))


def direct(video: np.ndarray, seams: list[int], frames_per_block: int) -> dict[str, float]:
    """The documented definitions, in plain loops."""
    luma = 0.299 * video[:, 0] + 0.587 * video[:, 1] + 0.114 * video[:, 2]
    filtered = [
        np.mean(
            [
                (f[y - 1, x] + f[y + 1, x] + f[y, x - 1] + f[y, x + 1] - 4 * f[y, x]) ** 2
                for y in range(1, H - 1)
                for x in range(1, W - 1)
            ]
        )
        for f in luma
    ]
    moved = [np.nan] + [float(np.abs(b - a).mean()) for a, b in zip(luma[:-1], luma[1:], strict=True)]
    ratios = []
    for seam in seams:
        inside = [moved[t] for t in range(seam + 1, min(seam + frames_per_block, len(luma)))]
        if inside:
            ratios.append((moved[seam] + 1e-3) / (np.mean(inside) + 1e-3))
    curves = {
        "brightness": ([f.mean() for f in luma], range(len(luma))),
        "contrast": ([f.std() for f in luma], range(len(luma))),
        "high_frequency": (filtered, range(len(luma))),
        "block_seam": (ratios, [s for s in seams if s + 1 < len(luma)]),
    }
    figures = {}
    for name, (curve, times) in curves.items():
        if not len(curve):
            continue
        quarter = max(1, len(curve) // 4)
        start, end = np.mean(curve[:quarter]), np.mean(curve[-quarter:])
        figures[f"{name}/start"], figures[f"{name}/end"] = start, end
        figures[f"{name}/slope"] = np.polyfit(list(times), curve, 1)[0] if len(curve) > 1 else 0.0
        figures[f"{name}/change"] = abs(end - start) if name == "brightness" else abs(end / start - 1)
    return figures


def measured(monitor: DriftMonitor, video: Tensor) -> dict[str, float]:
    values = monitor.statistics(video).flatten().tolist()
    keys = [f"{figure}/{statistic}" for figure in FIGURES for statistic in STATISTICS]
    return {key: value for key, value in zip(keys, values, strict=True) if value == value}


@pytest.mark.parametrize(
    ("blocks", "ratio", "alone", "seams", "frames_per_block"),
    [
        (1, 4, False, [1, 5, 9, 13, 17], 4),
        (2, 4, False, [5, 13], 8),
        (2, 4, True, [1, 9, 17], 8),
        (3, 1, False, [3, 6, 9, 12, 15, 18], 3),
        (1, 1, False, list(range(1, T)), 1),
        (9, 4, False, [], 36),
    ],
)
def test_figures_are_what_they_are_documented_to_be(
    blocks: int, ratio: int, alone: bool, seams: list[int], frames_per_block: int
) -> None:
    monitor = DriftMonitor(blocks, ratio, alone)
    video = video_of(1) * torch.linspace(0.5, 1, T)[:, None, None, None]
    expected = direct(video.double().numpy(), seams, frames_per_block)
    assert measured(monitor, video) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert ("block_seam/end" in expected) == (blocks * ratio not in (1, 36))


def test_each_kind_of_drift_moves_its_own_figure() -> None:
    monitor = DriftMonitor(num_frame_per_block=1)
    time = torch.linspace(0, 1, T)[:, None, None, None]
    picture = 0.4 + 0.2 * video_of(2, 1)
    jumps = torch.tensor([0.05 * ((t + 3) // 4) + 0.001 * t for t in range(T)])[:, None, None, None]
    brighter, flatter, jumping = picture + 0.3 * time, 0.5 + (picture - 0.5) * (1 - 0.8 * time), picture + jumps
    assert measured(monitor, brighter)["brightness/slope"] == pytest.approx(0.3 / (T - 1), rel=1e-5)
    assert measured(monitor, brighter)["contrast/change"] < 1e-5
    assert measured(monitor, flatter)["contrast/change"] > 0.5
    assert measured(monitor, flatter)["high_frequency/change"] > 0.5
    assert measured(monitor, jumping)["block_seam/end"] > 20
    still = measured(monitor, picture.expand(T, -1, -1, -1))
    assert still["block_seam/end"] == 1 and max(still[f"{figure}/change"] for figure in FIGURES) < 1e-12


class Predictor(LightningModule):
    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        ids = batch["sample_id"]
        return {"video": torch.stack([video_of(i, T if i != 3 else T - 6) for i in ids.tolist()]), "sample_id": ids}


def trainer_for(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return quiet_trainer(folder, *callbacks, **({"limit_val_batches": 1.0, "max_epochs": 4} | options))


def logged_by(logger: TensorBoardLogger) -> dict[str, dict[int, float]]:
    return {tag: values for tag, values in scalars(logger).items() if tag.startswith("drift/")}


def test_a_prediction_logs_the_mean_over_its_samples_each_once(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    ids = [{"sample_id": i} for i in (1, 2, 3, 4, 1)]  # one twice, as distributed samplers pad
    trainer = trainer_for(tmp_path, DriftMonitor(num_frame_per_block=2), logger=logger)
    trainer.predict(Predictor(), DataLoader(ids, batch_size=1), return_predictions=False)
    each = [
        direct(video_of(i, n).double().numpy(), [s for s in (5, 13) if s < n], 8)
        for i, n in ((1, T), (2, T), (3, T - 6), (4, T))
    ]
    expected = {f"drift/{key}": np.mean([figures[key] for figures in each]) for key in each[0]}
    logged = {tag: values[0] for tag, values in logged_by(logger).items()}
    assert logged == pytest.approx(expected, rel=1e-6, abs=1e-7)


class Generator(BoringModel):
    """Generates as many frames as there are action rows, and one, getting brighter."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Any:
        return {"loss": self.layer(torch.ones(1, 32)).sum()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        pass

    def generate(self, batch: dict[str, Any]) -> Tensor:
        self.batches.append(batch)
        frames = batch["action"].shape[1] + 1
        torch.rand(1)  # moves the global random state
        return torch.stack([video_of(i, frames) for i in batch["sample_id"].tolist()]) * torch.linspace(
            0.2, 1, frames
        ).reshape(-1, 1, 1, 1)


def loader() -> DataLoader[Any]:
    samples = [
        {"action": torch.full((ROWS, 2), float(i)) + torch.arange(ROWS)[:, None], "sample_id": i} for i in range(4)
    ]
    return DataLoader(samples, batch_size=B)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:DriftMonitor. generated videos drift in (contrast|high_frequency)")
def test_validation_generates_longer_videos_than_the_data_has(tmp_path: Path) -> None:
    logger, module = TensorBoardLogger(tmp_path), Generator()
    monitor = DriftMonitor(rollout_rows=T - 1, num_rollouts=2, every_n_validations=2)
    with pytest.warns(DriftWarning, match="generated videos drift in brightness: brightness/change is 0.3"):
        trainer_for(tmp_path, monitor, logger=logger).fit(module, loader(), loader())
    assert len(module.batches) == 2  # of four validations; none in the sanity check
    for batch in module.batches:
        assert batch["sample_id"].tolist() == [0, 1]
        assert batch["action"][1, :, 0].tolist() == [1 + k % ROWS for k in range(T - 1)]
    each = [
        direct(module.generate(batch)[0].double().numpy(), [1, 5, 9, 13, 17], 4)
        for batch in ({"action": torch.zeros(1, T - 1, 2), "sample_id": torch.tensor([i])} for i in (0, 1))
    ]
    expected = {f"drift/{key}": np.mean([figures[key] for figures in each]) for key in each[0]}
    logged = logged_by(logger)
    assert {tag: values[7] for tag, values in logged.items()} == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert logged["drift/brightness/end"].keys() == {3, 7}, "as Lightning's own validation figures"


def test_without_rollout_rows_a_fit_is_left_alone(tmp_path: Path) -> None:
    module = Generator()
    trainer_for(tmp_path, DriftMonitor(), max_epochs=1).fit(module, loader(), loader())
    assert module.batches == []


@pytest.mark.filterwarnings("ignore:DriftMonitor. generated videos drift")
def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    states = []
    for monitor in ([], [DriftMonitor(rollout_rows=3)]):
        torch.manual_seed(5)
        module = Generator()
        trainer_for(tmp_path, *monitor, max_epochs=2).fit(module, loader(), loader())
        states.append([*module.state_dict().values(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_each_kind_of_drift_is_warned_of_once(tmp_path: Path) -> None:
    class Drifting(LightningModule):
        def predict_step(self, batch: Tensor, batch_idx: int) -> Any:
            time = torch.linspace(0, 1, T)[None, :, None, None, None]
            jump = torch.tensor([(t + 3) // 4 / 6 for t in range(T)])[None, :, None, None, None]
            return {"video": (0.5 + (video_of(2, 1) - 0.5) * (1 - time)) * 0.2 + 0.8 * jump}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = DriftMonitor(max_high_frequency_change=0.5)
        trainer = trainer_for(tmp_path, monitor, logger=CSVLogger(tmp_path))
        for _ in range(2):
            trainer.predict(Drifting(), DataLoader(torch.zeros(2)), return_predictions=False)
    said = [str(w.message).split(":")[1] for w in caught if w.category is DriftWarning]
    assert said == [f" generated videos drift in {figure}" for figure in FIGURES]


def test_a_steady_video_is_not_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", DriftWarning)
        trainer = trainer_for(tmp_path, DriftMonitor())
        trainer.predict(Predictor(), DataLoader([{"sample_id": 1}]), return_predictions=False)


def test_samples_without_a_name_all_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monitor, logged, trainer = DriftMonitor(), dict[str, float](), SimpleNamespace()
    statistics = [monitor.statistics(video_of(index)) for index in range(3)]
    for videos in ([video_of(0)], [video_of(1)]):
        monitor._add(torch.stack(videos), {})
    monkeypatch.setattr(drift_monitor, "gather", lambda rows: [rows, [(None, statistics[2])]])
    monkeypatch.setattr(log_writing, "current_step", lambda trainer: 0)
    monkeypatch.setattr(log_writing, "scalars", lambda trainer, values, step: logged.update(values))
    monitor._log(trainer)  # type: ignore[arg-type]
    assert logged["drift/brightness/start"] == pytest.approx(float(torch.stack(statistics)[:, 0, 0].mean()), rel=1e-12)


@pytest.mark.parametrize("callback", [DriftMonitor(rollout_rows=3), RolloutLogger()])
def test_batches_without_actions_are_refused_before_the_first_step(callback: Callback, tmp_path: Path) -> None:
    class Counts(Generator):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.steps += 1
            return super().training_step(batch, batch_idx)

    module, without = Counts(), DataLoader([{"sample_id": torch.tensor(0)}])  # type: ignore[var-annotated, arg-type]
    with pytest.raises(MisconfigurationException, match="needs batches that are dicts with 'action'.*sample_id"):
        trainer_for(tmp_path, callback, num_sanity_val_steps=0).fit(module, loader(), without)
    assert module.steps == 0


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    class Wrong(Generator):
        def generate(self, batch: dict[str, Any]) -> Tensor:
            return torch.zeros(1, T, H, W)

        def predict_step(self, batch: Any, batch_idx: int) -> Any:
            return {"latents": 0}

    with pytest.raises(MisconfigurationException, match="DriftMonitor needs a method generate.*BoringModel has none"):
        trainer_for(tmp_path, DriftMonitor(rollout_rows=3)).fit(BoringModel())
    with pytest.raises(MisconfigurationException, match="DriftMonitor expects generate"):
        trainer_for(tmp_path, DriftMonitor(rollout_rows=3)).fit(Wrong(), loader(), loader())
    with pytest.raises(MisconfigurationException, match=r"dict with 'video' .* got \['latents'\]"):
        trainer_for(tmp_path, DriftMonitor()).predict(Wrong(), loader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frame_per_block": 0}, "num_frame_per_block must be at least 1"),
        ({"rollout_rows": 0}, "rollout_rows must be at least 1"),
        ({"every_n_validations": 0}, "every_n_validations must be at least 1"),
        ({"max_block_seam": 0.0}, "limits must be above 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftMonitor(**arguments)
