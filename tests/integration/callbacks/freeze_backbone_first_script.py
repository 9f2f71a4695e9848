"""Fits on two processes, stopped and resumed on either side of the switch; writes what happened as JSON.

Called by test_freeze_backbone_first_distributed.py on two processes, with a folder.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_action.callbacks import FreezeBackboneFirst
from lightning_action.callbacks.support.probing import settle_gradient_dtypes

STEPS_PER_EPOCH, EPOCHS = 3, 4
PLAN: dict[str, Any] = {"backbone": ["net.backbone"], "warmup_steps": 4, "learning_rate": 0.03}
# What people shard with, and what `configs/fsdp.yaml` says.
HALF_PRECISION = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
# All of them switch at step 6, between epochs 1 and 2.
STEP: dict[str, Any] = {"unfreeze_at_step": 2 * STEPS_PER_EPOCH}
PLATEAU: dict[str, Any] = {"monitor": "score", "patience": 1}
# Of an adapter inside the backbone, one epoch earlier.
LORA: dict[str, Any] = {"name": "lora", "backbone": ["net.backbone.*.lora_*"], "unfreeze_at_step": STEPS_PER_EPOCH}
WITHOUT_LORA: dict[str, Any] = {"exclude": LORA["backbone"]}


def ddp() -> Strategy:
    return DDPStrategy(find_unused_parameters=True)


def fsdp2_sharded() -> Strategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)


def fsdp2_full() -> Strategy:
    return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)


class Layout(NamedTuple):
    """How the module is put together: what its optimizer and FSDP2 see."""

    one_root: bool = False  # backbone and head are sharded as one module with sharded parts, else as two
    reduces_on_plateau: bool = False  # the scheduler is the one that keeps no initial learning rate in the groups
    lora: bool = False  # the backbone has an adapter that trains before the rest of it


SCENARIOS: dict[str, tuple[Callable[[], Strategy], dict[str, Any], Layout]] = {
    "ddp_step": (ddp, STEP, Layout()),
    "ddp_plateau": (ddp, PLATEAU, Layout()),
    "fsdp2_sharded_step": (fsdp2_sharded, STEP, Layout(one_root=True)),
    "fsdp2_sharded_plateau": (fsdp2_sharded, PLATEAU, Layout(reduces_on_plateau=True)),
    "fsdp2_full_step": (fsdp2_full, STEP, Layout()),
    "fsdp2_full_plateau": (fsdp2_full, PLATEAU, Layout(one_root=True)),
    "ddp_lora_plateau": (ddp, PLATEAU, Layout(lora=True)),
    "fsdp2_sharded_lora_step": (fsdp2_sharded, STEP, Layout(one_root=True, lora=True)),
    "fsdp2_full_lora_plateau": (fsdp2_full, PLATEAU, Layout(lora=True)),
}


class Adapted(nn.Module):
    """A layer with LoRA, under the names that peft gives."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base_layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base_layer.out_features, bias=False)})

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.base_layer(inputs) + self.lora_B["default"](self.lora_A["default"](inputs))
        return outputs


class Net(nn.Module):
    def __init__(self, lora: bool) -> None:
        super().__init__()
        first = nn.Linear(6, 6)
        self.backbone = nn.Sequential(Adapted(first) if lora else first, nn.GELU(), nn.Linear(6, 4))
        self.head = nn.Linear(4, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.head(self.backbone(inputs))
        return outputs


class TwoParts(LightningModule):
    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self.net: Net | None = None

    def configure_model(self) -> None:
        if self.net is not None:
            return
        torch.manual_seed(0)
        self.net = Net(self.layout.lora)
        if self.device_mesh is not None:
            inner, root = (
                (self.net.backbone[0], self.net) if self.layout.one_root else (self.net.head, self.net.backbone)
            )
            fully_shard(inner, mesh=self.device_mesh["data_parallel"], mp_policy=HALF_PRECISION)
            fully_shard(root, mesh=self.device_mesh["data_parallel"], mp_policy=HALF_PRECISION)

    def loss(self, batch: list[Tensor]) -> Tensor:
        assert self.net is not None
        inputs, targets = batch
        loss: Tensor = (self.net(inputs) - targets).square().mean()
        return loss

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.log("ones", 1.0)
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.loss(batch)
        # Rank 0 sees a plateau. Rank 1 alone would not, so the ranks have to agree.
        self.log("score", 1.0 - self.global_rank * self.trainer.current_epoch)

    def configure_optimizers(self) -> Any:
        assert self.net is not None
        parts: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.net.named_parameters():
            parts.setdefault("lora" if ".lora_" in name else name.split(".")[0], []).append(parameter)
        groups = [{"name": name, "params": part} for name, part in parts.items()]
        optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.5)
        if self.layout.reduces_on_plateau:
            reduces = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=3)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": reduces, "interval": "step", "monitor": "ones"},
            }
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2 * STEPS_PER_EPOCH * EPOCHS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Movement(Callback):
    """Counts the steps until the backbone, and the adapter in it, move for the first time."""

    def __init__(self) -> None:
        self.first_step: dict[str, int] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # As the optimizer sees them: FSDP2 shows gathered copies in their place while it holds some.
        inside = {name: p for name, p in pl_module.named_parameters() if name.startswith("net.backbone.")}
        self.parameters = {
            "backbone": [p for name, p in inside.items() if ".lora_" not in name],
            "lora": [p for name, p in inside.items() if ".lora_" in name],
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = {part: list(map(local, parameters)) for part, parameters in self.parameters.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for part, parameters in self.parameters.items():
            if not equal(list(map(local, parameters)), self.start[part]):
                self.first_step.setdefault(part, trainer.global_step - 1)


def local(value: Any) -> Any:
    value = value.to_local() if isinstance(value, DTensor) else value
    return value.detach().clone() if isinstance(value, Tensor) else value


def full(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()


def fit(
    folder: Path, strategy: Strategy, layout: Layout, switch: dict[str, Any], *callbacks: Callback, **options: Any
) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(2 * 4 * STEPS_PER_EPOCH, 6, generator=generator)
    loader = DataLoader(TensorDataset(inputs, inputs.sum(dim=1, keepdim=True)), batch_size=4)
    freezes = [FreezeBackboneFirst(**PLAN, **switch)]
    if layout.lora:
        freezes = [FreezeBackboneFirst(**LORA), FreezeBackboneFirst(**PLAN, **switch, **WITHOUT_LORA)]
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        callbacks=[*freezes, *callbacks],
        max_epochs=EPOCHS,
        # The first pass of the model is one with a frozen backbone.
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=bool(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(TwoParts(layout), loader, loader, **options)
    return trainer


def final_state(trainer: Trainer) -> list[Any]:
    """Returns this rank's parameters and optimizer state, in an order that does not change."""
    optimizer = trainer.optimizers[0]
    state: list[Any] = []
    for group in optimizer.param_groups:
        state += [group["lr"], *map(local, group["params"])]
        state += [local(optimizer.state[p][key]) for p in group["params"] for key in sorted(optimizer.state[p])]
    return state


def equal(one: list[Any], other: list[Any]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def on_all_ranks(value: bool) -> bool:
    values = [value, value]
    torch.distributed.all_gather_object(values, value)
    return all(values)


def ranks_agree(trainer: Trainer) -> bool:
    """Compares with what rank 0 has."""
    agree = True
    for parameter in (p for group in trainer.optimizers[0].param_groups for p in group["params"]):
        mine = full(parameter)
        of_rank_zero = mine.clone()
        torch.distributed.broadcast(of_rank_zero, src=0)
        agree = agree and torch.equal(mine, of_rank_zero)
    return on_all_ranks(agree)


def observe(folder: Path, build: Callable[[], Strategy], switch: dict[str, Any], layout: Layout) -> dict[str, Any]:
    movement = Movement()
    # At the end of the epoch, because Lightning reduces on plateau only after the validation.
    checkpoint = ModelCheckpoint(folder, "{epoch}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)
    trainer = fit(folder, build(), layout, switch, movement, checkpoint)
    uninterrupted = final_state(trainer)
    facts: dict[str, Any] = {"first_step": movement.first_step, "ranks_agree": ranks_agree(trainer), "resumed": {}}
    for epoch in range(EPOCHS - 1):
        resumed = fit(folder, build(), layout, switch, ckpt_path=folder / f"epoch={epoch}.ckpt")
        facts["resumed"][str(epoch)] = on_all_ranks(equal(final_state(resumed), uninterrupted))
    if switch is STEP and not layout.lora:
        later = fit(folder, build(), layout, {"unfreeze_at_step": STEP["unfreeze_at_step"] + 1})
        facts["equal_with_another_switch"] = on_all_ranks(equal(final_state(later), uninterrupted))
    return facts


def gradient_after_unfreezing(reduce_dtype: torch.dtype) -> float:
    """Mean of a gradient of 1 and one of 2 ** -10, of a weight that was frozen at its first pass."""
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype)
    layer = fully_shard(nn.Linear(1, 2, bias=False), mesh=init_device_mesh("cpu", (2,)), mp_policy=policy)
    weight = layer.weight.requires_grad_(False)
    layer(torch.ones(1))
    weight.requires_grad_(True)
    settle_gradient_dtypes(layer)
    layer(torch.tensor([2.0 ** (-10 * torch.distributed.get_rank())])).sum().backward()
    return float(full(weight.grad)[0])


def refusal(folder: Path, strategy: Strategy) -> str:
    try:
        fit(folder, strategy, Layout(), STEP)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def main(folder: Path, rank: int) -> None:
    facts: dict[str, Any] = {name: observe(folder / name, *scenario) for name, scenario in SCENARIOS.items()}
    facts["refused_without_find_unused_parameters"] = refusal(folder, DDPStrategy())
    facts["refused_with_static_graph"] = refusal(folder, DDPStrategy(find_unused_parameters=True, static_graph=True))
    for name in ("float32", "bfloat16"):
        facts[f"gradient_summed_in_{name}"] = gradient_after_unfreezing(getattr(torch, name))
    if rank == 0:
        (folder / "facts.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()
