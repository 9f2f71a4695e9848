"""Trouble in the environment that is better named at the start than met in the middle."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec


def require_working_torchvision() -> None:
    """Refuse to start beside a torchvision that cannot be imported; without torchvision nothing is imported.

    lightning, torchmetrics, transformers and diffusers import torchvision wherever it is installed, and a build that
    does not match torch (a CUDA build beside a CPU torch, say) makes them fail with errors that blame something else.
    So call this before any of them is imported.

    Raises:
        ImportError: torchvision is installed and its import fails.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except Exception as error:
        raise ImportError(
            "expected torchvision to be absent or to work, but it is installed and its import fails with "
            f"{type(error).__name__}: {error}. lightning cannot be imported beside it, and lightning_action does not "
            "need it: uninstall it (pip uninstall torchvision) or install the build that matches your torch."
        ) from error
