"""Every figure of ActionModulationMonitor against a direct computation, and every fault that it names."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from lightning_action.callbacks import ActionModulationMonitor, ActionModulationWarning
from tests.support import short_fits
from tests.support.someones_dit import DIM, NUM_FRAMES, NUM_LAYERS, ActionEncoder, SomeonesDiT, moving_spots

NAMES = {
    "projection": "action_encoder",
    "time_projection": "transformer.time_mlp",
    "layers": "transformer.layers",
    "table": "table",
}
SLOTS = ["shift_sa", "scale_sa", "gate_sa", "shift_ffn", "scale_ffn", "gate_ffn"]
PER_LAYER = pytest.mark.parametrize("per_layer", [False, True])


def monitor(**options: Any) -> ActionModulationMonitor:
    return ActionModulationMonitor(**NAMES | {"warn_after_steps": 4} | options)


def fit(folder: Path, module: LightningModule, *callbacks: Callback, **options: Any) -> short_fits.Shown:
    defaults: dict[str, Any] = {"max_steps": 4, "log_every_n_steps": 2, "loaders": (moving_spots(24),)}
    return short_fits.fit(folder, module, *callbacks, **defaults | options)


class Recording(SomeonesDiT):
    """Writes down the modulation, the time modulation and the tables of every step, and can take actions away."""

    def __init__(self, absent: tuple[int, ...] = (), **options: Any) -> None:
        super().__init__(**{"zero_init": False} | options)
        self.absent = list(absent)
        self.modulation: dict[int, list[Tensor]] = {}
        self.time: dict[int, list[Tensor]] = {}
        self.actions: dict[int, list[Tensor]] = {}
        self.tables: dict[int, list[Tensor]] = {}

    def forward(self, batch: dict[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        assert self.transformer is not None and self.action_encoder is not None
        step, transformer = self.global_step, self.transformer
        self.time.setdefault(step, []).append(transformer.time_mlp(batch["timestep"][..., None] / 1000).detach())
        modulation = self.action_encoder(action)
        self.modulation.setdefault(step, []).append(modulation.detach())
        self.actions.setdefault(step, []).append(action)
        self.tables[step] = [layer.table.detach().clone() for layer in transformer.layers]  # type: ignore[union-attr, operator]
        return super().forward(batch, action)


def direct(module: Recording, step: int) -> dict[str, float]:
    """What is to be shown of a step, from the definition, frame by frame."""
    modulation = torch.cat(module.modulation[step])
    layers = modulation if modulation.ndim == 5 else modulation[:, :, None]
    frames = [(f, layers[b, f]) for b in range(len(layers)) for f in range(NUM_FRAMES) if bool(layers[b, f].any())]
    norms = [frame.flatten(1).norm(dim=1) for _, frame in frames]
    mean_norm = torch.stack(norms).mean(dim=0)
    time = torch.cat(module.time[step]).flatten(0, 1).norm(dim=1).mean()
    base = (6 * DIM) ** 0.5 + time + torch.stack([table.norm() for table in module.tables[step]]).mean()
    expected = {"modulation_norm/all": mean_norm.mean(), "modulation_to_time/all": mean_norm.mean() / time}
    expected["modulation_to_base/all"] = mean_norm.mean() / base
    for index, slot in enumerate(SLOTS):
        expected[f"modulation_norm/{slot}"] = torch.stack(
            [frame[:, index].norm(dim=-1).mean() for _, frame in frames]
        ).mean()
    for number in range(NUM_FRAMES):
        of_frame = [norm.mean() for (f, _), norm in zip(frames, norms, strict=True) if f == number]
        if of_frame:
            expected[f"modulation_norm_by_frame/frame_{number:02d}"] = torch.stack(of_frame).mean()
    for index, table in enumerate(module.tables[step]):
        own = mean_norm[index if len(mean_norm) > 1 else 0]
        expected[f"modulation_to_table/layer_{index:02d}"] = own / table.norm()
        if modulation.ndim == 5:
            expected[f"modulation_to_time/layer_{index:02d}"] = own / time
    expected["modulation_variation"] = variation(layers)
    total = len(layers) * NUM_FRAMES
    return {
        f"action/{name}": float(value)
        for name, value in (expected | {"null_share": (total - len(frames)) / total}).items()
    }


def variation(layers: Tensor) -> Any:
    pairs = [(video[f], video[f + 1]) for video in layers for f in range(NUM_FRAMES - 1)]
    pairs = [(one, other) for one, other in pairs if bool(one.any()) and bool(other.any())]
    changes = sum(float((other - one).square().sum()) for one, other in pairs)
    scales = sum(float(one.square().sum() + other.square().sum()) for one, other in pairs)
    return (changes / scales) ** 0.5


class RecordsGradients(Callback):
    def __init__(self) -> None:
        self.norms: dict[int, float] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        gradients = [p.grad.flatten() for p in pl_module.action_encoder.parameters()]  # type: ignore[union-attr]
        self.norms[trainer.global_step] = torch.cat(gradients).norm().item()


@PER_LAYER
@pytest.mark.parametrize("accumulate", [1, 3])
def test_every_figure_equals_a_direct_computation(tmp_path: Path, per_layer: bool, accumulate: int) -> None:
    module, gradients = Recording(per_layer=per_layer), RecordsGradients()
    shown = fit(tmp_path, module, gradients, monitor(), accumulate_grad_batches=accumulate, gradient_clip_val=0.01)
    for step in (0, 1, 3):
        expected = direct(module, step) | {"action/projection_grad_norm": gradients.norms[step]}
        assert {tag for tag in shown if tag.startswith("action/")} == expected.keys()
        assert {tag: shown[tag][step] for tag in expected} == pytest.approx(expected, rel=1e-6)
        assert {step for tag in expected for step in shown[tag]} == {0, 1, 3}


@PER_LAYER
def test_frames_without_a_modulation_do_not_dilute(tmp_path: Path, per_layer: bool) -> None:
    class Masking(ActionEncoder):
        """The second frame of the first sample has no action, nor has the last sample."""

        def forward(self, action: Tensor) -> Tensor:
            keep = torch.ones(action.shape[:2], dtype=torch.bool)
            keep[0, 1] = keep[-1] = False
            modulation = super().forward(action)
            return torch.where(keep.reshape(*keep.shape, *(1,) * (modulation.ndim - 2)), modulation, 0.0)

    class Masked(Recording):
        def configure_model(self) -> None:
            super().configure_model()
            self.action_encoder = Masking(per_layer, zero_init=False)

    module = Masked()
    shown = fit(tmp_path, module, monitor(), loaders=(moving_spots(24, batch_size=3),))
    expected = direct(module, 3)
    assert {tag: shown[tag][3] for tag in expected} == pytest.approx(expected, rel=1e-6)
    assert expected["action/null_share"] == pytest.approx(4 / 9)


def test_a_zero_start_is_mentioned_once_and_is_no_fault(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ActionModulationWarning)
        shown = fit(tmp_path, SomeonesDiT(), monitor(), max_steps=12)
    assert sum("exactly zero at the start" in message for message in caplog.messages) == 1
    assert all(
        shown[f"action/modulation_norm/{slot}"][0] == 0 < shown[f"action/modulation_norm/{slot}"][3] for slot in SLOTS
    )


def test_a_start_that_is_not_zero_is_not_called_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fit(tmp_path, SomeonesDiT(zero_init=False), monitor())
    assert not [message for message in caplog.messages if "exactly zero" in message]


class Detached(SomeonesDiT):
    def configure_model(self) -> None:
        super().configure_model()
        assert self.transformer is not None
        self.transformer.register_forward_pre_hook(lambda _, args: (*args[:2], args[2].detach()))


class FrozenByMistake(SomeonesDiT):
    def configure_model(self) -> None:
        super().configure_model()
        assert self.action_encoder is not None
        self.action_encoder.requires_grad_(False)


class NotInTheOptimizer(SomeonesDiT):
    def configure_optimizers(self) -> Any:
        assert self.transformer is not None
        return torch.optim.AdamW(self.transformer.parameters(), lr=1e-2)


class Exploding(SomeonesDiT):
    """The scale of the modulation is four times larger at every step."""

    def configure_model(self) -> None:
        super().configure_model()
        assert self.action_encoder is not None
        self.action_encoder.register_forward_hook(lambda *args: args[2] * 4.0**self.global_step)


class NotANumber(SomeonesDiT):
    def configure_model(self) -> None:
        super().configure_model()
        assert self.action_encoder is not None
        self.action_encoder.register_forward_hook(lambda *args: args[2] * float("nan"))


class LastLayerFrozen(SomeonesDiT):
    """The last layer stays at zero, although something before it trains."""

    def configure_model(self) -> None:
        super().configure_model()
        assert self.action_encoder is not None
        self.action_encoder.last.requires_grad_(False)
        bias = nn.Parameter(torch.zeros(6, DIM))
        self.action_encoder.register_parameter("bias", bias)
        self.action_encoder.register_forward_hook(lambda *args: args[2] + (bias - bias))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        assert self.action_encoder is not None
        return outputs | {"loss": outputs["loss"] + self.action_encoder.bias.sum()}  # type: ignore[operator]


class Saturated(SomeonesDiT):
    """Actions far outside of their range drive a tanh to its ends, and its output hardly changes with them."""

    def configure_model(self) -> None:
        super().configure_model()
        assert self.action_encoder is not None
        self.action_encoder.hidden = nn.Sequential(nn.Linear(2, 8), nn.Tanh())
        nn.init.constant_(self.action_encoder.hidden[0].bias, 100.0)  # type: ignore[arg-type]


class NoActions(SomeonesDiT):
    """The projection is never called."""

    def forward(self, batch: dict[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
        assert self.transformer is not None
        nothing = torch.zeros(*action.shape[:2], 6, DIM)
        sigma = batch["timestep"][..., None, None] / 1000
        noisy = (1 - sigma) * batch["latents"] + sigma * batch["noise"]
        return self.transformer(noisy, batch["timestep"], nothing), batch["noise"] - batch["latents"]


FAULTS: dict[str, tuple[SomeonesDiT, str]] = {
    "detached": (Detached(), "detached projection: step 3"),
    "detached from a start that is not zero": (Detached(zero_init=False), "detached projection: step 3"),
    "frozen by mistake": (FrozenByMistake(), "frozen projection: step 0"),
    "not in the optimizer": (NotInTheOptimizer(), "frozen projection: step 0"),
    "exploding scale": (Exploding(zero_init=False), "exploded modulation: step 3"),
    "not a number": (NotANumber(), "exploded modulation: step 0"),
    "last layer frozen": (LastLayerFrozen(), "zero modulation: step 3"),
    "saturated": (Saturated(zero_init=False), "saturated modulation: step 3"),
    "no actions": (NoActions(), "detached projection: step 3"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_broken_projection_is_named_once(tmp_path: Path, case: str) -> None:
    module, message = FAULTS[case]
    with pytest.warns(ActionModulationWarning) as said:
        fit(tmp_path, module, monitor(), max_steps=10)
    ours = [str(warning.message) for warning in said if warning.category is ActionModulationWarning]
    assert len(ours) == 1 and ours[0].startswith(message)
    assert "`action_encoder`" in ours[0]


class Untrained(SomeonesDiT):
    """What the modulation is added to is as good as nothing, as in a backbone that starts from scratch."""

    def configure_model(self) -> None:
        super().configure_model()
        assert self.transformer is not None
        with torch.no_grad():
            for layer in self.transformer.layers:
                layer.table.zero_()  # type: ignore[operator]
            for parameter in self.transformer.time_mlp.parameters():
                parameter.mul_(1e-3)


@pytest.mark.parametrize("watched", [{}, {"time_projection": None}, {"time_projection": None, "layers": None}])
def test_a_modulation_that_outweighs_an_untrained_backbone_has_not_exploded(
    tmp_path: Path, watched: dict[str, Any]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ActionModulationWarning)
        shown = fit(tmp_path, Untrained(zero_init=False), monitor(**watched), max_steps=12)
    assert shown["action/modulation_norm/all"][0] > 1
    assert "time_projection" in watched or shown["action/modulation_to_time/all"][0] > 100


@pytest.mark.parametrize("watched", [{}, {"time_projection": None, "layers": None}])
def test_one_that_exploded_is_named_whatever_it_is_added_to(tmp_path: Path, watched: dict[str, Any]) -> None:
    class ExplodingUntrained(Exploding, Untrained):
        pass

    with pytest.warns(ActionModulationWarning, match="exploded modulation: step 3"):
        fit(tmp_path, ExplodingUntrained(zero_init=False), monitor(**watched))


def test_constant_actions_are_not_called_saturated(tmp_path: Path) -> None:
    class Constant(SomeonesDiT):
        def forward(self, batch: dict[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(batch, action[:, :1].expand_as(action))

    with warnings.catch_warnings():
        warnings.simplefilter("error", ActionModulationWarning)
        shown = fit(tmp_path, Constant(zero_init=False), monitor(), max_steps=12)
    assert "action/modulation_variation" not in shown


def test_several_conditions_in_a_dict_are_all_actions(tmp_path: Path) -> None:
    class TwoConditions(ActionEncoder):
        def forward(self, conditions: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
            return super().forward(conditions["constant"] + conditions["moving"])

    class Two(SomeonesDiT):
        def configure_model(self) -> None:
            super().configure_model()
            self.action_encoder = TwoConditions(zero_init=False)

        def forward(self, batch: dict[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
            conditions: Any = {"constant": torch.zeros_like(action), "moving": action}
            assert self.transformer is not None and self.action_encoder is not None
            predicted = self.transformer(batch["latents"], batch["timestep"], self.action_encoder(conditions))
            return predicted, batch["noise"] - batch["latents"]

    assert fit(tmp_path, Two(), monitor())["action/modulation_variation"][3] > 0.1


def test_two_projections_have_charts_of_their_own(tmp_path: Path) -> None:
    class Two(SomeonesDiT):
        def configure_model(self) -> None:
            super().configure_model()
            self.second = ActionEncoder(zero_init=False)

        def forward(self, batch: dict[str, Tensor], action: Tensor) -> tuple[Tensor, Tensor]:
            assert self.transformer is not None and self.action_encoder is not None
            modulation = self.action_encoder(action) + self.second(action)
            return self.transformer(batch["latents"], batch["timestep"], modulation), batch["noise"] - batch["latents"]

    with pytest.warns(ActionModulationWarning, match="frozen projection: step 0, `second`"):  # in no optimizer
        shown = fit(tmp_path, Two(), monitor(), monitor(projection="second"), max_steps=1, log_every_n_steps=1)
    norms = {name: shown[f"action/{name}/modulation_norm/all"][0] for name in ("action_encoder", "second")}
    assert norms["action_encoder"] == 0 < norms["second"] and "action/modulation_norm/all" not in shown


@PER_LAYER
def test_a_modulation_of_another_shape_is_told_once(tmp_path: Path, per_layer: bool) -> None:
    class Other(SomeonesDiT):
        def configure_model(self) -> None:
            super().configure_model()
            self.other = nn.Identity()

        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
            self.other(torch.zeros(2, 3, NUM_LAYERS + 1, 6, DIM) if per_layer else torch.zeros(2, 3, 5, DIM))
            return super().training_step(batch, batch_idx)

    with pytest.warns(
        ActionModulationWarning, match=r"unknown modulation: step 0, `other`: .*6, D\] .*got \[2, 3"
    ) as told:
        fit(tmp_path, Other(), monitor(projection="other"))
    assert not any("zero modulation" in str(each.message) for each in told), "it was not looked at"


def test_a_resumed_fit_does_not_repeat_itself(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    with pytest.warns(ActionModulationWarning, match="detached projection: step 3"):
        fit(tmp_path, Detached(), monitor(), checkpoint, max_steps=5, enable_checkpointing=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ActionModulationWarning)
        fit(tmp_path, Detached(), monitor(), max_steps=9, ckpt_path=tmp_path / "step=5.ckpt")
    with pytest.warns(ActionModulationWarning, match="detached projection: step 8"):
        # One that is seen for longer, across the break.
        fit(tmp_path, Detached(), monitor(warn_after_steps=9, every_n_steps=3), max_steps=9)


def test_a_fault_is_timed_across_a_break(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=5, save_top_k=-1)
    fit(tmp_path, Detached(), monitor(warn_after_steps=8), checkpoint, max_steps=5, enable_checkpointing=True)
    with pytest.warns(ActionModulationWarning, match="detached projection: step 7"):
        fit(tmp_path, Detached(), monitor(warn_after_steps=8), max_steps=9, ckpt_path=tmp_path / "step=5.ckpt")


def test_validation_does_not_count_and_hooks_are_gone_after_the_fit(tmp_path: Path) -> None:
    module = Recording()
    loaders = (moving_spots(24), moving_spots(6, batch_size=3))
    options: dict[str, Any] = {"limit_val_batches": 2, "val_check_interval": 1, "accumulate_grad_batches": 2}
    shown = fit(tmp_path, module, monitor(), max_steps=2, loaders=loaders, num_sanity_val_steps=1, **options)
    # Of the four batches seen at step 1, two were validation.
    training = [tensor for tensor in module.modulation[1] if len(tensor) == 2]
    assert len(training) < len(module.modulation[1])
    norm = torch.cat(training).flatten(2).norm(dim=-1).mean()
    assert shown["action/modulation_norm/all"][1] == pytest.approx(norm.item(), rel=1e-6)
    assert not [part for part in module.modules() if part._forward_hooks]


def test_what_other_callbacks_generate_does_not_count(tmp_path: Path) -> None:
    class Probes(Callback):
        @torch.no_grad()
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
            pl_module(args[1], 100 * args[1]["action"])

    plain = fit(tmp_path / "plain", SomeonesDiT(zero_init=False), monitor())
    probed = fit(tmp_path / "probed", SomeonesDiT(zero_init=False), Probes(), monitor())
    assert {tag: probed[tag] for tag in plain if tag.startswith("action/")} == {
        tag: values for tag, values in plain.items() if tag.startswith("action/")
    }


def test_hooks_are_gone_after_an_exception(tmp_path: Path) -> None:
    class Fails(SomeonesDiT):
        def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
            raise RuntimeError("stopped")

    module = Fails()
    with pytest.raises(RuntimeError, match="stopped"):
        fit(tmp_path, module, monitor())
    assert not [part for part in module.modules() if part._forward_hooks]


def test_the_histogram_holds_the_values(tmp_path: Path) -> None:
    module = Recording()
    logger = TensorBoardLogger(tmp_path)
    trainer = short_fits.quiet_trainer(tmp_path, monitor(), logger=logger, max_steps=2, log_every_n_steps=2)
    trainer.fit(module, moving_spots())
    histogram = short_fits.events(logger).Histograms("action/modulation")[-1]
    values = module.modulation[1][-1]
    assert (histogram.step, histogram.histogram_value.num) == (1, values.numel())
    assert histogram.histogram_value.sum == pytest.approx(values.double().sum().item(), rel=1e-5)


def test_more_frames_than_are_told_apart(tmp_path: Path) -> None:
    shown = fit(tmp_path, SomeonesDiT(zero_init=False), monitor(max_frames=2))
    assert sum(tag.startswith("action/modulation_norm_by_frame/") for tag in shown) == 2


def test_sharded_parameters(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", SomeonesDiT(zero_init=False), monitor())
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    options: dict[str, Any] = {"strategy": strategy, "devices": 1, "use_distributed_sampler": False}
    sharded = fit(tmp_path / "sharded", SomeonesDiT(zero_init=False), monitor(), **options)
    assert plain.keys() == sharded.keys()
    for tag, values in plain.items():
        assert sharded[tag] == pytest.approx(values, rel=1e-6), tag


def test_parts_that_are_not_watched(tmp_path: Path) -> None:
    watched = monitor(time_projection=None, layers=None)
    shown = fit(tmp_path, SomeonesDiT(per_layer=True, zero_init=False), watched)
    assert "action/modulation_norm/gate_ffn" in shown
    assert {tag for tag in shown if "modulation_to_" in tag} == {"action/modulation_to_base/all"}


def test_csv_and_no_logger(tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_steps": 2, "loaders": (moving_spots(),)}
    with pytest.warns(UserWarning, match="CSVLogger has no experiment with `add_histogram`"):
        names = short_fits.fit_with_csv(tmp_path, SomeonesDiT(), monitor(every_n_steps=1), **options)
    assert "action/modulation_norm/gate_ffn" in names


def test_a_projection_that_is_none_is_nothing_to_watch(tmp_path: Path) -> None:
    class WithoutActions(BoringModel):
        action_projection = None

    with pytest.warns(UserWarning, match="nothing to watch: `action_projection` is None"):
        shown = fit(tmp_path, WithoutActions(), ActionModulationMonitor(), loaders=())
    assert not [tag for tag in shown if tag.startswith("action/")]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "projection": (
        {"projection": "action_projection"},
        "has no `action_projection`.* has: transformer, action_encoder",
    ),
    "part of a part": ({"time_projection": "generator.time_projection"}, "has no `generator.time_projection`"),
    "not a module": ({"layers": "learning_rate"}, "`learning_rate` is not a module"),
    "table": ({"table": "modulation"}, "`transformer.layers.0.modulation`, got NoneType"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_there_is_refused(tmp_path: Path, case: str) -> None:
    options, message = WRONG[case]
    with pytest.raises(MisconfigurationException, match=message):
        fit(tmp_path, SomeonesDiT(), monitor(**options))


def test_boring_model_is_told_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="BoringModel has no `action_projection`"):
        fit(tmp_path, BoringModel(), ActionModulationMonitor(), loaders=())


@pytest.mark.parametrize(
    "options",
    [
        {"every_n_steps": 0},
        {"warn_after_steps": 0},
        {"max_frames": 0},
        {"explosion_limit": 0},
        {"saturation_limit": -1},
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be (at least|above)"):
        ActionModulationMonitor(**options)
