"""The entry point of the command line."""

from __future__ import annotations

import os
import sys

from lightning_action.compat import require_working_torchvision


def main(args: list[str] | None = None) -> None:
    """Run a verb; `args` replaces `sys.argv[1:]`."""
    # OpenMP threads spin while they wait for each other. On a machine that does anything else beside, the default makes
    # a training step up to 25 times slower; a short spin costs nothing on a calm one. Read when torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    require_working_torchvision()
    # Not at the top: lightning itself cannot be imported beside a broken torchvision.
    arguments = sys.argv[1:] if args is None else args
    verb, rest = arguments[:1], arguments[1:]
    if verb == ["check"]:
        from lightning_action.check.command import run_check

        run_check(rest)
    elif verb == ["export"]:
        from lightning_action.export import run_export

        run_export(rest)
    else:
        from lightning_action.command_line import leave_process_group, run

        run(args)
        leave_process_group()
