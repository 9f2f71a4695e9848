"""The scale of a LoRA, from what its file says beside the tensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_action.weights.tensor_files import flattened, has_header, read_values

# Names of the numerator in trainers: peft, diffusers and SimpleTuner; kohya and musubi; lightx2v and others.
_ALPHAS = ("lora_alpha", "ss_network_alpha", "network_alpha", "alpha")
# Other things than LoRA have these names too, so that one counts only where one of these stands before it.
_COMMON_WORD, _OWNERS = "alpha", ("", "transformer", "lora", "lora_config", "adapter")
_SPECIAL = ("use_rslora", "use_dora", "alpha_pattern", "use_qalora", "use_bdlora", "alora_invocation_tokens")
# Initialisations of peft that take something out of the base, which is then not the one that a user has.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_UNSET = ("", "false", "0", "none", "null", "{}", "[]")
_OTHER_NETWORKS = ("text_encoder", "critic")
_CONFIGURATIONS = ("lora_adapter_metadata", "lora_config", "peft_config", "adapter_config")
_REMEDY = "correct the file, or give the right alpha to `load_generator` as `lora_alpha`"

Told = Sequence[tuple[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Alpha:
    """Numerator of the scale `alpha / rank`.

    Args:
        value: Number; None is the rank of each layer, for a scale of 1.
        origin: Place where it was found, for messages.
    """

    value: float | None
    origin: str


def read_told(file: Path) -> Told:
    """Read what a LoRA file says of itself: places, the one that counts first, with their settings by dotted name.

    These are the header of a safetensors file or the plain values of a file of `torch.save`, and for
    `adapter_model.*` the `adapter_config.json` beside it, which describes no other file.

    Raises:
        ValueError: A configuration is not JSON, or `adapter_config.json` gives no `lora_alpha`.
    """
    told = [(f"the header of {file}" if has_header(file) else str(file), _settings(file))]
    config = file.parent / "adapter_config.json"
    if file.name.startswith("adapter_model.") and config.is_file():
        settings = _parsed(config.read_bytes(), str(config))
        if settings.get("lora_alpha") is None:
            raise ValueError(f"{config} is no configuration of a LoRA: expected JSON with `lora_alpha`")
        told.append((str(config), settings))
    return told


def require_plain(told: Told) -> None:
    """Refuse a LoRA that is said to be another product than `alpha / rank * up @ down`, or made for another base.

    Raises:
        ValueError: The LoRA is of a kind that is not plain LoRA; the message names the settings.
    """
    for place, settings in told:
        special = [name for name, value in settings.items() if _is_special(name, value)]
        if special:
            raise ValueError(
                f"{place} sets {', '.join(special)}: only plain LoRA with one alpha can be merged; merge it with the "
                "library that wrote it, and load the whole generator"
            )


def find_alpha(told: Told) -> Alpha:
    """Return the alpha of the first place that gives one, else the rank.

    Raises:
        ValueError: The alpha is not a finite number above 0, or one place gives several.
    """
    for place, settings in told:
        alphas = {name: settings[name] for name in sorted(settings) if _is_alpha(name)}
        found = {name: as_alpha(value, f"{name} in {place}") for name, value in alphas.items()}
        if len(set(found.values())) > 1:
            several = ", ".join(f"{name} {value:g}" for name, value in found.items())
            raise ValueError(f"{place} contradicts itself ({several}): {_REMEDY}")
        if found:
            name, value = next(iter(found.items()))
            return Alpha(value, f"{name} in {place}")
    return Alpha(None, "the rank, as the file says nothing")


def as_alpha(value: Any, name: str) -> float:
    """Return a number that can be an alpha. Raises ValueError, with `name`, for anything else."""
    single = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    try:
        alpha = math.nan if isinstance(single, (bool, Tensor)) else float(single)
    except (TypeError, ValueError):
        alpha = math.nan
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"{name} is {single!r}: expected the alpha of a LoRA, a finite number above 0; {_REMEDY}")
    return alpha


def _is_alpha(name: str) -> bool:
    owner, _, key = name.rpartition(".")
    return key in _ALPHAS and not name.startswith(_OTHER_NETWORKS) and (key != _COMMON_WORD or owner in _OWNERS)


def _is_special(name: str, value: Any) -> bool:
    last = name.rpartition(".")[2]
    if name.startswith(_OTHER_NETWORKS):
        return False
    if last == "init_lora_weights":
        return str(value).lower().startswith(_CHANGES_BASE)
    if last == "peft_type":
        return "LORA" not in re.split(r"\W+", str(value))
    return any(piece in _SPECIAL for piece in name.split(".")) and str(value).strip().lower() not in _UNSET


def _settings(file: Path) -> dict[str, Any]:
    """Return a file's values with JSON opened: those of a known configuration as such, others below their name."""
    settings: dict[str, Any] = {}
    for name, value in read_values(file).items():
        if isinstance(value, str) and name.endswith(_CONFIGURATIONS):
            settings |= _parsed(value, f"{name} in {file}")
        elif isinstance(value, str) and (opened := _object(value)) is not None:
            settings |= flattened(opened, f"{name}.")
        else:
            settings[name] = value
    return settings


def _parsed(text: str | bytes, place: str) -> dict[str, Any]:
    settings = _object(text)
    if settings is None:
        raise ValueError(f"{place} is no configuration of a LoRA: expected JSON with `lora_alpha`")
    return dict(flattened(settings))


def _object(text: str | bytes) -> dict[str, Any] | None:
    """Return the object that a text is the JSON of; None if it is not."""
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None
