"""The `config.json` that diffusers and transformers write beside weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def config_beside(weights: Path, key: str, value: str) -> dict[str, Any] | None:
    """What `config.json` in the folder of `weights` says; None without one, or if its `key` is not `value`.

    Raises:
        ValueError: it is not JSON.
    """
    path = (weights if weights.is_dir() else weights.parent) / "config.json"
    if not path.is_file():
        return None
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): fetch it again") from error
    return config if config.get(key) == value else None
