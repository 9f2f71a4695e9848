"""End of a command: one message for a mistake, its traceback where one asks for it, and an exit code."""

from __future__ import annotations

import linecache
import os
import re
import sys
import time
import traceback

TRACEBACK_FLAG = "--traceback"
TRACEBACK_VARIABLE = "LIGHTNING_ACTION_TRACEBACK"
OF_THE_MACHINE, OF_THE_USER, INTERRUPTED = 1, 2, 130

# BlockingIOError: another fit holds the lock of the folder.
_WRONG_PATHS = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, BlockingIOError)
# Of packages that may not be installed, or that are slow to import.
_NAMES_OF_MISTAKES = {
    *("MisconfigurationException", "YAMLError", "SafetensorError", "UnpicklingError", "BadZipFile"),
    *("CheckpointException", "DependencyNotInstalled"),
}
_MACHINE_FAILS = re.compile(
    r"out of memory|not enough memory|alloc\w* memory|no space left|CUDA error|CUDA driver|cuDNN|cuBLAS|NCCL|gloo"
    r"|connection (closed|reset|refused)|inline_container|unexpected pos",
    re.IGNORECASE,
)
# What torch's kernels say, which do not raise in Python, about tensors and devices that they were given.
_TORCH_REFUSES = re.compile(
    r"shapes? |size mismatch|sizes? of tensor|must match|same (device|dtype|size)|expected scalar type|expected input"
    r"|invalid for input of size|not implemented for|invalid device|device type|GPUs are available|not compiled with"
    r"|driver",
    re.IGNORECASE,
)
_IN_A_WORKER = re.compile(r"^Caught .*?Original Traceback.*^[\w.]+: ", re.DOTALL | re.MULTILINE)
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
_SECONDS_FOR_THE_FIRST_RANK, _SECONDS_FOR_ANOTHER_RANK = 20.0, 3.0
# What a rank says when another has gone.
_CUT_OFF = re.compile(r"connection (closed|reset) by peer", re.IGNORECASE)


class UsageError(ValueError):
    """A command line or a configuration is not understood."""


def exit_code(error: BaseException) -> int | None:
    """Return 2 for a mistake of the user, 1 for a failure of the machine, None for neither: a fault of the program."""
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, OSError):
        return OF_THE_USER if isinstance(error, _WRONG_PATHS) else OF_THE_MACHINE
    if isinstance(error, ValueError | ImportError) or names & _NAMES_OF_MISTAKES:
        return OF_THE_USER
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _MACHINE_FAILS.search(str(error))):
        return OF_THE_MACHINE
    torch_says = isinstance(error, RuntimeError | AssertionError) and _TORCH_REFUSES.search(str(error))
    said = _raised_on_purpose(error)
    if (torch_says and not _is_ours(error)) or (said and isinstance(error, RuntimeError)):
        return OF_THE_USER
    return OF_THE_USER if said and _is_ours(error) and isinstance(error, TypeError) else None


def report(error: BaseException, with_traceback: bool) -> int | None:
    """Say on stderr what went wrong, once for all ranks, and give the exit code; None if that is Python's to do."""
    code = exit_code(error)
    if code is None or (process_rank() > 0 and _first_rank_ends()):
        return code
    if process_rank() == 0 and _CUT_OFF.search(str(error)) and (told := _code_of_another_rank()):
        return told
    if with_traceback:
        traceback.print_exception(error)
    hint = "" if with_traceback else f" ({TRACEBACK_FLAG} or {TRACEBACK_VARIABLE}=1 shows where)"
    sys.stdout.flush()
    print(f"error: {one_paragraph(error)}{hint}", file=sys.stderr, flush=True)
    return code


def one_paragraph(error: BaseException) -> str:
    """Write the message of an error in one line, without the traceback that a DataLoader's worker puts around it."""
    text = _IN_A_WORKER.sub("", str(error)).strip() or type(error).__name__
    return re.sub(r"\s*\n\s*", " ", text)


def wants_traceback(arguments: list[str]) -> bool:
    """Tell whether a command line or the environment asks for tracebacks."""
    return TRACEBACK_FLAG in arguments or os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0")


def _raised_on_purpose(error: BaseException) -> bool:
    """Tell whether it comes from a `raise`, not from an operation that failed."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and linecache.getline(frames[-1][0].f_code.co_filename, frames[-1][1]).strip().startswith(
        "raise"
    )


def _is_ours(error: BaseException) -> bool:
    frames = list(traceback.walk_tb(error.__traceback__))
    return bool(frames) and str(frames[-1][0].f_globals.get("__name__")).split(".")[0] == "lightning_action"


def process_rank() -> int:
    """Return this process's place among those of a run, 0 for the first or only one."""
    return next((int(os.environ[name]) for name in _RANK_VARIABLES if os.environ.get(name, "").isdecimal()), 0)


def _code_of_another_rank() -> int:
    """Return the code with which a process that this one started has ended, after it told why; 0 if none has."""
    until = time.monotonic() + _SECONDS_FOR_ANOTHER_RANK
    while time.monotonic() < until:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0
        if process and (code := os.waitstatus_to_exitcode(status)) in (OF_THE_MACHINE, OF_THE_USER):
            return code
        time.sleep(0.05)
    return 0


def _first_rank_ends() -> bool:
    """Wait for the process that started this one, which has usually met the same mistake and told it."""
    parent, until = os.getppid(), time.monotonic() + _SECONDS_FOR_THE_FIRST_RANK
    while os.getppid() == parent and time.monotonic() < until:
        time.sleep(0.05)
    return os.getppid() != parent
