"""The optimizer's settings, as LightningCLI shows them, and the schedule of its learning rates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_action.ranges import require_numbers


@dataclass(frozen=True)
class Optimization:
    """AdamW with a learning rate for the action side, one for the backbone and one for its LoRA layers.

    AdamW is by Loshchilov & Hutter (2017, arXiv:1711.05101). Rise, plateau and fall of the learning rates are the
    warmup-stable-decay schedule (Hu et al. 2024, arXiv:2404.06395), with linear decay.

    Args:
        action_learning_rate: Learning rate of the action projection (and action module).
        backbone_learning_rate: Learning rate of the generator.
        lora_learning_rate: Learning rate of the generator's LoRA layers.
        warmup_steps: Number of steps over which all rates rise linearly at the start.
        decay_fraction: Share of `max_steps` at the end over which all rates fall linearly to zero.
        weight_decay: Decoupled weight decay.
        betas: Decay rates of AdamW's two moments.
        train_backbone: Train the backbone; False freezes the generator's own weights for good, which saves their
            moments, and their gradients too; actions and LoRA layers train.
    """

    action_learning_rate: float = 1e-3
    backbone_learning_rate: float = 1e-3
    lora_learning_rate: float = 1e-4
    warmup_steps: int = 50
    decay_fraction: float = 0.3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    train_backbone: bool = True

    def __post_init__(self) -> None:
        rates = ("action_learning_rate", "backbone_learning_rate", "lora_learning_rate", "weight_decay")
        require_numbers({name: value for name, value in vars(self).items() if name in rates}, 0)
        require_numbers({"warmup_steps": self.warmup_steps}, 0, whole=True)
        require_numbers({"decay_fraction": self.decay_fraction}, 0, 1)
        if len(self.betas) != 2:
            raise ValueError(f"betas are two numbers, got {self.betas}")
        require_numbers({f"betas[{place}]": beta for place, beta in enumerate(self.betas)}, 0, 1, without_high=True)

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates before warm-up and decay, by the names of groups."""
        return {
            "action": self.action_learning_rate,
            "lora": self.lora_learning_rate,
            "backbone": self.backbone_learning_rate,
        }

    def learning_rate_factor(self, step: int, num_steps: float) -> float:
        """Compute warm-up, plateau, linear decay; `num_steps` may be infinite, then there is no decay."""
        rise = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        decay_steps = self.decay_fraction * num_steps
        fall = min(1.0, (num_steps - step) / decay_steps) if 0 < decay_steps < float("inf") else 1.0
        return rise * max(fall, 0.0)


@dataclass(frozen=True)
class JointOptimization:
    """One AdamW over the groups of one network, or of several that train side by side, each by its own settings.

    AdamW moves each tensor by its own gradient and moments alone, and leaves those that got no gradient as they are. So
    networks that train in different steps train in one AdamW as they would in one each, and the Trainer's accumulation,
    clipping, precision and resuming stay what they are.

    Args:
        settings: Settings of each network, by what the names of its groups begin with; "" for a network alone.
    """

    settings: Mapping[str, Optimization]

    def build(
        self, parameters: Mapping[str, Iterable[nn.Parameter]], num_steps: Callable[[], float], fused: bool = False
    ) -> tuple[AdamW, LambdaLR]:
        """Build AdamW over groups, and its scheduler.

        Args:
            parameters: Parameters of the groups `action`, `lora` and `backbone` of each network, whichever there are.
            num_steps: Function that returns the number of optimizer steps of the fit, which may be infinite; it is
                asked from step 1 on.
            fused: True if a step goes once over each parameter; faster, but Lightning does not clip gradients before it
                under mixed precision.
        """
        of_group = self._of_group
        groups = [
            {"name": name, "params": list(group), **_options(*of_group[name])} for name, group in parameters.items()
        ]
        optimizer = AdamW(groups, fused=fused)

        def factor_of(settings: Optimization) -> Callable[[int], float]:
            # Nothing falls at step 0, which is built here, so that it need not know the end.
            return lambda step: settings.learning_rate_factor(step, num_steps() if step else float("inf"))

        return optimizer, LambdaLR(optimizer, [factor_of(of_group[name][0]) for name in parameters])

    def put_back(self, optimizer: AdamW, scheduler: LambdaLR) -> list[str]:
        """Give an optimizer that `build` made these settings again, in place of those that a checkpoint brought.

        Returns:
            Descriptions of what differed.
        """
        told = []
        for index, (group, factor) in enumerate(zip(optimizer.param_groups, scheduler.lr_lambdas, strict=True)):
            options = _options(*self._of_group[group["name"]])
            rate = options.pop("lr")
            settings = {"initial_lr": rate, **options}
            for name, value in settings.items():
                before = tuple(group[name]) if name == "betas" else group[name]
                if before != value:
                    what = "learning rate" if name == "initial_lr" else name
                    told.append(f"{what} of {group['name']} {value} (before: {before})")
            group.update(settings, lr=rate * factor(scheduler.last_epoch))
            scheduler.base_lrs[index] = rate
        return told

    def require_same_groups(
        self,
        optimizer_states: Iterable[Mapping[str, Any]],
        parameters: Mapping[str, Collection[nn.Parameter]],
        source: str,
    ) -> None:
        """Refuse optimizer states of other groups than these settings build.

        Args:
            optimizer_states: States in a checkpoint; those of other kinds of optimizers are left to the Trainer.
            parameters: Parameters of each group.
            source: The checkpoint, for the message.

        Raises:
            ValueError: The groups differ; it names both.
        """
        theirs = [
            {group.get("name"): len(group["params"]) for group in state["param_groups"]}
            for state in optimizer_states
            if "param_groups" in state
        ]
        ours = {name: len(group) for name, group in parameters.items()}
        if theirs and set(theirs[0]) <= set(self._of_group) and theirs != [ours]:
            raise ValueError(
                f"{source} trained tensors of {theirs[0]}, the configuration trains {ours}: go on with "
                "the model.optimization.train_backbone and model.lora it was trained with, or begin a new fit from its "
                "weights (`export`, then model.pretrained and model.adapter)"
            )

    @property
    def _of_group(self) -> dict[str, tuple[Optimization, float]]:
        """Settings and learning rate of each group that there may be, by its name."""
        return {
            f"{network}{kind}": (settings, rate)
            for network, settings in self.settings.items()
            for kind, rate in settings.learning_rates.items()
        }


def _options(settings: Optimization, rate: float) -> dict[str, Any]:
    return {"lr": rate, "betas": tuple(settings.betas), "weight_decay": settings.weight_decay}
