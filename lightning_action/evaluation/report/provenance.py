"""Origin of a report: its weights, its data, and the versions of what made it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_action import __version__
from lightning_action.batch import Batch, first_samples, to_bytes
from lightning_action.evaluation.metrics.inverse_dynamics_model import InverseDynamicsModel
from lightning_action.weights.fingerprint import fingerprint


def data_fingerprint(batch: Batch) -> str:
    """Compute SHA-256 over the first sample of a test set, given its first batch, whatever kind of data it is.

    A simulator with other settings or another seed shows another first sample; what differs in later samples alone goes
    unseen. Videos count as bytes and other numbers in float32, so that the device does not matter.
    """
    digest = hashlib.sha256()
    for name, value in sorted(first_samples(batch, 1).items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {list(value.shape)}\n".encode())
            digest.update(_bytes_of(name, value.detach().float().cpu()))
        elif value is not None:
            digest.update(f"{name} {value}\n".encode())
    return digest.hexdigest()


def _bytes_of(name: str, values: Tensor) -> bytes:
    values = to_bytes(values) if name == "video" else values
    return values.contiguous().numpy().tobytes()


def installed_version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Name the versions of what computes a report, and the kind of device."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        "lightning_action": __version__,
        # The number that pip knows does not tell CUDA's builds from those for CPUs.
        "torch": str(torch.__version__),
        "lightning": version("lightning"),
        "python": platform.python_version(),
        "device": device,
    }


def reader_provenance(folder: str | Path, model: InverseDynamicsModel) -> dict[str, str]:
    """Say which inverse-dynamics model read the actions, of the folder that `inverse-dynamics` wrote."""
    return {"path": str(folder), "fingerprint": fingerprint(model.state_dict())}


def told_fingerprint(report: Mapping[str, Any], part: str) -> str | None:
    """Return the fingerprint of a part of a report's provenance, such as `checkpoint`; None where it does not say."""
    found = ((report.get("provenance") or {}).get(part) or {}).get("fingerprint")
    return None if found is None else str(found)
