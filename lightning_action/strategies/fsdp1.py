"""Fully sharded data parallel of the first generation (FSDP1), for those who use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.plugins.precision import FSDPPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import enable_wrap
from torch.optim import Optimizer

from lightning_action.strategies.checkpoints import ShardedCheckpoints


class FSDP1Strategy(ShardedCheckpoints, FSDPStrategy):
    """Lightning's `FSDPStrategy`, also on CPU (gloo), with clipping by norm and with the checkpoints of FSDP2.

    The LightningModule wraps all its parts in `configure_model` with `torch.distributed.fsdp.wrap.wrap`, as
    `ActionVideoModule` does. A checkpoint goes on under `FSDP2Strategy`, and in a single file on one device, and theirs
    go on here.

    Args:
        save_distributed_checkpoint: each rank writes its own shard into a folder; False gathers everything on rank 0,
            which writes one file.
        process_group_backend: None takes the device's own.
        timeout: how long a rank waits for another.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__(process_group_backend=process_group_backend, timeout=timeout)
        self.save_distributed_checkpoint = save_distributed_checkpoint

    @property
    def offloads(self) -> bool:
        # On CPU, FSDP1 takes it for a reason not to copy, and frees what it has given.
        return bool(self.root_device.type != "cpu")

    def setup_environment(self) -> None:
        super().setup_environment()
        # With a mesh, shards are DTensors in state dicts, as those of FSDP2 are.
        self.kwargs["device_mesh"] = init_device_mesh(self.root_device.type, (self.world_size,))

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        # Lightning names the device by a number, which on CPU there is none of.
        with enable_wrap(wrapper_cls=FullyShardedDataParallel, device_id=self.root_device, **self.kwargs):
            yield

    def _setup_model(self, model: nn.Module) -> nn.Module:
        # The wrapper moves parameters alone, and a LightningModule would go on saying that it is on the CPU.
        model.to(self.root_device)
        _require_wrapped(model)
        # Lightning leaves a module alone of which parts are wrapped, and each part would be a root of its own.
        return super()._setup_model(FullyShardedDataParallel(model, device_id=self.root_device, **self.kwargs))

    @FSDPStrategy.precision_plugin.setter  # type: ignore[attr-defined]
    def precision_plugin(self, plugin: FSDPPrecision | None) -> None:
        """Lightning's, refined.

        Raises:
            MisconfigurationException: it is another precision than 32-true.
        """
        if plugin is not None and plugin.precision != "32-true":
            raise MisconfigurationException(
                f"FSDP1Strategy needs trainer.precision 32-true, got {plugin.precision}: weights are kept in float32, "
                "and model.sharding.param_dtype says in what is computed"
            )
        self._precision_plugin = None if plugin is None else _Precision(self)


def _require_wrapped(model: nn.Module) -> None:
    """Refuse parameters that the outermost wrapper would flatten: it is another one in each run of the Trainer."""
    parts = [part for part in model.modules() if isinstance(part, FullyShardedDataParallel)]
    wrapped = {parameter for part in parts for parameter in part.parameters()}
    left = [name for name, parameter in model.named_parameters() if parameter not in wrapped]
    if left:
        raise MisconfigurationException(
            f"expected every parameter to be in a part that is wrapped, but {len(left)} are not, {left[0]} first: wrap "
            "the modules that are called in configure_model, with torch.distributed.fsdp.wrap.wrap"
        )


class _Precision(FSDPPrecision):
    """Leaves dtypes to the wrappers, and clips gradients by their norm, which only the outermost wrapper can."""

    def __init__(self, strategy: FSDP1Strategy) -> None:
        super().__init__("32-true")
        self._strategy = strategy

    def convert_module(self, module: nn.Module) -> nn.Module:
        return module

    def convert_input(self, data: Any) -> Any:
        return data

    def clip_grad_by_norm(self, optimizer: Optimizer, clip_val: int | float) -> None:
        root = self._strategy.model
        assert isinstance(root, FullyShardedDataParallel)
        root.clip_grad_norm_(clip_val)
