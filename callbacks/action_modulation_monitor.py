"""Monitor of whether the actions reach the network, where, and how strongly."""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .support import log_writing
from .support.arguments import check_at_least
from .support.modulation_sums import SLOTS, ModulationSums, figures
from .support.probing import refuse_hidden_parameters


class ActionModulationWarning(UserWarning):
    """Warning of a fault in the modulation that actions make; the message starts with the name of the fault."""


# What may be wrong, and the advice; in this order, because each may bring about those after it.
_FAULTS = {
    "frozen projection": "no parameter of it both requires grad and is in an optimizer, so it will not learn",
    "exploded modulation": "it outweighs what it is added to by more than explosion_limit, or is not finite: lower its "
    "scale or learning rate, or clip gradients",
    "detached projection": "no gradient reaches it: what it returns is detached or unused on its way to the loss",
    "zero modulation": "it is still exactly zero, or not computed at all: check that batches have actions, that its "
    "last layer trains, and the learning rate",
    "saturated modulation": "it hardly changes any more when the action does: check the scale of the actions and the "
    "activations before it",
}
_SAID_AT_ONCE = ("frozen projection", "exploded modulation")


class ActionModulationMonitor(Callback):
    """Logs the modulation that actions make of a transformer (adaLN), and warns when it does not do its work.

    The modulation has six slots, `shift_sa`, `scale_sa`, `gate_sa` of self-attention and `shift_ffn`, `scale_ffn`,
    `gate_ffn` of the feed-forward, of D channels each. Norms are L2, averaged over the frames that have an action, over
    all batches of a step, and over all ranks. A frame whose modulation is exactly zero, as it is without an action, is
    left out of them, and counts in `null_share`. Passes without gradient, such as validation, do not count. Where
    several of these callbacks watch several projections, the name of each stands behind `action/`.

    - `action/modulation_norm/<slot>`: norm of a slot, and `.../all` of the six together, averaged over layers;
    - `action/modulation_norm_by_frame/frame_<i>`: norm of the six together, for each latent frame;
    - `action/modulation_to_time/all` and, if layers have a modulation of their own, `.../layer_<i>`: norm of the six
      together, divided by the mean norm of the time modulation;
    - `action/modulation_to_table/layer_<i>`: the same, divided by the norm of the layer's own table;
    - `action/modulation_to_base/all`: the same, divided by what it is added to, the mean norm of the time modulation
      plus that of the tables plus that of ones, as a layer multiplies by 1 + scale. A backbone that has not been
      trained has little else than the ones;
    - `action/modulation_variation`: root mean square of the change between successive frames with different actions,
      over that of the frames themselves: 0 if the modulation does not depend on the action, 1 if they are unrelated;
    - `action/null_share`: share of frames without a modulation;
    - `action/projection_grad_norm`: norm of the projection's gradient, before clipping;
    - `action/modulation`: histogram of values of the first rank that are not exactly zero.

    A modulation that starts at exactly zero, as adaLN-Zero (Peebles & Xie 2023, arXiv:2212.09748) should, is mentioned
    once. A fault is an ActionModulationWarning that begins with its name, each at most once: `unknown modulation` (one
    of another shape), `frozen projection` and `exploded modulation` as soon as they are seen; `detached projection`,
    `zero modulation` and `saturated modulation` (one that hardly changes when the action does) when they have been seen
    for `warn_after_steps`. The first step of all is looked at, too, in addition to the logged ones.

    It works with any LightningModule that has, under names of your choice, a module `projection` that returns
    `[B, F, 6, D]` or `[B, F, L, 6, D]`, and whose arguments `[B, F, ...]` are the action; a module `time_projection`
    that returns `[..., 6 D]`; and a list of L `layers`, each with a parameter `table` of `6 D` values. Forward hooks
    watch them during a fit. A `projection` that is None is nothing to watch, which is said.

    The figures are this project's own.

    Args:
        projection: Name of the action projection, as an attribute of the LightningModule.
        time_projection: Name of the time projection; None leaves out what is relative to it.
        layers: Name of the list of layers; None leaves out what is said of layers.
        table: Name of a layer's own table, as an attribute of the layer.
        every_n_steps: Steps from one logged step to the next. Default: `log_every_n_steps` of the Trainer.
        warn_after_steps: Steps over which a fault has to be seen.
        explosion_limit: Largest healthy `modulation_to_base/all`.
        saturation_limit: Smallest healthy `modulation_variation`.
        max_frames: Number of latent frames that are told apart.

    Raises:
        ValueError: A number is out of range.
        MisconfigurationException: The LightningModule has no part of a given name.

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.ActionModulationMonitor
              init_args:
                projection: action_encoder
                time_projection: transformer.time_mlp
                layers: transformer.layers
                table: scale_shift_table
    """

    def __init__(
        self,
        projection: str = "action_projection",
        time_projection: str | None = "generator.time_projection",
        layers: str | None = "generator.blocks",
        table: str = "modulation",
        every_n_steps: int | None = None,
        warn_after_steps: int = 50,
        explosion_limit: float = 3.0,
        saturation_limit: float = 0.01,
        max_frames: int = 32,
    ) -> None:
        super().__init__()
        check_at_least(1, every_n_steps=every_n_steps, warn_after_steps=warn_after_steps, max_frames=max_frames)
        check_at_least(0, saturation_limit=saturation_limit)
        if explosion_limit <= 0:
            raise ValueError(f"explosion_limit must be above 0, got {explosion_limit}")
        self.projection = projection
        self.time_projection = time_projection
        self.layers = layers
        self.table = table
        self.every_n_steps = every_n_steps
        self.warn_after_steps = warn_after_steps
        self.explosion_limit = explosion_limit
        self.saturation_limit = saturation_limit
        self.max_frames = max_frames

        # Checkpoints keep these: what has been said, and the fault last seen with the step from which on it was.
        self._said: list[str] = []
        self._fault = ""
        self._fault_since = 0

        # These are known only during a fit.
        self._parameters: list[nn.Parameter] = []
        self._tables: list[nn.Parameter] = []
        self._hooks: list[RemovableHandle] = []
        self._step = 0
        self._prefix = "action"
        # It is None except during a logged step.
        self._sums: ModulationSums | None = None

    @property
    def state_key(self) -> str:
        said = {"projection": self.projection}
        return f"{type(self).__qualname__}{said}"

    def state_dict(self) -> dict[str, Any]:
        return {"said": self._said, "fault": self._fault, "fault_since": self._fault_since}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._said = list(state_dict["said"])
        self._fault, self._fault_since = state_dict["fault"], state_dict["fault_since"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # This happens here because a checkpoint is restored later.
        self._said, self._fault, self._fault_since = [], "", 0
        if stage == "fit":
            refuse_hidden_parameters(trainer.strategy, "ActionModulationMonitor")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        projection = _find(pl_module, self.projection, may_be_none=True)
        if projection is None:
            rank_zero_warn(f"ActionModulationMonitor has nothing to watch: `{self.projection}` is None")
            return
        monitors = [each for each in trainer.callbacks if isinstance(each, ActionModulationMonitor)]  # type: ignore[attr-defined]
        self._prefix = "action" if len(monitors) == 1 else f"action/{self.projection}"
        self._parameters = list(projection.parameters())
        self._hooks = [projection.register_forward_hook(self._see_modulation, with_kwargs=True)]
        if self.time_projection is not None:
            self._hooks.append(_find(pl_module, self.time_projection).register_forward_hook(self._see_time))
        if self.layers is not None:
            self._tables = _tables(_find(pl_module, self.layers), self.layers, self.table)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._step = log_writing.current_step(trainer)
        is_logged = self._step == 0 or log_writing.is_logging_step(trainer, self.every_n_steps)
        if self._hooks and is_logged and self._sums is None:
            self._sums = ModulationSums(len(self._tables), self.max_frames, pl_module.device)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._sums is not None:
            held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
            self._sums.add_gradient(parameter for parameter in self._parameters if parameter in held)
            # The tables are still as they were in the forward pass.
            self._sums.set_tables(self._tables)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._sums is None or not log_writing.has_stepped(trainer):
            return
        sums, sample = self._sums.reduce()
        found = figures(sums, self._sums.per_layer)
        self._sums = None
        log_writing.scalars(trainer, {f"{self._prefix}/{name}": value for name, value in found.items()}, self._step)
        log_writing.histogram(trainer, f"{self._prefix}/modulation", sample[sample != 0], self._step)
        self._judge(found, self._is_trained(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException | None = None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._parameters, self._tables, self._sums = [], [], [], None

    on_exception = on_fit_end

    def _see_modulation(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], modulation: Any
    ) -> None:
        if self._sums is None or not torch.is_grad_enabled():
            return
        num_layers = len(self._tables)
        has_slots = isinstance(modulation, Tensor) and modulation.ndim in (4, 5) and modulation.shape[-2] == len(SLOTS)
        if has_slots and (modulation.ndim == 4 or num_layers in (0, modulation.shape[2])):
            self._sums.add_modulation(modulation, _actions([*args, *kwargs.values()], modulation))
        else:
            got = list(modulation.shape) if isinstance(modulation, Tensor) else type(modulation).__name__
            self._warn(
                "unknown modulation",
                f"expected [B, F, 6, D], or [B, F, {num_layers or 'L'}, 6, D] for each layer, got {got}",
            )

    def _see_time(self, module: nn.Module, args: tuple[Any, ...], modulation: Any) -> None:
        if self._sums is not None and torch.is_grad_enabled() and isinstance(modulation, Tensor):
            self._sums.add_time(modulation)

    def _judge(self, found: dict[str, float], is_trained: bool) -> None:
        """Say what is wrong, if anything is and has been for long enough."""
        if self._step == 0 and found["modulation_norm/all"] == 0 and "zero start" not in self._said:
            self._said.append("zero start")
            rank_zero_info(
                f"ActionModulationMonitor: the modulation of `{self.projection}` is exactly zero at the start, as it "
                "should be with a zero-initialised last layer (adaLN-Zero)"
            )
        fault = self._find_fault(found, is_trained)
        if fault != self._fault:
            self._fault, self._fault_since = fault, self._step
        if fault and (fault in _SAID_AT_ONCE or self._step + 1 - self._fault_since >= self.warn_after_steps):
            self._warn(fault, _FAULTS[fault])

    def _find_fault(self, found: dict[str, float], is_trained: bool) -> str:
        """Name the first fault that holds; empty if none does."""
        holds = {
            "frozen projection": bool(self._parameters) and not is_trained,
            # Said so that NaN counts as exploded, too.
            "exploded modulation": not found.get("modulation_to_base/all", 0.0) <= self.explosion_limit,
            "detached projection": bool(self._parameters) and found["projection_grad_norm"] == 0,
            "zero modulation": found["modulation_norm/all"] == 0 and "unknown modulation" not in self._said,
            "saturated modulation": found.get("modulation_variation", 1.0) < self.saturation_limit,
        }
        return next((fault for fault in _FAULTS if holds[fault]), "")

    def _warn(self, fault: str, advice: str) -> None:
        if fault not in self._said:
            self._said.append(fault)
            rank_zero_warn(
                f"{fault}: step {self._step}, `{self.projection}`: {advice} (ActionModulationMonitor)",
                category=ActionModulationWarning,
            )

    def _is_trained(self, trainer: Trainer) -> bool:
        held = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        return any(parameter.requires_grad and parameter in held for parameter in self._parameters)


def _find(pl_module: LightningModule, name: str, may_be_none: bool = False) -> Any:
    """The module of a name, or None if that is what the name stands for and may stand for."""
    parent, _, last = name.rpartition(".")
    try:
        found = getattr(pl_module.get_submodule(parent), last)
    except AttributeError as error:
        children = ", ".join(child for child, _ in pl_module.named_children())
        raise MisconfigurationException(
            f"ActionModulationMonitor: {type(pl_module).__name__} has no `{name}`. Give the name of yours, or null for "
            f"a time projection or layers that are not to be watched. At the top it has: {children}"
        ) from error
    if not isinstance(found, nn.Module) and not (may_be_none and found is None):
        raise MisconfigurationException(f"ActionModulationMonitor: `{name}` is not a module")
    return found


def _tables(layers: nn.Module, name: str, table: str) -> list[nn.Parameter]:
    tables = []
    for index, layer in layers.named_children():
        parameter = getattr(layer, table, None)
        if not isinstance(parameter, nn.Parameter) or parameter.numel() % len(SLOTS):
            raise MisconfigurationException(
                f"ActionModulationMonitor: expected a parameter of 6 D values, `{name}.{index}.{table}`, got "
                f"{type(parameter).__name__}. Give the name of the table as table=..., or layers: null"
            )
        tables.append(parameter)
    return tables


def _actions(arguments: list[Any], modulation: Tensor) -> Tensor | None:
    """Arguments of a projection for each frame, `[B, F, N]`; several conditions may come in a dict."""
    given = [
        value for argument in arguments for value in (argument.values() if isinstance(argument, dict) else [argument])
    ]
    size = modulation.shape[:2]
    per_frame = [value for value in given if isinstance(value, Tensor) and value.shape[:2] == size]
    return torch.cat([value.detach().reshape(*size, -1).float() for value in per_frame], dim=-1) if per_frame else None
