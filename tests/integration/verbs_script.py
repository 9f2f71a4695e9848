"""Runs several commands one after another in each process of a group: `verbs_script.py commands.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning_action.command_line import leave_process_group, run

if __name__ == "__main__":
    for command in json.loads(Path(sys.argv[1]).read_text()):
        run(command)
    leave_process_group()
