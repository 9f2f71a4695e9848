from __future__ import annotations

import os
import signal
from multiprocessing import get_context
from pathlib import Path
from time import sleep

import pytest

from lightning_action.cli.support.folder_lock import FolderLock


def hold(folder: Path) -> None:
    lock = FolderLock(folder)
    lock.acquire()
    (folder / "held").touch()
    sleep(60)


def test_one_at_a_time_and_nothing_stays(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    first, second = FolderLock(folder), FolderLock(folder)
    first.acquire()
    with pytest.raises(BlockingIOError, match=f"{folder} is being written to by process {os.getpid()} on .*: wait for"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    second.release()
    assert list(folder.iterdir()) == []


def test_it_dies_with_its_process(tmp_path: Path) -> None:
    process = get_context("fork").Process(target=hold, args=(tmp_path,))
    process.start()
    while not (tmp_path / "held").exists():
        sleep(0.01)
    lock = FolderLock(tmp_path)
    with pytest.raises(BlockingIOError, match=f"process {process.pid} on"):
        lock.acquire()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lock.acquire()
    assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    lock.release()
