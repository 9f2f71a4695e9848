"""The names of the verbs."""

from __future__ import annotations

# Each is a function of a module of its own, `check.run_check`, which may answer whether all is well.
WITHOUT_TRAINER = (
    *("selfcheck", "record", "inspect", "check", "encode", "inverse-dynamics", "export", "evaluate", "compare"),
    *("play", "replay"),
)
VERBS = ("fit", "validate", "test", "predict", *WITHOUT_TRAINER)
