"""The verbs of the command line."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.util import find_spec

from lightning_action.cli.support.mistakes import INTERRUPTED, TRACEBACK_FLAG, report, wants_traceback
from lightning_action.cli.support.usage_messages import WITHOUT_TRAINER


def main(args: list[str] | None = None) -> None:
    """Run a verb; `args` replaces `sys.argv[1:]`.

    Raises:
        SystemExit: The command ended by a mistake, a failure of the machine, an interruption or `--help`.
    """
    # OpenMP threads spin while they wait for each other. On a machine that does anything else beside, the default makes
    # a training step up to 25 times slower; a short spin costs nothing on a calm one. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        code = run_verb([argument for argument in arguments if argument != TRACEBACK_FLAG])
    except (KeyboardInterrupt, SystemExit) as stopped:
        # Lightning turns the one into the other.
        if not isinstance(stopped, KeyboardInterrupt) and not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        code = INTERRUPTED
    except BaseException as error:
        reported = report(error, wants_traceback(arguments))
        if reported is None:
            raise
        code = reported
    if "lightning_action.cli.trainer_verbs" in sys.modules:
        from lightning_action.cli.trainer_verbs import leave_process_group

        leave_process_group(code)
    if code:
        sys.exit(code)


def run_verb(arguments: list[str]) -> int:
    """Run a verb, and give its exit code; mistakes are exceptions."""
    require_working_torchvision()
    # Not at the top: lightning itself cannot be imported beside a broken torchvision.
    if arguments and arguments[0] in WITHOUT_TRAINER:
        name = arguments[0].replace("-", "_")
        answer = getattr(import_module(f"lightning_action.cli.{name}"), f"run_{name}")(arguments[1:])
        return 1 if answer is False else 0
    from lightning_action.cli.trainer_verbs import run

    run(arguments)
    return 0


def require_working_torchvision() -> None:
    """Refuse to start beside a torchvision that cannot be imported; without torchvision nothing is imported.

    lightning, torchmetrics, transformers and diffusers import torchvision wherever it is installed, and a build that
    does not match torch (a CUDA build beside a CPU torch, say) makes them fail with errors that blame something else.
    So call this before any of them is imported.

    Raises:
        ImportError: The package torchvision is installed and its import fails.
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
