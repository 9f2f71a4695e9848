"""Probe of whether, at which noise and in which layers a model's prediction depends on its actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from .support import log_writing, probing
from .support.arguments import check_at_least
from .support.part_names import named_modules

_OWN_LOSS, _OTHER_LOSS, _CHANGE, _FIRST_LAYER = range(4)
# The step of an early probe, so that one does not have to wait for `every_n_steps` to see whether actions act.
_EARLY_STEP = 99
# Part of a layer's output that is compared: all of a small one, some tokens of one that would fill the memory.
_MAX_VALUES_PER_SAMPLE = 2**20


class IgnoredActionsWarning(UserWarning):
    """The model ignores its actions."""


class ActionSensitivity(Callback):
    """Measures on a fixed probe how much the prediction changes with the actions, and whether its own ones help.

    At each noise level, the same noisy videos are predicted under their own actions and under actions that are

    - `swapped`: those of the sample before in the probe (of one alone: its own backwards);
    - `shuffled`: its own rows in another order, no row in its place;
    - `nulled`: none, `batch["action"] = None`;
    - `scaled`: its own times `scale`; not with actions that are whole numbers, which are classes.

    It logs, as means over samples and noise seeds, with `<t>` a noise level such as `t0500`:

    - `sensitivity/change/<variant>` and `.../<t>`: distance between the two predictions over the length of the first,
      both as Euclidean norms over a sample. 0 is a model that does not see its actions;
    - `sensitivity/layer/<variant>/layer_03`: the same of what a layer hands on, over all noise levels;
    - `sensitivity/swapped_gap` and `.../<t>`: (loss under swapped actions - loss) / loss, the loss being the mean
      squared error of the prediction; and `sensitivity/swapped_gap_error`, its standard error over samples and seeds;
    - `sensitivity/win_rate` and `.../<t>`: how often the loss is smaller under a sample's own actions. Ties count half.

    An IgnoredActionsWarning says that *the model ignores its actions* when, from step `warn_after_step` on and
    `patience` times in a row, the swapped gap is not above two standard errors and the win rate not above 0.5 by two
    standard deviations of a fair coin thrown for every sample and seed.

    The probe is the first samples of the first validation dataloader; of a fit without validation, those of the first
    batch that is at hand when it logs. All ranks probe the samples of the first rank, so that figures do not depend on
    the number of ranks. Training is not touched: random states, modes and gradients are as if nothing had happened.

    It works with any LightningModule that has a method `predict_velocity(batch, timestep, seed)`, which adds noise that
    follows from `seed` alone and returns the predicted and the true tensor `[B, ...]`, and whose batches are dicts with
    an `action` `[B, rows, columns]`.

    The gap is permutation importance (Breiman 2001, doi:10.1023/A:1010933404324) of the actions; the other figures are
    this project's own.

    Args:
        every_n_steps: Optimizer steps from one probe to the next; there is an early one after 100 steps, in addition.
        num_samples: Number of samples in the probe, at least 2.
        timesteps: Noise levels, from 0 to 1000; `predict_velocity` gets them as they are.
        num_seeds: Number of times that noise is drawn for each sample and noise level.
        scale: Factor of the `scaled` actions.
        layers: Name of the list of layers, as an attribute of the LightningModule; None measures no layers.
        warn_after_step: First step at which a probe counts towards the warning.
        patience: Number of probes in a row that must show nothing before it warns.

    Raises:
        ValueError: An argument is out of range.
        MisconfigurationException: The LightningModule or its batches do not fit.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.ActionSensitivity
              init_args:
                every_n_steps: 1000
                timesteps: [200.0, 500.0, 800.0]
    """

    def __init__(
        self,
        every_n_steps: int = 1000,
        num_samples: int = 8,
        timesteps: Sequence[float] = (200.0, 500.0, 800.0),
        num_seeds: int = 1,
        scale: float = 2.0,
        layers: str | None = "generator.blocks",
        warn_after_step: int = 200,
        patience: int = 2,
    ) -> None:
        super().__init__()
        check_at_least(0, warn_after_step=warn_after_step)
        check_at_least(1, every_n_steps=every_n_steps, num_seeds=num_seeds, patience=patience)
        if num_samples < 2:
            raise ValueError(f"num_samples must be at least 2, one to swap actions with, got {num_samples}")
        if not timesteps or not all(0 <= timestep <= 1000 for timestep in timesteps):
            raise ValueError(f"timesteps must be numbers from 0 to 1000, and at least one, got {timesteps}")
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}")
        self.every_n_steps = every_n_steps
        self.num_samples = num_samples
        self.timesteps = list(timesteps)
        self.num_seeds = num_seeds
        self.scale = scale
        self.layers = layers
        self.warn_after_step = warn_after_step
        self.patience = patience

        # Checkpoints keep these.
        self._num_within_noise = 0

        # These are known only during a fit.
        self._probe: list[probing.Batch] = []
        self._layers: list[nn.Module] = []
        self._last_step = -1

    @property
    def state_key(self) -> str:
        said = {"timesteps": self.timesteps, "layers": self.layers}
        return f"{type(self).__qualname__}{said}"

    def state_dict(self) -> dict[str, Any]:
        return {"num_within_noise": self._num_within_noise}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_within_noise = state_dict["num_within_noise"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            signature = "predict_velocity(batch, timestep, seed) -> predicted and true velocity [B, ...]"
            probing.require_method(pl_module, "ActionSensitivity", signature)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = [] if self.layers is None else _find_layers(pl_module, self.layers)
        probe = probing.first_validation_samples(trainer, self.num_samples, "ActionSensitivity")
        self._probe = trainer.strategy.broadcast(probe)
        self._last_step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = log_writing.current_step(trainer)
        is_due = step == _EARLY_STEP or log_writing.is_logging_step(trainer, self.every_n_steps)
        # Under gradient accumulation, several batches belong to one step.
        if not is_due or step == self._last_step:
            return
        self._last_step = step
        if not self._probe:
            samples = probing.take_samples(batch, slice(self.num_samples), "ActionSensitivity")
            self._probe = trainer.strategy.broadcast([samples])
        sensitivity = self._measure(trainer, pl_module)
        log_writing.scalars(trainer, sensitivity.figures(self.timesteps), step)
        if step >= self.warn_after_step:
            self._warn(sensitivity, step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._probe, self._layers = [], []

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> Sensitivity:
        variants = action_variants([batch["action"] for batch in self._probe], self.scale)
        levels = []
        with (
            probing.leaving_no_trace(pl_module),
            trainer.precision_plugin.val_step_context(),
            _watching(pl_module, self._layers) as predict,
        ):
            for timestep in self.timesteps:
                columns = []
                for (index, probe), seed in product(enumerate(self._probe), range(self.num_seeds)):
                    actions = {name: of_batches[index] for name, of_batches in variants.items()}
                    batch, actions = move_data_to_device((probe, actions), pl_module.device)
                    predict_here = partial(predict, timestep=timestep, seed=seed)
                    columns.append(compare_predictions(predict_here, batch, actions))
                levels.append(torch.cat(columns, dim=-1))
        return Sensitivity(list(variants), torch.stack(levels).double().cpu())

    def _warn(self, sensitivity: Sensitivity, step: int) -> None:
        self._num_within_noise = self._num_within_noise + 1 if sensitivity.is_within_noise else 0
        if self._num_within_noise == self.patience:
            rank_zero_warn(
                f"ActionSensitivity: the model ignores its actions. At step {step}, and at {self.patience} probes in a "
                f"row, the loss under other actions is {sensitivity.gap.mean():.3%} (standard error "
                f"{sensitivity.gap_error:.3%}) above that under its own, and smaller under its own in "
                f"{sensitivity.win_rate.mean():.0%} of cases, where 50% is chance.",
                category=IgnoredActionsWarning,
            )


class Sensitivity(NamedTuple):
    """Result of a probe: `values` `[timesteps, variants, rows, samples]`, float64.

    Its rows are the loss under own and under other actions, the change of the prediction, and that of every layer.
    """

    variants: list[str]
    values: Tensor

    @property
    def gap(self) -> Tensor:
        """Relative gap of the loss under swapped actions, `[timesteps, samples]`."""
        own, other = self._swapped_losses
        return (other - own) / own.clamp_min(torch.finfo(own.dtype).tiny)

    @property
    def gap_error(self) -> float:
        """Standard error of the gap. Noise levels are averaged first: those of one sample are not independent."""
        of_samples = self.gap.mean(dim=0)
        return float(of_samples.std() / len(of_samples) ** 0.5)

    @property
    def win_rate(self) -> Tensor:
        """Share of samples with a smaller loss under their own actions, `[timesteps]`."""
        own, other = self._swapped_losses
        return ((other > own).double() + 0.5 * (other == own).double()).mean(dim=-1)

    @property
    def is_within_noise(self) -> bool:
        """Tell whether nothing says that the model follows its actions; of a single sample nothing can be said."""
        if self.values.shape[-1] < 2:
            return False
        gap_shows = float(self.gap.mean()) > 2 * self.gap_error
        win_rate_shows = float(self.win_rate.mean()) > 0.5 + self.values.shape[-1] ** -0.5
        return not (gap_shows or win_rate_shows)

    def figures(self, timesteps: Sequence[float]) -> dict[str, float]:
        """Figures to log, by key."""
        by_level = {"swapped_gap": self.gap.mean(dim=-1), "win_rate": self.win_rate}
        for index, variant in enumerate(self.variants):
            by_level[f"change/{variant}"] = self.values[:, index, _CHANGE].mean(dim=-1)
        figures = {"sensitivity/swapped_gap_error": self.gap_error}
        for name, values in by_level.items():
            figures[f"sensitivity/{name}"] = float(values.mean())
            levels = zip(timesteps, values.tolist(), strict=True)
            figures |= {f"sensitivity/{name}/t{timestep:04g}": value for timestep, value in levels}
        for index, variant in enumerate(self.variants):
            layers = self.values[:, index, _FIRST_LAYER:].mean(dim=(0, -1)).tolist()
            figures |= {f"sensitivity/layer/{variant}/layer_{layer:02d}": value for layer, value in enumerate(layers)}
        return figures

    @property
    def _swapped_losses(self) -> tuple[Tensor, Tensor]:
        swapped = self.values[:, self.variants.index("swapped")]
        return swapped[:, _OWN_LOSS], swapped[:, _OTHER_LOSS]


class _Prediction(NamedTuple):
    predicted: Tensor
    true: Tensor
    layers: list[Tensor]

    def losses(self) -> Tensor:
        return (self.predicted.float() - self.true.float()).square().flatten(1).mean(dim=1)


def action_variants(actions: Sequence[Tensor], scale: float) -> dict[str, list[Tensor | None]]:
    """The actions `[B, rows, columns]` of every batch, changed in each of the ways that `ActionSensitivity` describes.

    Samples are swapped across batches.
    """
    own = torch.cat(list(actions))
    variants = {
        "swapped": probing.other_actions(own),
        "shuffled": own[:, _order_without_fixed_point(own.shape[1])],
    }
    if own.is_floating_point():
        variants["scaled"] = scale * own
    sizes = [len(batch) for batch in actions]
    split: dict[str, list[Tensor | None]] = {name: list(value.split(sizes)) for name, value in variants.items()}
    return split | {"nulled": [None] * len(sizes)}


def compare_predictions(
    predict: Callable[[probing.Batch], _Prediction], batch: probing.Batch, actions: dict[str, Tensor | None]
) -> Tensor:
    """Losses and changes of a batch under other actions, `[variants, rows of Sensitivity, B]`."""
    own = predict(batch)
    rows = []
    for action in actions.values():
        other = predict({**batch, "action": action})
        changes = [_relative_change(other.predicted, own.predicted)]
        changes += [_relative_change(*outputs) for outputs in zip(other.layers, own.layers, strict=True)]
        rows.append(torch.stack([own.losses(), other.losses(), *changes]))
    return torch.stack(rows)


def _relative_change(other: Tensor, own: Tensor) -> Tensor:
    other, own = other.flatten(1).float(), own.flatten(1).float()
    # Sums are more exact than torch's own norm.
    change, length = (other - own).square().sum(dim=1).sqrt(), own.square().sum(dim=1).sqrt()
    return change / length.clamp_min(torch.finfo(length.dtype).tiny)


def _order_without_fixed_point(count: int) -> Tensor:
    """An order of `count` things in which none keeps its place, always the same."""
    cycle = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    order = torch.empty_like(cycle)
    order[cycle] = cycle.roll(1)
    return order


def _find_layers(pl_module: LightningModule, name: str) -> list[nn.Module]:
    parts = dict(named_modules(pl_module))
    if name not in parts or not list(parts[name].children()):
        lists = [name for name, part in parts.items() if isinstance(part, nn.ModuleList)]
        raise MisconfigurationException(
            f"ActionSensitivity(layers={name!r}): {type(pl_module).__name__} has no such list of layers. It has: "
            f"{', '.join(lists) or 'none'}. layers: null measures the prediction alone."
        )
    return list(parts[name].children())


@contextmanager
def _watching(pl_module: LightningModule, layers: Sequence[nn.Module]) -> Iterator[Callable[..., _Prediction]]:
    """Give a function of a batch, a `timestep` and a `seed` that predicts, and keeps what every layer hands on."""
    outputs: dict[nn.Module, Tensor] = {}

    def keep(layer: nn.Module, _: Any, output: Any) -> None:
        outputs[layer] = _some_tokens(output[0] if isinstance(output, tuple) else output)

    def predict(batch: probing.Batch, timestep: float, seed: int) -> _Prediction:
        outputs.clear()
        predicted, true = pl_module.predict_velocity(batch, timestep, seed)  # type: ignore[operator]
        silent = [index for index, layer in enumerate(layers) if layer not in outputs]
        if silent:
            raise MisconfigurationException(
                f"ActionSensitivity(layers=...): predict_velocity did not run the layers {silent}; name a list of "
                "layers that all run, or none (null)"
            )
        return _Prediction(predicted, true, [outputs[layer] for layer in layers])

    handles = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield predict
    finally:
        for handle in handles:
            handle.remove()


def _some_tokens(output: Tensor) -> Tensor:
    tokens = output.flatten(1, -2) if output.ndim > 2 else output[:, None]
    every = -(-tokens[0].numel() // _MAX_VALUES_PER_SAMPLE)
    # A copy, as the next layer may write into what it is given.
    return tokens[:, ::every].clone()
