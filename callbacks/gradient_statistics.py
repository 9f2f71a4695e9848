"""Statistics of the gradients, before and after clipping, and of the updates that come of them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .support import log_writing
from .support.arguments import check_at_least
from .support.collectives import local
from .support.gradient_sums import GradientSums, reduce
from .support.optimizer_groups import calls_hooks
from .support.part_names import named_modules, named_parameters
from .support.probing import refuse_hidden_parameters


class NonFiniteGradientWarning(UserWarning):
    """A gradient holds NaN or infinity."""


class GradientStatistics(Callback):
    """Logs what the gradients of a module look like, and what the optimizer makes of them.

    Each figure is logged as `grad/<statistic>/<group>`. The statistics are

    - `norm` (L2), `max` and `mean` (of absolute values), `zero_share` and `nonfinite_share` (in [0, 1]) of the gradient
      that the optimizer is about to use: accumulated, unscaled, averaged over ranks, not yet clipped;
    - `clipped_norm`, `clipped_max` and `clipped_mean`, the same after clipping;
    - `update_to_weight`: L2 norm of the change that the step makes, divided by that of the weights before it;
    - `cosine` between the gradient and that of the step before, both before clipping.

    The groups are `all`, the parameter groups of the optimizer by their `name` (without one: `group_0`, ..., or
    nothing if there is only one group), and the modules that are asked for. With several optimizers each has its own,
    `optimizer_0/all` and so on. Parameters without a gradient, such as frozen ones, count nowhere; a group that has
    nothing else is left out.

    It works with any LightningModule, with automatic and manual optimisation, and with replicated (DDP) and sharded
    (FSDP2) parameters; in manual optimisation, clipping is seen where it happens inside of `optimizer.step`.
    An optimizer that calls no step hooks shows neither what is clipped nor updates.
    Nothing is computed at steps that are not logged, except that the step before a logged one copies the gradients for
    `cosine`; that copy is not in checkpoints, so that a fit resumed between the two shows no cosine at the first logged
    step.

    At a logged step, the first module (in the order of registration) with a gradient that is not finite is named in a
    NonFiniteGradientWarning, once. A gradient scaler (`precision="16-mixed"`) finds such gradients by itself, and skips
    the step: there, they are counted and nothing is said.

    The ratio of update to weight is that of Stanford's course CS231n (notes "Neural Networks Part 3"), which calls 1e-3
    usual.

    Args:
        modules: Names of modules, as attributes of the LightningModule, each a group of its own. `*` stands for any
            part of a name between two dots: `generator.blocks.*` gives a group to each layer
            (`generator.blocks.03`), `generator.blocks` one to all of them.
        every_n_steps: Steps from one logged step to the next. Default: `log_every_n_steps` of the Trainer.
        update_to_weight: True logs `update_to_weight`, which takes a copy of the trained weights during a logged step.
        cosine: True logs `cosine`, which takes a copy of the gradients from one step to the next.
        stop_on_nonfinite: True looks at every step, and ends the fit before a gradient that is not finite reaches the
            weights. It costs a pass over the gradients and a wait for the device at every step.

    Raises:
        ValueError: `every_n_steps` is below 1.
        MisconfigurationException: A module does not exist, or the strategy does not leave gradients with their
            parameters (DeepSpeed).
        FloatingPointError: A gradient is not finite and `stop_on_nonfinite` is on.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.GradientStatistics
              init_args:
                modules: [action_projection, generator.blocks.*]
    """

    def __init__(
        self,
        modules: list[str] | None = None,
        every_n_steps: int | None = None,
        update_to_weight: bool = True,
        cosine: bool = True,
        stop_on_nonfinite: bool = False,
    ) -> None:
        super().__init__()
        check_at_least(1, every_n_steps=every_n_steps)
        self.modules = modules or []
        self.every_n_steps = every_n_steps
        self.update_to_weight = update_to_weight
        self.cosine = cosine
        self.stop_on_nonfinite = stop_on_nonfinite

        # These are known only during a fit.
        self._names: dict[nn.Parameter, str] = {}
        self._has_warned = False
        self._earlier: dict[Optimizer, dict[nn.Parameter, Tensor]] = {}

        # These are known only during a logged step.
        self._step = 0
        self._sums: dict[Optimizer, GradientSums] = {}
        self._hooks: dict[Optimizer, RemovableHandle] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            refuse_hidden_parameters(trainer.strategy, "GradientStatistics")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Now, because FSDP2 may later show gathered copies in place of the parameters that the optimizers hold.
        self._names = {parameter: name for name, parameter in named_parameters(pl_module)}
        self._has_warned = False
        for pattern in self.modules:
            if not any(_matches(name, pattern) for name, _ in named_modules(pl_module)):
                children = ", ".join(name for name, _ in pl_module.named_children())
                raise MisconfigurationException(
                    f"GradientStatistics(modules=...): {type(pl_module).__name__} has no module {pattern!r}. "
                    f"At the top it has: {children}"
                )

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if optimizer in self._hooks:
            self._hooks.pop(optimizer).remove()
        if not _parameters(optimizer):
            return
        if self.stop_on_nonfinite and not _has_scaler(trainer):
            self._stop_if_nonfinite(log_writing.current_step(trainer), optimizer)
        if log_writing.is_logging_step(trainer, self.every_n_steps):
            self._step = log_writing.current_step(trainer)
            self._add_up(optimizer)
        self._earlier.pop(optimizer, None)
        if self.cosine and log_writing.is_logging_step(trainer, self.every_n_steps, steps_ahead=1):
            self._earlier[optimizer] = {p: local(p.grad).clone() for p in _parameters(optimizer) if p.grad is not None}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not self._sums:
            return
        reduce(list(self._sums.values()))
        if not _has_scaler(trainer):
            self._warn_if_nonfinite()
        log_writing.scalars(trainer, self._figures(trainer), self._step)
        self._forget_step()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException | None = None) -> None:
        self._forget_step()
        self._earlier.clear()
        self._names.clear()

    on_exception = on_fit_end

    def _add_up(self, optimizer: Optimizer) -> None:
        """Add up the gradients now, and again after the step: it is then that they are clipped, and weights new."""
        sums = GradientSums(_parameters(optimizer))
        sums.add_gradients()
        if optimizer in self._earlier:
            sums.add_products(self._earlier[optimizer])
        with_gradient = [p for p in sums.parameters if p.grad is not None] if self.update_to_weight else []
        before = {parameter: local(parameter).clone() for parameter in with_gradient}

        def after_step(*_: Any) -> None:
            sums.add_clipped_gradients()
            if self.update_to_weight:
                sums.add_updates(before)

        self._sums[optimizer] = sums
        if calls_hooks(optimizer):
            self._hooks[optimizer] = optimizer.register_step_post_hook(after_step)

    def _figures(self, trainer: Trainer) -> dict[str, float]:
        figures: dict[str, float] = {}
        for index, optimizer in enumerate(trainer.optimizers):
            if optimizer in self._sums:
                prefix = f"optimizer_{index}/" if len(trainer.optimizers) > 1 else ""
                for group, rows in self._groups(optimizer).items():
                    of_group = self._sums[optimizer].figures(rows)
                    figures |= {f"grad/{statistic}/{prefix}{group}": value for statistic, value in of_group.items()}
        return figures

    def _groups(self, optimizer: Optimizer) -> dict[str, list[int]]:
        """Every group with the places of its parameters in the optimizer."""
        rows = {parameter: row for row, parameter in enumerate(self._sums[optimizer].parameters)}
        groups = {"all": list(rows.values())}
        for index, group in enumerate(optimizer.param_groups):
            if "name" in group or len(optimizer.param_groups) > 1:
                # Others may have come in since the step was taken.
                known = [rows[parameter] for parameter in group["params"] if parameter in rows]
                groups[str(group.get("name", f"group_{index}"))] = known
        modules: dict[str, list[int]] = {}
        for parameter, row in rows.items() if self.modules else ():
            for module in self._modules_above(parameter):
                modules.setdefault(module, []).append(row)
        return groups | modules

    def _modules_above(self, parameter: nn.Parameter) -> set[str]:
        """The modules asked for that hold a parameter, with numbers of two digits so that they sort."""
        parts = self._names.get(parameter, "").split(".")
        names = [".".join(parts[:length]) for length in range(1, len(parts))]
        found = [name for name in names if any(_matches(name, pattern) for pattern in self.modules)]
        return {re.sub(r"\b\d\b", r"0\g<0>", name) for name in found}

    def _stop_if_nonfinite(self, step: int, optimizer: Optimizer) -> None:
        sums = GradientSums(_parameters(optimizer))
        sums.add_nonfinite()
        reduce([sums])
        if message := self._describe_nonfinite(step, [sums]):
            raise FloatingPointError(f"{message}. The step was not taken.")

    def _warn_if_nonfinite(self) -> None:
        message = self._describe_nonfinite(self._step, list(self._sums.values()))
        if message and not self._has_warned:
            self._has_warned = True
            weights = [sums.sums["weight_squares"] for sums in self._sums.values() if "weight_squares" in sums.sums]
            if any(not bool(squares.isfinite().all()) for squares in weights):
                message += ". Weights are not finite either, so it began before: stop_on_nonfinite stops where it does"
            rank_zero_warn(message, category=NonFiniteGradientWarning)

    def _describe_nonfinite(self, step: int, reduced: list[GradientSums]) -> str | None:
        """Name the first module with a gradient that is not finite, if there is one."""
        # Values that are not finite, and all, of each parameter.
        counts: dict[nn.Parameter, tuple[float, float]] = {}
        for sums in reduced:
            pairs = zip(sums.sums["nonfinite"].tolist(), sums.sums["numel"].tolist(), strict=True)
            counts |= zip(sums.parameters, pairs, strict=True)
        bad = [parameter for parameter, (nonfinite, _) in counts.items() if nonfinite]
        if not bad:
            return None
        order = {parameter: place for place, parameter in enumerate(self._names)}
        first = min(bad, key=lambda parameter: order.get(parameter, len(order)))
        name = self._names.get(first, "(a parameter outside of the module)")
        nonfinite, numel = map(round, counts[first])
        return (
            f"GradientStatistics: step {step} has a gradient that is not finite. The first module with one is "
            f"`{name.rpartition('.')[0] or name}` ({max(1, nonfinite)} of {numel} values of `{name}`); "
            f"{len(bad)} of {len(counts)} parameters have one"
        )

    def _forget_step(self) -> None:
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
        self._sums.clear()


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """Parameters that could have a gradient."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [parameter for parameter in held if not parameter.is_meta]


def _has_scaler(trainer: Trainer) -> bool:
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def _matches(name: str, pattern: str) -> bool:
    parts, patterns = name.split("."), pattern.split(".")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))
