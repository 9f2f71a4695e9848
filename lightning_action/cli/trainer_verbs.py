"""`fit`, `validate`, `test` and `predict` through LightningCLI."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence

import torch.distributed as dist

from lightning_action.cli.support.trainer_cli import ActionVideoCLI, SaveConfigOfVerb
from lightning_action.cli.support.usage import program_name
from lightning_action.cli.support.usage_messages import shipped_configurations
from lightning_action.configuration.class_paths import ALLOW_HELP

# These are not methods of a Trainer; `cli` runs them.
_EPILOG = (
    "Besides: `selfcheck`, which says in a minute what is installed and whether it works; `record`, which records an "
    "environment as a data set; `inspect`, which says what is in a data set, and whether its actions are aligned; "
    "`check`, a dry run of a configuration without weights or GPU; `encode`, which runs the frozen parts over the data "
    "once, so that `fit` need not; `export`, which writes a trained generator or its actions to files that others "
    "read; `inverse-dynamics`, which trains what reads actions off videos, for `test`; `evaluate`, which says which of "
    "two tested models obeys better, measures videos that other programs made, and writes rollouts for another judge; "
    "`compare`, which says what 8 bits change in a trained model; `play`, which opens a page where keys drive what a "
    "trained model generates, and `replay`, which plays a recorded session again, bit for bit. --help after them says "
    "more. --traceback, after any verb, shows where an error was raised. "
    f"Configurations to begin with are in {shipped_configurations()}. {ALLOW_HELP}"
)


def run(args: Sequence[str]) -> ActionVideoCLI:
    """Run the verb that `args` begin with. Raises as `ActionVideoCLI`."""
    return ActionVideoCLI(
        args,
        save_config_callback=SaveConfigOfVerb,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "epilog": _EPILOG,
            "prog": program_name(),
            **{verb: {"epilog": ALLOW_HELP} for verb in ActionVideoCLI.subcommands()},
        },
    )


def leave_process_group(exit_code: int = 0) -> None:
    """End the communication between ranks, and where that is gloo's the process, for it aborts some as they exit.

    One that aborts takes the others with it, who may still be writing. After a failure nobody waits for the others.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    may_abort = dist.get_world_size() > 1 and (dist.get_backend() == "gloo" or exit_code != 0)
    if exit_code == 0:
        if may_abort:
            dist.barrier()
        # What still uses it is in circles of references.
        gc.collect()
        dist.destroy_process_group()
    if may_abort:
        # `os._exit` skips what is registered for the end of a process, and nothing public runs it.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
