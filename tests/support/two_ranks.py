"""The command line on two gloo processes: started once, they wait for the commands of all tests of this process."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_action.cli.trainer_verbs import run
from tests.support.forked_processes import FORKS, PLACE, TIMEOUT_SECONDS, random_port, start_rank, write_to

NUM_RANKS = 2


class RankFailed(AssertionError):
    """A command failed on a rank, or the rank died; both ranks are gone."""


def run_on_two(*commands: list[str]) -> str:
    """Run commands one after another on both ranks, and return what these print.

    Raises:
        RankFailed: A command failed or a rank died; the message holds what both ranks printed.
    """
    return _ranks().run([[*command, f"--trainer.devices={NUM_RANKS}"] for command in commands])


class _Ranks:
    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="two_ranks")
        place = {"WORLD_SIZE": str(NUM_RANKS), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random_port())}
        pairs = [FORKS.Pipe() for _ in range(NUM_RANKS)]
        self._connections = [ours for ours, _ in pairs]
        self._outputs = [Path(self._folder.name) / f"rank_{rank}" for rank in range(NUM_RANKS)]
        self._processes = [
            start_rank(rank, place, self._outputs[rank], _serve, theirs, self._outputs[rank])
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for _, theirs in pairs:
            theirs.close()  # so that a rank that dies is an end of file
        atexit.register(self.end)

    def run(self, commands: list[list[str]]) -> str:
        for connection in self._connections:
            connection.send((commands, dict(os.environ)))
        waiting = list(self._connections)
        while waiting:
            ready = wait(waiting, TIMEOUT_SECONDS)
            for connection in ready:
                waiting.remove(connection)
            failures = [_failure(connection) for connection in ready] or ["no answer"]
            if any(failures):
                said = self._said()[-6000:]
                self.end()
                raise RankFailed("\n".join([*failures, said]))
        return self._said()

    def end(self) -> None:
        _ranks.cache_clear()
        atexit.unregister(self.end)
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def _said(self) -> str:
        return "\n".join(output.read_text() for output in self._outputs)


@cache
def _ranks() -> _Ranks:
    return _Ranks()


def _failure(connection: Connection) -> str:
    try:
        said: str = connection.recv()
    except EOFError:
        return "a rank died"
    return said


def _serve(connection: Connection, output: Path) -> None:
    place = {name: os.environ[name] for name in PLACE}
    with suppress(EOFError):  # the tests are over
        while True:
            commands, environment = connection.recv()
            os.environ.clear()
            os.environ |= environment | place
            write_to(output)
            failure = ""
            try:
                for command in commands:
                    run(command)
            except BaseException:
                failure = traceback.format_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            connection.send(failure)
    os._exit(0)  # gloo may abort a process that ends in the ordinary way
