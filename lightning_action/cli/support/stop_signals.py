"""Signals that ask a process to leave, noticed where it suits."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType


class StopSignals:
    """Notes SIGTERM and SIGINT; after the first, a second one ends the process at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def listen(self) -> None:
        """Take the place of the present handlers; only the main thread can."""
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = signal.Signals(number)
        said = f"\n{self.received.name}: the fit saves after this batch and leaves; a second one ends it at once\n"
        # Not by a stream or a logger, which the signal may have interrupted.
        os.write(2, said.encode())
