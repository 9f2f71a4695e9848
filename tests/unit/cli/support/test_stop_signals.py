"""Asked once, a process finishes what it does; asked twice, it does not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

from lightning_action.cli.support.stop_signals import StopSignals

ROOT = Path(__file__).parents[4]


def test_a_second_signal_ends_a_process_at_once() -> None:
    code = """
import os, signal
from lightning_action.cli.support.stop_signals import StopSignals
signals = StopSignals()
signals.listen()
os.kill(os.getpid(), signal.SIGINT)
assert signals.received is signal.SIGINT
os.kill(os.getpid(), signal.SIGTERM)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == -signal.SIGTERM
    assert result.stderr.strip() == "SIGINT: the fit saves after this batch and leaves; a second one ends it at once"


def test_other_threads_leave_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    thread = Thread(target=signals.listen)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before and signals.received is None
