"""Train the new parts of a model first, and its pretrained backbone later."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from itertools import takewhile
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .support import log_writing
from .support.arguments import check_at_least
from .support.optimizer_groups import BackboneGroup, materialize_state
from .support.part_names import check_parts_exist, is_in, named_modules, named_parameters
from .support.probing import drop_gathered_parameters, is_sharded, settle_gradient_dtypes

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


class FreezeBackboneFirst(Callback):
    """Keeps the backbone frozen until a step, an epoch or a plateau, then trains it with a learning rate of its own.

    While frozen, the backbone does not move at all: its parameters get no gradient and no weight decay, its batch
    norms run in eval mode. Parameters that do not require grad when the fit starts stay frozen for good.

    The optimizers hold the same parameters in both phases, and so do their checkpoints: a fit can be stopped and
    resumed on either side of the switch, with replicated and with sharded parameters. Put the backbone into the
    optimizer as if it trained from the start, and into parameter groups of its own if it is to have a learning rate or
    warm-up of its own. With `ddp`, find_unused_parameters must be on.

    Several of these callbacks make several phases: with one for LoRA weights and one for all else in the backbone, new
    parts train first, then LoRA as well, then everything. Each needs a `name`. One that waits for a plateau begins to
    count validations once those before it in the list of callbacks train their parts.

    It logs `phase/<name>_trainable`, `phase/<name>_learning_rate` (the largest, if there are several parameter groups)
    and `phase/index`, the number of these callbacks whose parts train: 0 in the first phase, 1 in the next; at the
    steps that the Trainer's `log_every_n_steps` chooses.

    Training parts of a pretrained network one after the other is gradual unfreezing (Howard and Ruder 2018,
    arXiv:1801.06146).

    Args:
        backbone: Names of the parts to freeze, as attributes of the LightningModule, for example `["generator"]` or
            `["generator.blocks", "generator.head"]`. A `*` stands for anything, as in `["generator.*.lora_*"]`.
        unfreeze_at_step: Optimizer step (`trainer.global_step`) from which on the backbone trains.
        unfreeze_at_epoch: Epoch from which on the backbone trains.
        monitor: Name of a logged metric: the backbone trains once validation has stopped improving it. Give exactly
            one of `unfreeze_at_step`, `unfreeze_at_epoch` and `monitor`.
        patience: Number of validations in a row without improvement of `monitor` that make a plateau.
        min_delta: Smallest change of `monitor` that counts as an improvement.
        mode: Direction in which `monitor` improves, `min` for smaller or `max` for larger.
        warmup_steps: Number of steps over which the learning rate of the backbone rises linearly once it trains: the
            first step takes 1 / warmup_steps of it, step number warmup_steps all of it.
        learning_rate: Learning rate of the backbone, in place of the initial one of its parameter group: a scheduler
            scales it as it scales the group's. By default the group keeps its own.
        exclude: Names of parts of the backbone that are not to be frozen, for example `["generator.*.lora_*"]`.
        name: Name of the backbone in logs.

    Raises:
        ValueError: The arguments contradict each other or are out of range.
        MisconfigurationException: The LightningModule, its optimizers or the strategy do not fit.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.FreezeBackboneFirst
              init_args:
                backbone: [generator]
                unfreeze_at_step: 2000
                warmup_steps: 500
                learning_rate: 1.0e-5

    Actions first, from step 1000 on LoRA, too, and everything once validation has stopped improving::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.FreezeBackboneFirst
              init_args: {name: lora, backbone: [generator.*.lora_*], unfreeze_at_step: 1000}
            - class_path: lightning_action.callbacks.FreezeBackboneFirst
              init_args: {backbone: [generator], exclude: [generator.*.lora_*], monitor: validation/loss}
    """

    def __init__(
        self,
        backbone: list[str],
        unfreeze_at_step: int | None = None,
        unfreeze_at_epoch: int | None = None,
        monitor: str | None = None,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] = "min",
        warmup_steps: int = 0,
        learning_rate: float | None = None,
        exclude: list[str] | None = None,
        name: str = "backbone",
    ) -> None:
        super().__init__()
        if not isinstance(backbone, list) or not backbone:
            raise ValueError(f"backbone must be a list with at least one attribute name, got {backbone!r}")
        if not isinstance(exclude, list | None):
            raise ValueError(f"exclude must be a list of attribute names, got {exclude!r}")
        switches = {"unfreeze_at_step": unfreeze_at_step, "unfreeze_at_epoch": unfreeze_at_epoch, "monitor": monitor}
        given = {name: value for name, value in switches.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"Give exactly one of {', '.join(switches)}, got {given or 'none of them'}")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max', got {mode!r}")
        check_at_least(0, unfreeze_at_step=unfreeze_at_step, unfreeze_at_epoch=unfreeze_at_epoch)
        check_at_least(0, min_delta=min_delta, warmup_steps=warmup_steps)
        check_at_least(1, patience=patience)
        if learning_rate is not None and learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, got {learning_rate}")

        self.backbone = backbone
        self.unfreeze_at_step = unfreeze_at_step
        self.unfreeze_at_epoch = unfreeze_at_epoch
        self.monitor = monitor
        self.patience = patience
        self.min_delta = min_delta
        self.mode = mode
        self.warmup_steps = warmup_steps
        self.learning_rate = learning_rate
        self.exclude = exclude or []
        self.name = name

        # Checkpoints keep these.
        self._unfrozen_at: int | None = None
        self._best = math.inf if mode == "min" else -math.inf
        self._num_bad_validations = 0

        # These are known only during a fit.
        self._frozen: bool | None = None
        self._logged_step = -1
        self._parameters: set[nn.Parameter] = set()
        self._norms: list[nn.Module] = []
        self._groups: list[BackboneGroup] = []

    @property
    def state_key(self) -> str:
        said = {"backbone": self.backbone}
        return f"{type(self).__qualname__}{said}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "unfrozen_at": self._unfrozen_at,
            "best": self._best,
            "num_bad_validations": self._num_bad_validations,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._unfrozen_at = state_dict["unfrozen_at"]
        self._best = state_dict["best"]
        self._num_bad_validations = state_dict["num_bad_validations"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        names = [callback.name for callback in _all_of(trainer)]
        if len(set(names)) < len(names):
            raise MisconfigurationException(
                f"Several FreezeBackboneFirst in one Trainer need different names, got {names}: give each a `name`, "
                "for example lora and backbone"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare the optimizers, which exist here, but have not been restored from a checkpoint yet."""
        check_parts_exist(pl_module, [*self.backbone, *self.exclude])
        # Shared parameters and modules have several names, and one inside the backbone is enough.
        parameters = named_parameters(pl_module, remove_duplicate=False)
        modules = named_modules(pl_module, remove_duplicate=False)
        self._parameters = {p for name, p in parameters if self._is_backbone(name) and p.requires_grad}
        self._norms = [
            m for name, m in modules if self._is_backbone(name) and isinstance(m, _BATCH_NORMS) and m.training
        ]
        groups = [BackboneGroup(o, index) for o in trainer.optimizers for index in range(len(o.param_groups))]
        self._groups = [group for group in groups if not self._parameters.isdisjoint(group.options["params"])]
        self._check_something_to_train(pl_module)
        self._refuse_mixed_groups()
        for optimizer in dict.fromkeys(group.optimizer for group in self._groups):
            materialize_state(optimizer, is_sharded(pl_module))
        self._remember_initial_learning_rates()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is not None and not trainer.enable_validation:
            raise MisconfigurationException(
                f"FreezeBackboneFirst(monitor={self.monitor!r}) waits for a plateau over validations, but this fit "
                "runs none. Give it validation data, or unfreeze_at_step or unfreeze_at_epoch."
            )
        # Again, because a checkpoint of a fit without this callback replaces the groups of the optimizer.
        self._remember_initial_learning_rates()
        if self._has_own_learning_rate:
            for group in self._groups:
                group.replace_learning_rate(partial(self._learning_rate, trainer))
        self._apply_phase(trainer, pl_module)
        model = trainer.model
        waits = isinstance(model, DistributedDataParallel) and (not model.find_unused_parameters or model.static_graph)
        if self._frozen and waits:
            raise MisconfigurationException(
                "FreezeBackboneFirst leaves parameters without gradient that DistributedDataParallel waits for. Use "
                "the strategy ddp_find_unused_parameters_true (and no static_graph)."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._apply_phase(trainer, pl_module)
        step = log_writing.current_step(trainer)
        if step != self._logged_step and log_writing.is_logging_step(trainer):
            self._logged_step = step
            log_writing.scalars(trainer, self._describe_phase(trainer), step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        validates_fit = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if self.monitor is None or not self.is_waiting or not validates_fit:
            return
        # Otherwise one plateau would end two phases.
        earlier = takewhile(lambda callback: callback is not self, _all_of(trainer))
        if any(callback.is_waiting for callback in earlier):
            return
        if self.monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"FreezeBackboneFirst(monitor={self.monitor!r}): no such metric was logged. "
                f"Available: {', '.join(sorted(trainer.callback_metrics)) or 'none'}"
            )
        # All ranks must switch at the same step, even if the metric was logged without sync_dist.
        self._count_validation(trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor])))
        if self._num_bad_validations >= self.patience:
            self._unfrozen_at = trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException | None = None) -> None:
        """Leave the module as the fit found it, so that another fit can start from it, and drop all references."""
        for group in self._groups:
            group.restore_learning_rate()
        if self._frozen:
            self._unfreeze(pl_module)
        self._frozen, self._parameters, self._norms, self._groups = None, set(), [], []
        self._logged_step = -1

    on_exception = on_fit_end

    @property
    def is_waiting(self) -> bool:
        """Tell whether the switch is still to come."""
        return self._unfrozen_at is None

    @property
    def _has_own_learning_rate(self) -> bool:
        return self.warmup_steps > 0 or self.learning_rate is not None

    def _is_backbone(self, name: str) -> bool:
        return is_in(name, self.backbone) and not is_in(name, self.exclude)

    def _apply_phase(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze or unfreeze the backbone, as the progress of the fit and nothing else demands."""
        self._update_unfrozen_at(trainer)
        parts, was_frozen, self._frozen = _quoted(self.backbone), self._frozen, self.is_waiting
        if self._frozen:
            self._freeze()
            if not was_frozen:
                drop_gathered_parameters(pl_module)
                rank_zero_info(f"FreezeBackboneFirst: {parts} is frozen until {self._describe_switch()}.")
        elif was_frozen:
            self._unfreeze(pl_module)
            settle_gradient_dtypes(pl_module)
            drop_gathered_parameters(pl_module)
            rank_zero_info(f"FreezeBackboneFirst: {parts} trains from step {self._unfrozen_at} on.")

    def _describe_phase(self, trainer: Trainer) -> dict[str, float]:
        described = {f"phase/{self.name}_trainable": 0.0 if self._frozen else 1.0}
        # Some optimizers compute theirs, and have none that could be shown.
        known = [group.options for group in self._groups if group.options.get("lr") is not None]
        if known:
            largest = max(float(self._learning_rate(trainer, options)) for options in known)
            described[f"phase/{self.name}_learning_rate"] = 0.0 if self._frozen else largest
        *_, last = callbacks = _all_of(trainer)
        # The others have not all applied theirs before.
        if self is last:
            described["phase/index"] = float(sum(not callback.is_waiting for callback in callbacks))
        return described

    def _update_unfrozen_at(self, trainer: Trainer) -> None:
        if self.unfreeze_at_step is not None:
            self._unfrozen_at = self.unfreeze_at_step if trainer.global_step >= self.unfreeze_at_step else None
        elif self.unfreeze_at_epoch is not None:
            if trainer.current_epoch < self.unfreeze_at_epoch:
                self._unfrozen_at = None
            elif self._unfrozen_at is None:
                self._unfrozen_at = trainer.global_step

    def _describe_switch(self) -> str:
        if self.unfreeze_at_step is not None:
            return f"step {self.unfreeze_at_step}"
        if self.unfreeze_at_epoch is not None:
            return f"epoch {self.unfreeze_at_epoch}"
        return f"{self.monitor} has not improved for {self.patience} validations"

    def _freeze(self) -> None:
        # At every batch, because a module may call requires_grad_() or train() on all of itself in a hook of its own.
        for parameter in self._parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        for norm in self._norms:
            norm.eval()

    def _unfreeze(self, pl_module: LightningModule) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        for norm in self._norms:
            norm.train(pl_module.training)

    def _count_validation(self, value: float) -> None:
        gain = self._best - value if self.mode == "min" else value - self._best
        if gain > self.min_delta:
            self._best, self._num_bad_validations = value, 0
        else:
            self._num_bad_validations += 1

    def _learning_rate(self, trainer: Trainer, options: dict[str, Any]) -> float | Tensor:
        """Return the learning rate with which a parameter group of the backbone takes the step that follows."""
        learning_rate: float | Tensor = options["lr"]
        if self._unfrozen_at is None:
            return learning_rate
        if self.learning_rate is not None:
            learning_rate = self.learning_rate * (learning_rate / options["initial_lr"])
        if self.warmup_steps > 0:
            learning_rate = learning_rate * min(1.0, (trainer.global_step - self._unfrozen_at + 1) / self.warmup_steps)
        return learning_rate

    def _remember_initial_learning_rates(self) -> None:
        """Keep the initial learning rates where schedulers keep them, which is also where checkpoints hold them."""
        if not self._has_own_learning_rate:
            return
        for group in self._groups:
            if group.options.get("lr") is None:
                raise MisconfigurationException(
                    f"Parameter group {group.index} of {type(group.optimizer).__name__} has no learning rate (lr is "
                    "None) that FreezeBackboneFirst could warm up or replace: give it one, or leave out warmup_steps "
                    "and learning_rate."
                )
            if self.learning_rate is None:
                continue
            if group.options.setdefault("initial_lr", group.options["lr"]) == 0:
                raise MisconfigurationException(
                    f"FreezeBackboneFirst(learning_rate={self.learning_rate}) stands in for the initial learning rate "
                    f"of the backbone's parameter group, which must not be 0. Parameter group {group.index} of "
                    f"{type(group.optimizer).__name__} starts at 0."
                )

    def _refuse_mixed_groups(self) -> None:
        """Refuse a learning rate or warm-up of its own where the backbone shares a parameter group."""
        for group in self._groups if self._has_own_learning_rate else []:
            if {parameter for parameter in group.options["params"] if parameter.requires_grad} - self._parameters:
                part = _quoted(self.backbone) + (f" without {_quoted(self.exclude)}" if self.exclude else "")
                optimizer = type(group.optimizer).__name__
                raise MisconfigurationException(
                    f"Parameter group {group.index} of {optimizer} holds parameters of {part} together with others, "
                    "and a learning rate or warm-up of its own needs a group of its own. Leave both out, or build "
                    f'{optimizer}([{{"params": <those of {part}>}}, {{"params": <all others>}}], ...) in '
                    "configure_optimizers."
                )

    def _check_something_to_train(self, pl_module: LightningModule) -> None:
        if not self._parameters:
            raise MisconfigurationException(
                f"No parameter of {_quoted(self.backbone)} requires grad when the fit starts, so there is nothing to "
                "unfreeze later. Leave the freezing to FreezeBackboneFirst, or remove this one."
            )
        if not self._groups:
            raise MisconfigurationException(
                f"No optimizer of {type(pl_module).__name__} holds a parameter of {_quoted(self.backbone)}, so it "
                "would never train. Put the backbone into configure_optimizers as if it trained from the start."
            )


def _all_of(trainer: Trainer) -> list[FreezeBackboneFirst]:
    """Find all of these callbacks, in the order in which the Trainer calls them."""
    return [callback for callback in trainer.callbacks if isinstance(callback, FreezeBackboneFirst)]  # type: ignore[attr-defined]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
