"""Fully sharded data parallel (FSDP2) for Lightning's Trainer, with what its own strategy leaves to the user.

Sharding of parameters, gradients and optimizer states is that of Zhao et al. (2023, arXiv:2304.11277); the second
generation, by parameter, is described by Liang et al. (2024, arXiv:2410.06511).
"""

from __future__ import annotations

from datetime import timedelta

import lightning as L
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.tensor import DTensor

from lightning_action.distributed.sharded_checkpoints import ShardedCheckpoints


class FSDP2Strategy(ShardedCheckpoints, ModelParallelStrategy):
    """Shards parameters, gradients and optimizer states over all devices; works on CPU (gloo) as on GPU (NCCL).

    The LightningModule shards itself in `configure_model`, as `ActionVideoModule` does. A checkpoint is written beside
    its place and moved there when it is whole, so that a fit that is killed leaves the last one usable. One of a single
    file holds what a fit on one device would write: a run goes on with any number of devices, sharded or not.

    Args:
        save_distributed_checkpoint: Let each rank write its own shard into a folder; False gathers everything on rank
            0, which writes one file.
        process_group_backend: Backend of torch.distributed; None takes the device's own.
        timeout: Time that a rank waits for another.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta = timedelta(minutes=30),
    ) -> None:
        super().__init__("auto", 1, save_distributed_checkpoint, process_group_backend, timeout)
        self.save_distributed_checkpoint = save_distributed_checkpoint

    def setup_environment(self) -> None:
        # Lightning's "auto" is the number of nodes: on a single one it shards nothing and feeds all ranks the same.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: L.Trainer) -> None:
        """Refuse a module that would silently train apart.

        Raises:
            MisconfigurationException: A parameter that trains is not sharded.
        """
        super().setup(trainer)
        module = self.lightning_module
        assert module is not None
        parameters = module.named_parameters()
        whole = [name for name, value in parameters if value.requires_grad and not isinstance(value, DTensor)]
        if whole:
            raise MisconfigurationException(
                f"expected every parameter that trains to be sharded, but {len(whole)} are not, {whole[0]} first: "
                "their gradients would not be summed over the ranks; shard them in configure_model with "
                'torch.distributed.fsdp.fully_shard(..., mesh=self.device_mesh["data_parallel"])'
            )


def require_shardable(stage: str, merges_lora: bool, quantizes: bool, captures: bool) -> None:
    """Refuse what needs whole weights.

    Args:
        stage: Stage of the Trainer: `fit`, `validate`, `test` or `predict`.
        merges_lora: True if a fit merges LoRA at its end.
        quantizes: True if a prediction quantizes.
        captures: True if whole passes are captured.

    Raises:
        ValueError: The stage needs whole weights.
    """
    if stage == "fit" and merges_lora:
        raise ValueError("export_weights cannot merge sharded LoRA: use `export` with the checkpoint afterwards")
    if stage == "predict" and quantizes:
        raise ValueError(
            "acceleration.quantization needs whole weights: predict with `--trainer.strategy ddp`, not FSDP, "
            "or without quantization"
        )
    if captures:
        raise ValueError(
            "acceleration.capture_pass needs whole weights, and each layer's are gathered in the middle of a pass: "
            "generate with `--trainer.strategy ddp`, not FSDP, or without it"
        )


def require_supported(strategy: Strategy | str) -> None:
    """Refuse the first generation of FSDP, which torch gives up.

    Args:
        strategy: Strategy of a Trainer, or its name or class path.

    Raises:
        ValueError: The strategy is FSDP of the first generation; the message names what to use.
    """
    is_first = isinstance(strategy, FSDPStrategy) or strategy in ("fsdp", "fsdp_cpu_offload")
    if is_first or (isinstance(strategy, str) and strategy.endswith(".FSDPStrategy")):
        raise ValueError(
            "trainer.strategy is FSDP of the first generation, which torch gives up: shard with --config "
            "configs/fsdp.yaml in its place, or in Python with lightning_action.FSDP2Strategy"
        )
