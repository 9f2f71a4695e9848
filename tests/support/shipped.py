"""Shipped configurations as they are, only shorter and smaller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# What a configuration stacks on that does not stand alone.
_BELOW = {
    "demo_backbone": "demo",
    "wan2.1_14b": "wan2.1_1.3b",
    "wan2.2_5b": "wan2.1_1.3b",
    "longlive_action": "wan2.1_1.3b",
    "longlive_train_action": "longlive_action",
    "lerobot": "wan2.1_1.3b",
    "consistency": "demo",
    "distillation": "demo",
}
# Every number of steps that a configuration sets, wherever it stands.
_STEPS = {
    *("max_steps", "val_check_interval", "log_every_n_steps", "every_n_train_steps"),
    *("unfreeze_at_step", "warmup_steps", "every_n_steps", "warn_after_step"),
}


def stack(*names: str) -> list[str]:
    """Names of shipped configurations, each with those that it stacks on before it."""
    return [each for name in names for each in (*(stack(_BELOW[name]) if name in _BELOW else ()), name)]


def shipped(*names: str) -> list[str]:
    """`--config` arguments for shipped configurations, with those that they stack on."""
    return [f"--config={CONFIGS / name}.yaml" for name in stack(*names)]


def shorter(names: tuple[str, ...], factor: int, folder: Path) -> list[str]:
    """`--config` arguments for copies of shipped configurations in which every number of steps is divided by `factor`.

    Nothing else changes: precision, strategy, callbacks and the order of phases are those that are shipped.
    """
    arguments = []
    for name in stack(*names):
        settings = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        path = folder / f"{name}_shorter.yaml"
        path.write_text(yaml.safe_dump(_divided(settings, factor), sort_keys=False))
        arguments.append(f"--config={path}")
    return arguments


def _divided(settings: Any, factor: int) -> Any:
    if isinstance(settings, list):
        return [_divided(item, factor) for item in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: max(1, value // factor) if key in _STEPS and isinstance(value, int) else _divided(value, factor)
        for key, value in settings.items()
    }
