"""The entry point of the command line."""

from __future__ import annotations

from lightning_action.compat import require_working_torchvision


def main(args: list[str] | None = None) -> None:
    """Run a verb; `args` replaces `sys.argv[1:]`."""
    require_working_torchvision()
    # Not at the top: lightning itself cannot be imported beside a broken torchvision.
    from lightning_action.command_line import run

    run(args)
