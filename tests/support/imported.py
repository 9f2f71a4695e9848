"""What a process that others are copied from imports; it stays, and the collector of garbage need not look at it."""

from __future__ import annotations

import gc

import lightning_action.callbacks
import lightning_action.cli.trainer_verbs  # noqa: F401

gc.freeze()
