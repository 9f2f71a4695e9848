"""Every figure of GradientStatistics against autograd and a direct computation."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, ModelParallelStrategy
from torch import Tensor, nn

from lightning_action.callbacks import GradientStatistics, NonFiniteGradientWarning
from tests.support import short_fits
from tests.support.foreign_optimizers import WithoutHooks
from tests.support.someones_dit import SomeonesDiT, moving_spots

TOLERANCE = 1e-6
CLIP = 0.05


DEFAULTS: dict[str, Any] = {"max_steps": 4, "log_every_n_steps": 2}
fit = partial(short_fits.fit, **DEFAULTS)


class Observer(Callback):
    """Writes down gradients and weights itself, by other means than the callback: in the module's own order."""

    def __init__(self) -> None:
        self.before: dict[int, dict[str, Tensor]] = {}
        self.clipped: dict[int, dict[str, Tensor]] = {}
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.weights_after: dict[int, dict[str, Tensor]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        step = trainer.global_step
        self.before[step] = gradients(pl_module)
        self.weights[step] = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step - 1
        if step not in self.clipped and step in self.before:
            self.clipped[step] = gradients(pl_module)
            self.weights_after[step] = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def expected(self, step: int, belongs: Callable[[str], bool]) -> dict[str, float]:
        before, clipped = flat(self.before[step], belongs), flat(self.clipped[step], belongs)
        earlier = flat(self.before[step - 1], belongs)
        names = [name for name in self.before[step] if belongs(name)]
        weights = torch.cat([self.weights[step][name].flatten() for name in names])
        update = torch.cat([self.weights_after[step][name].flatten() for name in names]) - weights
        return {
            "norm": before.norm().item(),
            "max": before.abs().max().item(),
            "mean": before.abs().mean().item(),
            "zero_share": (before == 0).float().mean().item(),
            "nonfinite_share": 0.0,
            "clipped_norm": clipped.norm().item(),
            "clipped_max": clipped.abs().max().item(),
            "clipped_mean": clipped.abs().mean().item(),
            "update_to_weight": (update.norm() / weights.norm()).item(),
            "cosine": torch.nn.functional.cosine_similarity(before, earlier, dim=0).item(),
        }


def gradients(module: LightningModule) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def flat(tensors: dict[str, Tensor], belongs: Callable[[str], bool]) -> Tensor:
    return torch.cat([tensor.flatten() for name, tensor in tensors.items() if belongs(name)])


GROUPS: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "action": lambda name: name.startswith("action_encoder."),
    "backbone": lambda name: name.startswith("transformer."),
    "transformer.layers.00": lambda name: name.startswith("transformer.layers.0."),
    "transformer.layers.01": lambda name: name.startswith("transformer.layers.1."),
    "transformer.embed": lambda name: name.startswith("transformer.embed."),
}
MODULES = ["transformer.layers.*", "transformer.embed"]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("clip", [None, CLIP])
def test_every_figure_equals_a_direct_computation(tmp_path: Path, accumulate: int, clip: float | None) -> None:
    observer = Observer()
    shown = fit(
        tmp_path,
        SomeonesDiT(zero_init=False),
        observer,
        GradientStatistics(MODULES),
        loaders=(moving_spots(),),
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
    )
    for group, belongs in GROUPS.items():
        for step in (1, 3):
            for statistic, value in observer.expected(step, belongs).items():
                seen = shown[f"grad/{statistic}/{group}"]
                assert list(seen) == [1, 3]
                assert seen[step] == pytest.approx(value, rel=TOLERANCE, abs=1e-9), (statistic, group)
    norm, clipped = shown["grad/norm/all"][3], shown["grad/clipped_norm/all"][3]
    assert clipped == pytest.approx(norm if clip is None else CLIP, rel=1e-4)
    assert len([tag for tag in shown if tag.startswith("grad/")]) == 10 * len(GROUPS)


def test_shares_of_zeros_and_of_values_that_are_not_finite(tmp_path: Path) -> None:
    class Chosen(BoringModel):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            gradient = torch.zeros(2, 32)
            gradient[0, :3], gradient[1, :5] = float("nan"), 1.0
            return (self.layer.weight * gradient).sum()

    with pytest.warns(NonFiniteGradientWarning, match="`layer` .3 of 64 values of `layer.weight`.; 1 of 2 parameters"):
        shown = fit(tmp_path, Chosen(), GradientStatistics())
    # The bias has no gradient at all, and counts nowhere.
    assert shown["grad/zero_share/all"][1] == pytest.approx(56 / 64)
    assert shown["grad/nonfinite_share/all"][1] == pytest.approx(3 / 64)


def test_boring_model_without_arguments(tmp_path: Path) -> None:
    shown = fit(tmp_path, BoringModel(), GradientStatistics())
    assert {tag for tag in shown if tag.startswith("grad/")} == {
        f"grad/{name}/all"
        for name in (
            *("norm", "max", "mean", "zero_share", "nonfinite_share", "update_to_weight", "cosine"),
            *("clipped_norm", "clipped_max", "clipped_mean"),
        )
    }


def test_copies_can_be_done_without(tmp_path: Path) -> None:
    statistics = GradientStatistics(update_to_weight=False, cosine=False)
    shown = fit(tmp_path, BoringModel(), statistics)
    assert not [tag for tag in shown if "cosine" in tag or "update" in tag]


def test_nothing_is_left_behind_and_nothing_is_held_between_logged_steps(tmp_path: Path) -> None:
    class Looks(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            optimizer = trainer.optimizers[0]
            held = [statistics._sums, statistics._hooks, optimizer._optimizer_step_post_hooks]
            # Gradients are kept from the step before a logged one only.
            seen.append((*map(len, held), bool(statistics._earlier)))

    seen: list[tuple[Any, ...]] = []
    statistics = GradientStatistics()
    fit(tmp_path, BoringModel(), statistics, Looks(), max_steps=8, log_every_n_steps=4)
    assert seen == [(0, 0, 0, step in (2, 6)) for step in range(8)]
    assert not statistics._earlier and not statistics._names


class Adversarial(LightningModule):
    """Two optimizers by hand, with clipping inside of one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.one, self.two = nn.Linear(32, 3), nn.Linear(32, 2)
        self.seen: dict[str, list[float]] = {"one": [], "two": []}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        for name, optimizer in zip(self.seen, self.optimizers(), strict=True):  # type: ignore[arg-type]
            part = getattr(self, name)
            optimizer.zero_grad()
            self.manual_backward(part(batch).square().sum())
            self.seen[name].append(torch.nn.utils.get_total_norm([p.grad for p in part.parameters()]).item())
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=1e-3) for part in (self.one, self.two)]


def test_manual_optimization_with_several_optimizers(tmp_path: Path) -> None:
    module = Adversarial()
    shown = fit(tmp_path, module, GradientStatistics(["two"]), loaders=(BoringModel().train_dataloader(),), max_steps=8)
    for index, name in enumerate(module.seen):
        values = shown[f"grad/norm/optimizer_{index}/all"]
        assert values == pytest.approx({step: module.seen[name][step] for step in (1, 3)}, rel=TOLERANCE)
        assert shown[f"grad/clipped_norm/optimizer_{index}/all"] == values
        assert list(shown[f"grad/cosine/optimizer_{index}/all"]) == [1, 3]
    assert shown["grad/norm/optimizer_1/two"] == shown["grad/norm/optimizer_1/all"]


def test_bfloat16_and_sparse_gradients(tmp_path: Path) -> None:
    class Words(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(11, 3, sparse=True)
            self.second = nn.Linear(3, 2, dtype=torch.bfloat16)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return (
                self.second(self.embedding(torch.tensor([2, 2, 7 + batch_idx % 2])).bfloat16()).float().square().sum()
            )

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-2)

    observer = Observer()
    shown = fit(
        tmp_path, Words(), observer, GradientStatistics(["embedding"]), loaders=(BoringModel().train_dataloader(),)
    )
    gradient = observer.before[3]["embedding.weight"].to_dense()
    assert shown["grad/norm/embedding"][3] == pytest.approx(gradient.norm().item(), rel=TOLERANCE)
    assert shown["grad/zero_share/embedding"][3] == pytest.approx(9 / 11)


def half_precision(scale: float) -> MixedPrecision:
    # Through a plugin, because the Trainer itself puts bfloat16 in the place of float16 on the CPU.
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=99))


def test_gradients_are_seen_without_the_scale_of_the_scaler(tmp_path: Path) -> None:
    options: dict[str, Any] = {"loaders": (moving_spots(),), "gradient_clip_val": CLIP}
    plain = fit(tmp_path / "32", SomeonesDiT(zero_init=False), GradientStatistics(), **options)
    scaled = fit(
        tmp_path / "16", SomeonesDiT(zero_init=False), GradientStatistics(), plugins=half_precision(2.0**12), **options
    )
    for tag in ("norm", "max", "mean", "clipped_norm", "update_to_weight", "cosine"):
        # Half precision has eleven bits.
        assert scaled[f"grad/{tag}/all"] == pytest.approx(plain[f"grad/{tag}/all"], rel=0.02)


def test_a_step_that_the_scaler_skips_is_counted_and_nothing_is_said(tmp_path: Path) -> None:
    statistics = GradientStatistics(every_n_steps=1, stop_on_nonfinite=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NonFiniteGradientWarning)
        options: dict[str, Any] = {"loaders": (moving_spots(),), "max_steps": 2}
        shown = fit(tmp_path, SomeonesDiT(), statistics, plugins=half_precision(2.0**40), **options)
    assert shown["grad/nonfinite_share/all"][0] > 0
    assert "grad/clipped_norm/all" not in shown and "grad/update_to_weight/all" not in shown


def test_sharded_parameters(tmp_path: Path) -> None:
    plain = fit(tmp_path / "plain", SomeonesDiT(), GradientStatistics(MODULES), loaders=(moving_spots(),))
    strategy = ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    options: dict[str, Any] = {"strategy": strategy, "devices": 1, "use_distributed_sampler": False}
    sharded = fit(
        tmp_path / "sharded", SomeonesDiT(), GradientStatistics(MODULES), loaders=(moving_spots(),), **options
    )
    assert plain.keys() == sharded.keys()
    for tag, values in plain.items():
        # The products of a cosine cancel: what is left of them is no more exact than float32 is at 1.
        absolute = 2 * torch.finfo(torch.float32).eps if "/cosine/" in tag else 0
        assert sharded[tag] == pytest.approx(values, rel=TOLERANCE, abs=absolute), tag


def test_a_resumed_fit_shows_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    options: dict[str, Any] = {"loaders": (moving_spots(),), "max_steps": 6, "log_every_n_steps": 2}
    whole = fit(
        tmp_path / "whole", SomeonesDiT(), GradientStatistics(), checkpoint, enable_checkpointing=True, **options
    )
    resumed = fit(
        tmp_path / "resumed",
        SomeonesDiT(),
        GradientStatistics(),
        ckpt_path=tmp_path / "step=6.ckpt",
        **options | {"max_steps": 8},
    )
    assert list(whole["grad/norm/all"]) == [1, 3, 5]
    assert list(resumed["grad/norm/all"]) == list(resumed["grad/cosine/all"]) == [7]


class TurnsNaN(SomeonesDiT):
    """The second layer's feed-forward gives NaN from a step on."""

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().training_step(batch, batch_idx)
        if self.global_step >= 3:
            assert self.transformer is not None
            weight = self.transformer.layers[1].feed_forward[2].weight  # type: ignore[union-attr, index]
            outputs["loss"] = outputs["loss"] + (weight[0, :2] * float("nan")).sum()
        return outputs


MODULE = "transformer.layers.1.feed_forward.2"


def test_the_first_module_that_is_not_finite_is_named_once(tmp_path: Path) -> None:
    statistics = GradientStatistics()
    with pytest.warns(NonFiniteGradientWarning) as said:
        shown = fit(tmp_path, TurnsNaN(), statistics, loaders=(moving_spots(),), max_steps=6)
    ours = [str(warning.message) for warning in said if warning.category is NonFiniteGradientWarning]
    assert len(ours) == 1
    assert f"step 3 has a gradient that is not finite. The first module with one is `{MODULE}` (2 of " in ours[0]
    assert "Weights are not finite" not in ours[0]
    assert shown["grad/nonfinite_share/all"][1] == 0 < shown["grad/nonfinite_share/all"][3]


def test_a_warning_that_comes_too_late_says_so(tmp_path: Path) -> None:
    with pytest.warns(NonFiniteGradientWarning, match="step 5 .*Weights are not finite either, so it began before"):
        fit(tmp_path, TurnsNaN(), GradientStatistics(every_n_steps=6), loaders=(moving_spots(),), max_steps=6)


def test_the_fit_can_be_stopped_before_the_weights_are_lost(tmp_path: Path) -> None:
    module = TurnsNaN()
    statistics = GradientStatistics(every_n_steps=100, stop_on_nonfinite=True)
    with pytest.raises(FloatingPointError, match=f"step 3 .*`{MODULE}`.*not taken"):
        fit(tmp_path, module, statistics, loaders=(moving_spots(),), max_steps=6)
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def test_without_a_logger_and_with_csv(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*is not logged there")
        names = short_fits.fit_with_csv(tmp_path, BoringModel(), GradientStatistics(every_n_steps=1), max_steps=2)
    assert "grad/norm/all" in names


def test_a_module_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        MisconfigurationException, match="BoringModel has no module 'generator'. At the top it has: lay"
    ):
        fit(tmp_path, BoringModel(), GradientStatistics(["generator"]))


def test_a_strategy_that_hides_gradients_is_refused() -> None:
    class Hidden(DeepSpeedStrategy):
        def __init__(self) -> None:
            pass

    trainer: Any = type("", (), {"strategy": Hidden()})
    with pytest.raises(MisconfigurationException, match="cannot read parameters under Hidden"):
        GradientStatistics().setup(trainer, BoringModel(), "fit")


def test_the_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="every_n_steps must be at least 1, got 0"):
        GradientStatistics(every_n_steps=0)


class Odd(LightningModule):
    """Parameters of nobody, or that come later, of complex numbers, with sparse gradients or none."""

    def __init__(self) -> None:
        super().__init__()
        self.complex = nn.Parameter(torch.tensor([3 + 4j, 1j]))
        self.table = nn.Embedding(5, 2, sparse=True)
        self.bfloat16s = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
        self.elsewhere = [nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(5.0))]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found = self.table(torch.tensor([batch_idx % 5])).sum() + self.bfloat16s.float().sum()
        return self.complex.abs().square().sum() / 2 + found + sum(p.square() for p in self.elsewhere)

    def on_train_batch_end(self, *_: Any) -> None:
        optimizer = self.optimizers().optimizer  # type: ignore[union-attr]
        if self.global_step == 2:
            optimizer.add_param_group({"params": [self.elsewhere[1]], "name": "late"})

    def configure_optimizers(self) -> Any:
        eight_bits = nn.Parameter(torch.ones(3, dtype=torch.float8_e4m3fn), requires_grad=False)
        integers = nn.Parameter(torch.ones(3, dtype=torch.int64), requires_grad=False)
        without_gradient = [
            nn.Parameter(torch.ones(3, device="meta")),
            nn.UninitializedParameter(),
            eight_bits,
            integers,
        ]
        here = [*without_gradient, self.complex, self.table.weight, self.bfloat16s]
        return torch.optim.SGD([{"params": here}, {"params": self.elsewhere[:1], "name": "elsewhere"}], lr=0.0)


def test_odd_parameters_do_not_end_the_fit(tmp_path: Path) -> None:
    shown = fit(tmp_path, Odd(), GradientStatistics(), loaders=(range(8),), log_every_n_steps=1)
    assert list(shown["grad/norm/elsewhere"].values()) == [4.0] * 4
    assert shown["grad/norm/late"] == {2: 10.0, 3: 10.0}
    # Real and imaginary parts, two rows of the table of which one has a gradient, and those in half precision.
    assert shown["grad/norm/group_0"][0] == pytest.approx((9 + 16 + 1 + 2 + 2) ** 0.5)
    assert shown["grad/zero_share/group_0"][0] == pytest.approx((1 + 8) / (4 + 10 + 2))


def test_an_optimizer_without_hooks_shows_what_it_is_given(tmp_path: Path) -> None:
    class Wrapping(BoringModel):
        def configure_optimizers(self) -> Any:
            return WithoutHooks(torch.optim.SGD(self.parameters(), lr=0.1))

    shown = fit(tmp_path, Wrapping(), GradientStatistics())
    statistics = {tag.split("/")[1] for tag in shown if tag.startswith("grad/")}
    assert statistics == {"norm", "max", "mean", "zero_share", "nonfinite_share", "cosine"}
