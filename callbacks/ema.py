"""An exponential moving average of the weights, which takes their place whenever the model is evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from .support.arguments import check_at_least
from .support.collectives import local
from .support.log_writing import current_step, has_stepped
from .support.part_names import check_parts_exist, is_in, named_parameters, names_of_parameters
from .support.probing import drop_gathered_parameters, refuse_hidden_parameters
from .support.shard_reading import load_shards

Tensors: TypeAlias = dict[str, Tensor]


class EMA(Callback):
    """Keeps an exponential moving average of the weights, and evaluates with it; training never sees it.

    After every optimizer step, `average = decay * average + (1 - decay) * weights` (Tarvainen & Valpola 2017,
    arXiv:1703.01780), for every parameter that requires grad when the fit starts. The average is kept in float32 or
    better, and is sharded as its parameter is. It stands in the module while the Trainer validates, tests and predicts,
    and the trained weights come back afterwards, also after an exception. Within a fit that is from
    `on_validation_start` to `on_validation_end`, so that a callback that comes later in the list and generates in
    `on_validation_end` uses the trained weights. Buffers are not averaged.

    Checkpoints hold the trained weights in `state_dict`, as without this callback, and the average beside them:

    - in a file, as `ema_state_dict`, under the names that it has in `state_dict`;
    - in a folder (distributed checkpoint), sharded, so that no rank ever gathers it.

    Either is read with any number of devices. `trainer.predict(ckpt_path=...)`, with this callback, generates with the
    average of that checkpoint. A checkpoint saved with `save_weights_only` has none.

    Args:
        decay: Share of the average that an update keeps, at least 0 and below 1.
        parts: Names of the parts to average, as attributes of the LightningModule, in which `*` stands for anything,
            for example `["action_projection", "generator.*.lora_*"]`. Default: all of it.
        start_step: Optimizer step at which the average starts, as a copy of the weights. Until then, evaluation uses
            the trained weights.
        every_n_steps: Optimizer steps from one update to the next.
        warmup: True lets update number n (from 0 on) keep no more than (1 + n) / (10 + n), the rule of TensorFlow's
            `tf.train.ExponentialMovingAverage(num_updates=...)`, so that the average soon forgets what it began with.

    Raises:
        ValueError: A number is out of range.
        MisconfigurationException: A part does not exist or has nothing to train, the checkpoint holds an average of
            other parameters, or the strategy hides the parameters (DeepSpeed).

    Example::

        trainer:
          callbacks:
            - class_path: lightning_action.callbacks.EMA
              init_args:
                decay: 0.999
    """

    def __init__(
        self,
        decay: float = 0.999,
        parts: list[str] | None = None,
        start_step: int = 0,
        every_n_steps: int = 1,
        warmup: bool = True,
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        if parts is not None and (not isinstance(parts, list) or not parts):
            raise ValueError(f"parts must be a list with at least one attribute name, got {parts!r}")
        check_at_least(0, start_step=start_step)
        check_at_least(1, every_n_steps=every_n_steps)
        self.decay = decay
        self.parts = parts or ["*"]
        self.start_step = start_step
        self.every_n_steps = every_n_steps
        self.warmup = warmup

        # Checkpoints keep these.
        self._num_updates = 0
        self._averages: Tensors = {}

        # Statements of a checkpoint about the averages, until they are taken over from it.
        self._restored: dict[str, Any] = {}
        # The trained weights, while the averages stand in the module.
        self._trained: Tensors = {}
        self._module: LightningModule | None = None

        # These are known only during a fit.
        self._names: list[str] = []
        self._parameters: dict[str, nn.Parameter] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"num_updates": self._num_updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._num_updates = state_dict["num_updates"]

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_hidden_parameters(trainer.strategy, "EMA")
        if pl_module is not self._module or trainer.ckpt_path is not None:
            self._forget()
        self._module = pl_module

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_parts_exist(pl_module, self.parts)
        # This happens here because other callbacks freeze parameters later, to train them still later.
        self._names = [n for n, p in named_parameters(pl_module) if p.requires_grad and is_in(n, self.parts)]
        if not self._names:
            raise MisconfigurationException(f"EMA: no parameter of {self.parts} requires grad when the fit starts")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer, pl_module)
        if self._averages and self._averages.keys() != set(self._names):
            raise MisconfigurationException(
                f"EMA: the checkpoint holds averages of {len(self._averages)} parameters, this fit averages "
                f"{len(self._names)}; only one of them has: {sorted(self._averages.keys() ^ set(self._names))}. Resume "
                "with the same `parts`, and the same parameters frozen."
            )
        self._parameters = _parameters(pl_module)
        self._start_when_due(pl_module, current_step(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = current_step(trainer) + 1
        if has_stepped(trainer) and not self._averages:
            self._start_when_due(pl_module, step)
        elif has_stepped(trainer) and step % self.every_n_steps == 0:
            self._update()

    # Lightning evaluates in inference mode, whose tensors could not be averaged into afterwards.
    @torch.inference_mode(False)
    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_over(trainer, pl_module)
        if not self._averages and trainer.state.fn != TrainerFn.FITTING:
            rank_zero_warn(
                "EMA: there is no average to evaluate with, neither from a fit of this module nor in a checkpoint "
                "(ckpt_path), so it is evaluated with the weights as they are"
            )
        parameters = self._current(pl_module)
        self._trained = {name: parameters[name].detach().clone() for name in self._averages}
        _overwrite(parameters, self._averages)

    on_test_start = on_predict_start = on_validation_start

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._require_untouched(pl_module)
            self._swap_out(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Not earlier, because other callbacks may use the model once more when the prediction ends.
        self._swap_out(pl_module)
        self._parameters = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._averages:
            return
        state = checkpoint["state_dict"]
        sharded = any(isinstance(value, DTensor) for value in state.values())
        averages, trained = self._averages, self._trained
        if sharded:
            # Lightning shards state_dict and optimizer_states alone, and state_dict has to fit the module.
            group = f"optimizer_{len(checkpoint['optimizer_states'])}"
            checkpoint["ema"] = {"names": list(averages), "group": group}
            checkpoint["optimizer_states"].append({"ema": averages})
        else:
            averages, trained = (_whole(values, trainer.is_global_zero) for values in (averages, trained))
            checkpoint["ema_state_dict"] = self._under_all_names(pl_module, averages, state)
        state.update(self._under_all_names(pl_module, trained, state))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._forget()
        shards = checkpoint.get("ema", {})
        # A folder that was made a file has the shards, put together, where they lay.
        whole = checkpoint.get("ema_state_dict", checkpoint.get(shards.get("group"), {}).get("ema"))
        self._restored = {"whole": whole} if whole else shards

    def _under_all_names(self, pl_module: LightningModule, values: Tensors, state: Mapping[str, Any]) -> Tensors:
        """Values under every name that their parameters have in a state dict: one that is tied has several."""
        parameters, names = self._current(pl_module), names_of_parameters(pl_module)
        known = {name: names.get(parameters[name], set()) & state.keys() or {name} for name in values}
        return {alias: value for name, value in values.items() for alias in sorted(known[name])}

    def _current(self, pl_module: LightningModule) -> dict[str, nn.Parameter]:
        """The parameters, during a fit under the names that they had when it started: pruning gives them others."""
        found = _parameters(pl_module)
        return self._parameters or found

    def _take_over(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the averages that `on_load_checkpoint` met: later, when the parameters are where they will be."""
        restored, self._restored = self._restored, {}
        if not restored:
            return
        parameters, aliases = _parameters(pl_module), names_of_parameters(pl_module)
        # A file has each average under all names of its parameter.
        first = {alias: name for name, parameter in parameters.items() for alias in aliases[parameter]}
        whole = {first.get(name, name): value for name, value in restored.get("whole", {}).items()}
        names = [*whole, *restored.get("names", [])]
        if unknown := [name for name in names if name not in parameters]:
            raise MisconfigurationException(
                f"EMA: the checkpoint holds averages of {unknown}, which {type(pl_module).__name__} does not have: "
                "build the module as it was trained"
            )
        averages = self._averages = _copies(parameters, names)
        if whole:
            _overwrite(averages, {name: _shared_out(whole[name], average) for name, average in averages.items()})
        else:
            load_shards({restored["group"]: {"ema": averages}}, str(trainer.ckpt_path))

    def _start_when_due(self, pl_module: LightningModule, step: int) -> None:
        if not self._averages and step >= self.start_step:
            self._averages = _copies(_parameters(pl_module), self._names)

    @torch.no_grad()
    def _update(self) -> None:
        decay = min(self.decay, (1 + self._num_updates) / (10 + self._num_updates)) if self.warmup else self.decay
        averages = [local(average) for average in self._averages.values()]
        weights = [local(self._parameters[name]) for name in self._averages]
        weights = [value.to(average.dtype) for value, average in zip(weights, averages, strict=True)]
        # One call for all, as torch's own averages make it; its public names take one tensor at a time.
        torch._foreach_lerp_(averages, weights, 1 - decay)
        self._num_updates += 1

    def _require_untouched(self, pl_module: LightningModule) -> None:
        """Refuse to put trained weights back where somebody else has put others in the meantime."""
        parameters = self._current(pl_module)
        for name in self._trained:
            here, average = local(parameters[name]), local(self._averages[name])
            if not torch.allclose(here, average.to(here.dtype), rtol=0, atol=0, equal_nan=True):
                raise MisconfigurationException(
                    f"EMA: `{name}` is not the average that was put in its place for this validation: an optimizer "
                    "that swaps weights in hooks of validation (Schedule-Free ones do), or another callback, has "
                    "changed it. Use one of the two."
                )

    @torch.inference_mode(False)
    @torch.no_grad()
    def _swap_out(self, pl_module: LightningModule) -> None:
        if self._trained:
            _overwrite(self._current(pl_module), self._trained)
            self._trained = {}

    def _forget(self) -> None:
        self._num_updates, self._averages, self._restored = 0, {}, {}


def _parameters(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    """Parameters as the optimizers know them: FSDP2 may show gathered copies in their place."""
    drop_gathered_parameters(pl_module)
    return dict(named_parameters(pl_module))


def _copies(parameters: dict[str, nn.Parameter], names: Iterable[str]) -> Tensors:
    """Copies of parameters in float32 or better: smaller types would round the steps of an average away."""
    copies = {name: parameters[name].detach() for name in names}
    return {n: value.to(torch.promote_types(value.dtype, torch.float32), copy=True) for n, value in copies.items()}


def _overwrite(tensors: Mapping[str, Tensor], values: Tensors) -> None:
    for name, value in values.items():
        local(tensors[name]).copy_(local(value))


def _whole(values: Tensors, keep: bool) -> Tensors:
    """Unshard tensors for one file; all ranks have to gather, and one keeps what comes of it."""
    # One by one: a generator holds no whole tensor that is not kept.
    whole = ((name, v.full_tensor().cpu() if isinstance(v, DTensor) else v) for name, v in values.items())
    return {name: value for name, value in whole if keep}


def _shared_out(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank has, placed and sharded like another."""
    whole = whole.to(like.device, like.dtype)
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
