"""EMA on small modules of its own, on BoringModel and on a transformer that is not ours."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, TensorDataset

from lightning_action.callbacks import EMA, FreezeBackboneFirst
from tests.support.short_fits import quiet_trainer
from tests.support.someones_dit import SomeonesDiT, moving_spots

STEPS_PER_EPOCH = 3
States = list[dict[str, Tensor]]


class Regression(LightningModule):
    """Two layers that know how often they have been used in training, and what they predicted with."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(5, 4, dtype=dtype)
        self.head = nn.Linear(4, 3, dtype=dtype)
        self.register_buffer("num_batches", torch.zeros((), dtype=torch.int64))
        self.evaluated_with: States = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.num_batches += 1
        outputs: Tensor = self.head(self.encoder(batch[0].to(self.head.weight.dtype)))
        return outputs.square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.evaluated_with.append(copy.deepcopy(self.state_dict()))

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Recorder(Callback):
    """Keeps the weights after every batch."""

    def __init__(self) -> None:
        self.states: States = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.states.append(copy.deepcopy(pl_module.state_dict()))


def loader() -> DataLoader[Any]:
    inputs = torch.randn(4 * STEPS_PER_EPOCH, 5, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs), batch_size=4)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return quiet_trainer(folder, *callbacks, **{"max_epochs": 2, "limit_val_batches": 1, **options})


def fit(
    folder: Path, module: LightningModule, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any
) -> Trainer:
    """Fits and validates after each epoch."""
    used = trainer(folder, *callbacks, num_sanity_val_steps=0, **options)
    used.fit(module, loader(), loader(), ckpt_path=ckpt_path)
    return used


def saved_average(used: Trainer, path: Path) -> dict[str, Tensor]:
    used.save_checkpoint(path)
    average: dict[str, Tensor] = torch.load(path, weights_only=True)["ema_state_dict"]
    return average


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Bit by bit, for the names in `actual`."""
    assert actual
    for name, value in actual.items():
        assert torch.equal(value, expected[name]), name


def parameters_of(states: States) -> States:
    return [{name: value for name, value in state.items() if name != "num_batches"} for state in states]


def by_hand(states: States, decays: list[float]) -> dict[str, Tensor]:
    """The average over the states, of which the first is the start."""
    first, *others = parameters_of(states)
    for state, decay in zip(others, decays, strict=True):
        first = {name: decay * average + (1 - decay) * state[name] for name, average in first.items()}
    return first


# --- The average --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "first", "steps", "decays"),
    [
        ({"decay": 0.9, "warmup": False}, 0, [1, 2, 3, 4, 5, 6], [0.9] * 6),
        ({"decay": 0.25}, 0, [1, 2, 3, 4, 5, 6], [1 / 10, 2 / 11, 3 / 12, 0.25, 0.25, 0.25]),
        ({"decay": 0.7, "warmup": False, "every_n_steps": 2}, 0, [2, 4, 6], [0.7] * 3),
        ({"decay": 0.8, "warmup": False, "start_step": 3}, 3, [4, 5, 6], [0.8] * 3),
        ({"decay": 0.0}, 0, [6], [0.0]),
    ],
)
def test_average_is_what_the_formula_says(
    options: dict[str, Any], first: int, steps: list[int], decays: list[float], tmp_path: Path
) -> None:
    recorder = Recorder()
    used = fit(tmp_path, Regression(), EMA(**options), recorder)
    expected = by_hand([recorder.states[step] for step in [first, *steps]], decays)
    average = saved_average(used, tmp_path / "last.ckpt")
    assert average.keys() == expected.keys()
    for name, value in average.items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-12)
        assert (decays == [0.0]) == torch.equal(value, recorder.states[-1][name])


def test_it_updates_with_the_optimizer_and_not_with_every_batch(tmp_path: Path) -> None:
    recorder = Recorder()
    ema = EMA(0.9, warmup=False)
    used = fit(tmp_path, Regression(), ema, recorder, accumulate_grad_batches=2)
    # The last batch of an epoch of three makes a step of its own.
    expected = by_hand([recorder.states[batch] for batch in (0, 2, 3, 5, 6)], [0.9] * 4)
    average = saved_average(used, tmp_path / "last.ckpt")
    assert ema.state_dict() == {"num_updates": 4}
    assert all(torch.allclose(value, expected[name], rtol=0, atol=1e-12) for name, value in average.items())


def test_average_of_bfloat16_is_kept_in_float32(tmp_path: Path) -> None:
    recorder, module = Recorder(), Regression(torch.bfloat16)
    used = fit(tmp_path, module, EMA(0.999, warmup=False), recorder)
    expected = by_hand([{n: v.float() for n, v in state.items()} for state in recorder.states], [0.999] * 6)
    average = saved_average(used, tmp_path / "last.ckpt")
    for name, value in average.items():
        assert value.dtype == torch.float32 and module.state_dict()[name].dtype == torch.bfloat16
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-6)
        # In the smaller type, such a step would be lost.
        assert not torch.equal(value, value.bfloat16().float())


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        (None, ["encoder.bias", "encoder.weight", "head.bias"]),
        (["encoder"], ["encoder.bias", "encoder.weight"]),
        (["*.bias"], ["encoder.bias", "head.bias"]),
        (["head.bias", "encoder.weight"], ["encoder.weight", "head.bias"]),
    ],
)
def test_parts_that_train_are_averaged(parts: list[str] | None, names: list[str], tmp_path: Path) -> None:
    module = Regression()
    module.head.weight.requires_grad_(False)
    used = fit(tmp_path, module, EMA(parts=parts))
    assert sorted(saved_average(used, tmp_path / "last.ckpt")) == names


@pytest.mark.parametrize("ema_first", [True, False])
def test_parts_that_another_callback_freezes_for_a_while_are_averaged(ema_first: bool, tmp_path: Path) -> None:
    callbacks = [EMA(0.9), FreezeBackboneFirst(["encoder"], unfreeze_at_step=2)]
    used = fit(tmp_path, Regression(), *callbacks if ema_first else reversed(callbacks))
    assert len(saved_average(used, tmp_path / "last.ckpt")) == 4


# --- In and out ---------------------------------------------------------------------------------------------------


def test_validation_within_a_fit_sees_the_average_and_training_does_not(tmp_path: Path) -> None:
    recorder, module, ema = Recorder(), Regression(), EMA(0.9, warmup=False)
    fit(tmp_path, module, ema, recorder)
    plain = Recorder()
    fit(tmp_path, Regression(), plain)
    for with_average, without in zip(recorder.states, plain.states, strict=True):
        assert_equal(with_average, without)
    for seen, last in zip(parameters_of(module.evaluated_with), (3, 6), strict=True):
        expected = by_hand(recorder.states[: last + 1], [0.9] * last)
        assert all(torch.allclose(value, expected[name], rtol=0, atol=1e-12) for name, value in seen.items())
        assert not torch.equal(seen["head.bias"], recorder.states[last]["head.bias"])
    # Buffers are not averaged.
    assert [int(seen["num_batches"]) for seen in module.evaluated_with] == [3, 6]


def test_sanity_check_and_what_comes_before_the_average_starts_use_the_weights(tmp_path: Path) -> None:
    recorder, module = Recorder(), Regression()
    trainer(tmp_path, EMA(start_step=100), recorder).fit(module, loader(), loader())
    for seen, step in zip(module.evaluated_with, (0, 3, 6), strict=True):
        assert_equal(seen, recorder.states[step])


@pytest.mark.parametrize("task", ["validate", "test", "predict"])
def test_evaluation_uses_the_average_and_gives_the_weights_back(task: str, tmp_path: Path) -> None:
    module, ema = Regression(), EMA(0.9)
    used = fit(tmp_path, module, ema, limit_val_batches=0)
    trained, average = copy.deepcopy(module.state_dict()), saved_average(used, tmp_path / "last.ckpt")
    expected = trained | average
    assert not torch.equal(expected["head.bias"], trained["head.bias"])

    # The module that was fitted, and a new one from the checkpoint.
    getattr(trainer(tmp_path, ema), task)(module, loader())
    fresh = Regression()
    getattr(trainer(tmp_path, EMA()), task)(fresh, loader(), ckpt_path=tmp_path / "last.ckpt")
    without = Regression()
    getattr(trainer(tmp_path), task)(without, loader(), ckpt_path=tmp_path / "last.ckpt")
    for one in (module, fresh, without):
        assert_equal(one.evaluated_with[0], trained if one is without else expected)
        assert_equal(one.state_dict(), trained)


def test_other_callbacks_see_the_average_when_a_prediction_ends(tmp_path: Path) -> None:
    class Looks(Callback):
        def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.seen = copy.deepcopy(pl_module.state_dict())

    module, looks = Regression(), Looks()
    used = fit(tmp_path, Regression(), EMA(0.9))
    average = saved_average(used, tmp_path / "last.ckpt")
    trainer(tmp_path, EMA(), looks).predict(module, loader(), ckpt_path=tmp_path / "last.ckpt")
    assert_equal(average, looks.seen)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("task", ["fit", "predict"])
def test_exception_gives_the_weights_back(task: str, error: type[BaseException], tmp_path: Path) -> None:
    class Breaks(Regression):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.seen = copy.deepcopy(self.state_dict())
            raise error

    recorder, module, ema = Recorder(), Breaks(), EMA(0.9)
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        if task == "fit":
            fit(tmp_path, module, ema, recorder)
        else:
            fit(tmp_path, module, ema, recorder, limit_val_batches=0)
            trainer(tmp_path, ema).predict(module, loader())
    assert not torch.equal(module.seen["head.bias"], module.head.bias)
    assert_equal(dict(module.state_dict()), recorder.states[-1])


def test_training_goes_on_after_an_evaluation_of_the_same_module(tmp_path: Path) -> None:
    module, ema = Regression(), EMA(0.9)
    fit(tmp_path, module, ema, max_epochs=1)
    trainer(tmp_path, ema).validate(module, loader(), verbose=False)
    fit(tmp_path, module, ema, max_epochs=1)
    assert ema.state_dict() == {"num_updates": 6}


# --- Saved and resumed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"start_step": 4}, {"every_n_steps": 2}])
def test_resumed_fit_equals_uninterrupted_fit(options: dict[str, Any], tmp_path: Path) -> None:
    saves = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    used = fit(tmp_path, Regression(), EMA(0.9, **options), saves, max_epochs=3, enable_checkpointing=True)
    expected = saved_average(used, tmp_path / "one.ckpt")
    for epoch in range(2):
        module, ema = Regression(), EMA(0.9, **options)
        path = tmp_path / f"epoch={epoch}.ckpt"
        used = fit(tmp_path, module, ema, ckpt_path=path, max_epochs=3)
        assert_equal(saved_average(used, tmp_path / "other.ckpt"), expected)


def test_checkpoint_holds_the_trained_weights_even_when_saved_during_a_validation(tmp_path: Path) -> None:
    class Saves(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / "during.ckpt")

    recorder, module = Recorder(), Regression()
    used = fit(tmp_path, module, Saves(), EMA(0.9), recorder)
    expected = saved_average(used, tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "during.ckpt", weights_only=True)
    assert_equal(checkpoint["state_dict"], recorder.states[-1])
    assert_equal(checkpoint["ema_state_dict"], expected)
    assert not torch.equal(expected["head.bias"], recorder.states[-1]["head.bias"])


def test_fit_goes_on_from_a_checkpoint_without_an_average(tmp_path: Path) -> None:
    used = fit(tmp_path, Regression(), max_epochs=1)
    used.save_checkpoint(tmp_path / "plain.ckpt")
    recorder = Recorder()
    used = fit(tmp_path, Regression(), EMA(0.9, warmup=False), recorder, ckpt_path=tmp_path / "plain.ckpt")
    expected = by_hand(recorder.states, [0.9] * 3)
    average = saved_average(used, tmp_path / "last.ckpt")
    assert all(torch.allclose(value, expected[name], rtol=0, atol=1e-12) for name, value in average.items())


def test_average_of_one_module_does_not_get_into_another(tmp_path: Path) -> None:
    ema, other = EMA(0.9), Regression()
    fit(tmp_path, Regression(), ema)
    start = copy.deepcopy(other.state_dict())
    with pytest.warns(UserWarning, match="EMA: there is no average"):
        trainer(tmp_path, ema).predict(other, loader())
    assert_equal(other.evaluated_with[0], start)


# --- Other people's modules ---------------------------------------------------------------------------------------


def test_it_works_with_boring_model_and_without_arguments(tmp_path: Path) -> None:
    used = quiet_trainer(tmp_path, EMA(), max_steps=3, limit_val_batches=1)
    used.fit(BoringModel())
    assert sorted(saved_average(used, tmp_path / "last.ckpt")) == ["layer.bias", "layer.weight"]


def test_it_works_with_a_transformer_that_is_not_ours(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [EMA(0.9, parts=["action_encoder"])]):
        module = SomeonesDiT()
        used = quiet_trainer(tmp_path, *callbacks, max_steps=4, limit_val_batches=1)
        used.fit(module, moving_spots(), moving_spots())
        weights.append(module.state_dict())
    assert_equal(weights[0], weights[1])
    average = saved_average(used, tmp_path / "last.ckpt")
    assert all(name.startswith("action_encoder.") for name in average)
    assert not torch.equal(average["action_encoder.last.weight"], weights[1]["action_encoder.last.weight"])


# --- Messages -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 1.0}, r"decay must be at least 0 and below 1, got 1.0"),
        ({"decay": -0.1}, r"decay must be at least 0 and below 1, got -0.1"),
        ({"parts": []}, r"parts must be a list with at least one attribute name, got \[\]"),
        ({"parts": "head"}, r"parts must be a list .*, got 'head'"),
        ({"start_step": -1}, r"start_step must be at least 0, got -1"),
        ({"every_n_steps": 0}, r"every_n_steps must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(**arguments)


def test_part_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match=r"Regression has no part 'tail' .* It has: .*encoder, head"):
        fit(tmp_path, Regression(), EMA(parts=["tail"]))


def test_nothing_to_average(tmp_path: Path) -> None:
    module = Regression()
    module.encoder.requires_grad_(False)
    with pytest.raises(MisconfigurationException, match=r"no parameter of \['encoder'\] requires grad"):
        fit(tmp_path, module, EMA(parts=["encoder"]))


def test_checkpoint_with_another_average(tmp_path: Path) -> None:
    used = fit(tmp_path, Regression(), EMA(parts=["head"]), max_epochs=1)
    used.save_checkpoint(tmp_path / "head.ckpt")
    with pytest.raises(MisconfigurationException, match=r"averages of 2 parameters, this fit averages 4.*encoder.bias"):
        fit(tmp_path, Regression(), EMA(), ckpt_path=tmp_path / "head.ckpt")


def test_average_of_a_parameter_that_the_module_does_not_have(tmp_path: Path) -> None:
    fit(tmp_path, Regression(), EMA()).save_checkpoint(tmp_path / "last.ckpt")
    module = Regression()
    module.strict_loading = False
    del module.head
    with pytest.raises(MisconfigurationException, match=r"averages of \['head.weight', 'head.bias'\], which"):
        trainer(tmp_path, EMA()).predict(module, loader(), ckpt_path=tmp_path / "last.ckpt")


@pytest.mark.parametrize("hides", [DeepSpeedStrategy, FSDPStrategy])
def test_strategy_that_hides_parameters(hides: type) -> None:
    class Hidden(hides):  # type: ignore[misc]
        def __init__(self) -> None:
            """Without the library."""

    trainer: Any = SimpleNamespace(strategy=Hidden())
    with pytest.raises(MisconfigurationException, match=r"under Hidden.* use ModelParallelStrategy \(FSDP2\) or DDP"):
        EMA().setup(trainer, Regression(), "fit")


def test_configured_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Callback, "callback")
    arguments = {"decay": 0.9, "parts": ["generator.*.lora_*"]}
    config = {"class_path": "lightning_action.callbacks.EMA", "init_args": arguments}
    callback = parser.instantiate(parser.parse_object({"callback": config})).callback
    assert isinstance(callback, EMA)
    assert (callback.decay, callback.parts) == (0.9, ["generator.*.lora_*"])


class Tied(Regression):
    """One weight under two names, one of them in a part that is compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = nn.Linear(5, 4, dtype=torch.float64)
        self.copy.weight = self.encoder.weight
        self.head = torch.compile(self.head, backend="eager")

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        inputs = batch[0].double()
        outputs: Tensor = self.head(self.encoder(inputs) + self.copy(inputs))
        return outputs.square().mean()


class SavesInValidation(Callback):
    """As a signal may have it."""

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "within.ckpt")


def test_every_name_of_a_weight_is_written(tmp_path: Path) -> None:
    recorder = Recorder()
    options: dict[str, Any] = {"max_steps": 3, "num_sanity_val_steps": 0}
    trainer(tmp_path, EMA(0.5), recorder, SavesInValidation(), **options).fit(Tied(), loader(), loader())
    saved = torch.load(tmp_path / "within.ckpt", weights_only=True)
    trained, averages = saved["state_dict"], saved["ema_state_dict"]
    assert trained.keys() == recorder.states[-1].keys() and "head._orig_mod.weight" in trained
    assert all(torch.equal(trained[name], value) for name, value in recorder.states[-1].items())
    assert averages.keys() == trained.keys() - {"num_batches"}
    assert torch.equal(averages["copy.weight"], averages["encoder.weight"])
    assert not torch.equal(averages["copy.weight"], trained["copy.weight"]), "the control: they are averages"

    module = Tied()
    trainer(tmp_path, EMA(0.5)).validate(module, loader(), ckpt_path=tmp_path / "within.ckpt", verbose=False)
    for name, average in averages.items():
        assert torch.equal(module.evaluated_with[0][name], average)


class SwapsItself(Regression):
    """What Schedule-Free optimizers ask for: other weights during validation."""

    def on_validation_start(self) -> None:
        self.head.weight.data.mul_(2)

    def on_validation_end(self) -> None:
        self.head.weight.data.div_(2)


def test_somebody_else_who_swaps_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="EMA: `head.weight` is not the average.*Schedule-Free"):
        trainer(tmp_path, EMA(), num_sanity_val_steps=0).fit(SwapsItself(), loader(), loader())


class Prunes(Callback):
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            prune.l1_unstructured(pl_module.encoder, "weight", 0.5)


def test_pruning_which_renames_weights(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "last")
    module = Regression()
    trainer(tmp_path, EMA(0.5), Prunes(), checkpoint, enable_checkpointing=True).fit(module, loader(), loader())
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "encoder.weight_orig" in saved["ema_state_dict"] and "encoder.weight" not in saved["ema_state_dict"]
    assert torch.equal(saved["state_dict"]["encoder.weight_orig"], module.encoder.weight_orig)
