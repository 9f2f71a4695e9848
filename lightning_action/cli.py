"""The entry point of the command line."""

from __future__ import annotations

import os

from lightning_action.compat import require_working_torchvision


def main(args: list[str] | None = None) -> None:
    """Run a verb; `args` replaces `sys.argv[1:]`."""
    # OpenMP threads spin while they wait for each other. On a machine that does anything else beside, the default makes
    # a training step up to 25 times slower; a short spin costs nothing on a calm one. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    require_working_torchvision()
    # Not at the top: lightning itself cannot be imported beside a broken torchvision.
    from lightning_action.command_line import run

    run(args)
