"""ActionSensitivity against direct computations, on a DiT that is not ours."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_action.callbacks import ActionModulationMonitor, ActionSensitivity, IgnoredActionsWarning
from lightning_action.callbacks.action_sensitivity import (
    Sensitivity,
    _Prediction,
    action_variants,
    compare_predictions,
)
from tests.support.probed_dit import Probed
from tests.support.short_fits import quiet_trainer, scalars
from tests.support.someones_dit import MovingSpots, moving_spots

TIMESTEPS = [250.0, 700.0]
SAMPLES, SEEDS, SCALE = 5, 2, 3.0
VARIANTS = ["swapped", "shuffled", "scaled", "nulled"]
LAYERS = "transformer.layers"


def trainer_for(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"limit_val_batches": 1.0, "num_sanity_val_steps": 0, "max_steps": 4}
    return quiet_trainer(folder, *callbacks, **(defaults | options))


def probe(**changes: Any) -> ActionSensitivity:
    arguments: dict[str, Any] = {"every_n_steps": 2, "num_samples": SAMPLES, "timesteps": TIMESTEPS}
    return ActionSensitivity(**(arguments | {"num_seeds": SEEDS, "scale": SCALE, "layers": LAYERS} | changes))


def logged_by(logger: TensorBoardLogger) -> dict[str, dict[int, float]]:
    return {tag: values for tag, values in scalars(logger).items() if tag.startswith("sensitivity/")}


class Snapshot(Callback):
    """Keeps what the model would be probed with at one step, before the callback under test comes."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}


def direct_figures(module: Probed) -> dict[str, float]:
    """The documented definitions, sample by sample, in double precision and without any of the callback's code."""
    module.double().eval()
    samples = [{k: v.double() for k, v in MovingSpots(SAMPLES)[i].items()} for i in range(SAMPLES)]
    rows = samples[0]["action"].shape[0]
    order = next(iter(action_variants([torch.arange(rows)[None, :, None].float()], 1.0)["shuffled"]))
    assert order is not None and all(int(row) != place for place, row in enumerate(order.flatten()))
    found: dict[str, list[float]] = {}
    gaps: dict[tuple[int, int], list[float]] = {}
    for timestep in TIMESTEPS:
        for seed in range(SEEDS):
            for index, sample in enumerate(samples):
                own = sample["action"]
                variants = {
                    "swapped": samples[(index - 1) % SAMPLES]["action"],
                    "shuffled": own[order.flatten().long()],
                    "scaled": SCALE * own,
                    "nulled": torch.zeros_like(own),
                }
                # In the probe, noise is drawn for a batch of three, then one of two.
                first, size = (0, 3) if index < 3 else (3, 2)
                random = torch.Generator().manual_seed(seed)
                noise = torch.randn((size, *sample["latents"].shape), generator=random)[index - first].double()
                reference, layers, loss = passes(module, sample, own, noise, timestep)
                for name, action in variants.items():
                    predicted, other_layers, other_loss = passes(module, sample, action, noise, timestep)
                    change = float((predicted - reference).norm() / reference.norm())
                    for key in (f"change/{name}", f"change/{name}/t{timestep:04.0f}"):
                        found.setdefault(key, []).append(change)
                    for number, (a, b) in enumerate(zip(other_layers, layers, strict=True)):
                        found.setdefault(f"layer/{name}/layer_{number:02d}", []).append(
                            float((a - b).norm() / b.norm())
                        )
                    if name == "swapped":
                        gaps.setdefault((index, seed), []).append((other_loss - loss) / loss)
                        for key in ("win_rate", f"win_rate/t{timestep:04.0f}"):
                            found.setdefault(key, []).append(float(other_loss > loss))
                        for key in ("swapped_gap", f"swapped_gap/t{timestep:04.0f}"):
                            found.setdefault(key, []).append((other_loss - loss) / loss)
    figures = {f"sensitivity/{key}": sum(values) / len(values) for key, values in found.items()}
    means = torch.tensor([sum(values) / len(values) for values in gaps.values()], dtype=torch.float64)
    error = ((means - means.mean()).square().sum() / (len(means) - 1)).sqrt() / len(means) ** 0.5
    return figures | {"sensitivity/swapped_gap_error": float(error)}


def passes(
    module: Probed, sample: dict[str, Tensor], action: Tensor, noise: Tensor, timestep: float
) -> tuple[Tensor, list[Tensor], float]:
    """Prediction, outputs of the layers and loss of one sample."""
    assert module.transformer is not None and module.action_encoder is not None
    sigma = timestep / 1000
    latents = ((1 - sigma) * sample["latents"] + sigma * noise)[None]
    transformer = module.transformer
    time = transformer.time_mlp(torch.full((1, latents.shape[1], 1), sigma).double()).unflatten(-1, (6, -1))
    x, outputs = transformer.embed(latents), []
    for layer in transformer.layers:
        x = layer(x, time + module.action_encoder(action[None]))
        outputs.append(x)
    predicted = transformer.out(x)
    return predicted, outputs, float((predicted - (noise - sample["latents"])[None]).square().mean())


def test_every_figure_is_what_it_is_documented_to_be(tmp_path: Path) -> None:
    logger, snapshot, module = TensorBoardLogger(tmp_path), Snapshot(3), Probed(zero_init=False)
    trainer = trainer_for(tmp_path, snapshot, probe(), logger=logger)
    validation = DataLoader(MovingSpots(SAMPLES), batch_size=3)
    with torch.enable_grad():
        trainer.fit(module, moving_spots(), validation)
    logged = logged_by(logger)
    module.load_state_dict(snapshot.weights)
    with torch.no_grad():
        expected = direct_figures(module)
    assert logged.keys() == expected.keys()
    assert all(values.keys() == {1, 3} for values in logged.values())
    assert {tag: values[3] for tag, values in logged.items()} == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert all(logged[f"sensitivity/change/{variant}"][3] > 0.01 for variant in VARIANTS)


def test_a_projection_that_starts_at_zero_shows_no_change_and_chance(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = trainer_for(tmp_path, probe(every_n_steps=1), logger=logger, max_steps=1)
    trainer.fit(Probed(), moving_spots())
    first = {tag: values[0] for tag, values in logged_by(logger).items()}
    assert len(first) == 27
    assert all(value == (0.5 if "win_rate" in tag else 0.0) for tag, value in first.items())


@pytest.mark.parametrize("validates", [True, False])
def test_training_is_the_same_bit_for_bit(tmp_path: Path, validates: bool) -> None:
    weights = []
    for callbacks in ([], [probe(every_n_steps=1)]):
        torch.manual_seed(3)
        module = Probed(zero_init=False)
        trainer = trainer_for(tmp_path, *callbacks, max_steps=6, accumulate_grad_batches=2)
        trainer.fit(module, moving_spots(), moving_spots(4) if validates else None)
        weights.append(module.state_dict() | {"random": torch.get_rng_state()})
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("first", [True, False])
def test_the_probe_is_not_taken_for_training(tmp_path: Path, first: bool) -> None:
    def watch() -> ActionModulationMonitor:
        names = ("action_encoder", "transformer.time_mlp", "transformer.layers", "table")
        return ActionModulationMonitor(*names, every_n_steps=1)

    shown = []
    for callbacks in ([watch()], [probe(every_n_steps=1), watch()] if first else [watch(), probe(every_n_steps=1)]):
        logger = TensorBoardLogger(tmp_path)
        trainer_for(tmp_path, *callbacks, logger=logger, accumulate_grad_batches=2).fit(Probed(), moving_spots())
        shown.append({tag: values for tag, values in scalars(logger).items() if tag.startswith("action/")})
    assert shown[0] and shown[0] == shown[1]


def test_modes_are_restored(tmp_path: Path) -> None:
    class Modes(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            pl_module.norm[1].eval()  # type: ignore[index, union-attr]

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            seen.append([module.training for module in pl_module.modules()])

    seen: list[list[bool]] = []
    module = Probed()
    trainer_for(tmp_path, Modes(), probe(every_n_steps=1), max_steps=2).fit(module, moving_spots())
    assert seen == [[part is not module.norm[1] for part in module.modules()]] * 2


class Counting(Probed):
    calls = 0

    def predict_velocity(self, batch: dict[str, Any], timestep: float, seed: int) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return super().predict_velocity(batch, timestep, seed)


@pytest.mark.parametrize(("accumulate", "num_probes"), [(1, 2), (3, 2)])
def test_steps_that_are_not_due_cost_nothing(tmp_path: Path, accumulate: int, num_probes: int) -> None:
    module = Counting()
    trainer = trainer_for(tmp_path, probe(every_n_steps=3), max_steps=7, accumulate_grad_batches=accumulate)
    trainer.fit(module, moving_spots())
    # Without validation, the probe is one batch.
    assert module.calls == num_probes * len(TIMESTEPS) * SEEDS * (1 + len(VARIANTS))
    assert not any(layer._forward_hooks for layer in module.transformer.layers)  # type: ignore[union-attr]


def test_an_early_probe_shows_within_a_hundred_steps_whether_actions_act(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer = trainer_for(tmp_path, ActionSensitivity(layers=LAYERS), logger=logger, max_steps=102)
    trainer.fit(Probed(), moving_spots(48))
    shown = scalars(logger)
    assert list(shown["sensitivity/change/nulled"]) == [99] and shown["sensitivity/change/nulled"][99] > 0


def ignoring(tmp_path: Path, ignores_actions: bool, **changes: Any) -> list[str]:
    """What is said while training a model that ignores its actions, or one that was made to follow them."""
    module = Probed(ignores_actions=ignores_actions, zero_init=False, learning_rate=1e-2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = trainer_for(tmp_path, probe(num_samples=8, **changes), max_steps=120)
        trainer.fit(module, moving_spots(48, batch_size=8), moving_spots(8))
    return [str(w.message) for w in caught if w.category is IgnoredActionsWarning]


def test_a_model_that_ignores_its_actions_is_named_once(tmp_path: Path) -> None:
    (message,) = ignoring(tmp_path, True, every_n_steps=10, warn_after_step=60, patience=3)
    # Probes at 69, 79 and 89 count; from then on it has been said.
    assert "At step 89" in message and "50% is chance" in message


def test_a_model_that_follows_its_actions_is_not_named(tmp_path: Path) -> None:
    assert ignoring(tmp_path, False, every_n_steps=10, warn_after_step=60) == []


def test_the_count_towards_the_warning_is_resumed(tmp_path: Path) -> None:
    fit = {"warn_after_step": 0, "every_n_steps": 2, "patience": 3}
    trainer = trainer_for(tmp_path, probe(**fit), max_steps=4)
    trainer.fit(Probed(ignores_actions=True), moving_spots())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.warns(IgnoredActionsWarning, match="the model ignores its actions. At step 5"):
        trainer = trainer_for(tmp_path, probe(**fit), max_steps=6)
        trainer.fit(Probed(ignores_actions=True), moving_spots(), ckpt_path=tmp_path / "a.ckpt", weights_only=True)


def test_noise_is_told_from_obedience() -> None:
    own = torch.ones(1, 8).double()
    coin = torch.tensor([0.1, -0.1] * 4).double()
    chance, clear = own + coin, own + 0.2 + coin
    for other, expected in ((own, True), (chance, True), (clear, False)):
        values = torch.stack([own, other, own, own], dim=1)[:, None]
        assert Sensitivity(["swapped"], values).is_within_noise == expected
        assert not Sensitivity(["swapped"], values[..., :1]).is_within_noise


def test_whole_numbers_are_not_scaled_and_one_sample_is_swapped_with_itself_backwards() -> None:
    classes = torch.arange(7).reshape(1, 7, 1)
    variants = action_variants([classes], SCALE)
    assert variants.keys() == {"swapped", "shuffled", "nulled"}
    assert variants["swapped"][0].flatten().tolist() == [6, 5, 4, 3, 2, 1, 0]  # type: ignore[union-attr]
    assert sorted(variants["shuffled"][0].flatten().tolist()) == list(range(7))  # type: ignore[union-attr]
    assert variants["nulled"] == [None]


def test_a_csv_logger_and_none_work_too(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer_for(tmp_path, probe(), logger=logger, max_steps=2).fit(Probed(), moving_spots())
    assert "sensitivity/win_rate/t0250" in (Path(logger.log_dir) / "metrics.csv").read_text()
    trainer_for(tmp_path, probe(), max_steps=2).fit(Probed(), moving_spots())


def test_the_probe_runs_in_the_precision_of_the_fit(tmp_path: Path) -> None:
    class Watched(Probed):
        def predict_velocity(self, batch: dict[str, Any], timestep: float, seed: int) -> tuple[Tensor, Tensor]:
            autocast.append(torch.is_autocast_enabled("cpu"))
            return super().predict_velocity(batch, timestep, seed)

    autocast: list[bool] = []
    trainer_for(tmp_path, probe(), max_steps=2, precision="bf16-mixed").fit(Watched(), moving_spots())
    assert autocast and all(autocast)


def test_two_of_them_keep_their_states_apart(tmp_path: Path) -> None:
    two = [probe(timesteps=[100.0]), probe(timesteps=[900.0], layers=None)]
    trainer = trainer_for(tmp_path, *two, max_steps=2)
    trainer.fit(Probed(), moving_spots())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]
    assert {callback.state_key for callback in two} <= saved.keys()


def test_sharded_parameters_are_probed_and_train_on(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [probe(every_n_steps=1)]):
        module = Probed(zero_init=False)
        strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
        trainer = trainer_for(tmp_path, *callbacks, strategy=strategy, devices=1, inference_mode=False)
        trainer.fit(module, moving_spots(), moving_spots(4))
        weights.append([parameter.to_local().clone() for parameter in module.transformer.parameters()])  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_module_without_the_method_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match="ActionSensitivity needs a method predict_velocity.*BoringModel"
    ):
        trainer_for(tmp_path, ActionSensitivity()).fit(BoringModel())


def test_other_stages_do_not_ask_for_anything(tmp_path: Path) -> None:
    trainer_for(tmp_path, ActionSensitivity()).validate(BoringModel(), verbose=False)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("generator.blocks", r"no such list of layers. It has: transformer.layers"),
        ("norm", r"did not run the layers \[1\]"),
    ],
)
def test_layers_that_do_not_fit_are_named(tmp_path: Path, layers: str, message: str) -> None:
    class NormAlone(Probed):
        def predict_velocity(self, batch: dict[str, Any], timestep: float, seed: int) -> tuple[Tensor, Tensor]:
            self.norm[0](torch.randn(4, 3))
            return batch["latents"], batch["latents"]

    with pytest.raises(MisconfigurationException, match=message):
        trainer_for(tmp_path, probe(layers=layers)).fit(NormAlone(), moving_spots())


def test_layers_can_be_left_out(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    trainer_for(tmp_path, probe(layers=None), logger=logger).fit(Probed(), moving_spots())
    tags = logged_by(logger)
    assert "sensitivity/change/nulled" in tags and not [tag for tag in tags if "/layer/" in tag]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1"),
        ({"num_seeds": 0}, "num_seeds must be at least 1"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"num_samples": 1}, "num_samples must be at least 2"),
        ({"timesteps": []}, "timesteps must be numbers from 0 to 1000"),
        ({"timesteps": [1001.0]}, "timesteps must be numbers from 0 to 1000"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"warn_after_step": -1}, "warn_after_step must be at least 0"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ActionSensitivity(**arguments)


def test_changes_of_large_predictions_are_exact() -> None:
    own, other = torch.randn(2, 1, 1_000_000, generator=torch.Generator().manual_seed(0))
    predictions = iter([_Prediction(own, own, []), _Prediction(other, own, [])])
    rows = compare_predictions(lambda batch: next(predictions), {}, {"swapped": None})
    exact = (other.double() - own.double()).norm() / own.double().norm()
    assert rows[0, 2].item() == pytest.approx(exact.item(), rel=3e-7)
