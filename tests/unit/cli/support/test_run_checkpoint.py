"""What a fit does with it is in tests/integration/test_resume.py."""

from __future__ import annotations

import signal
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_action.cli.support.run_checkpoint import RunCheckpoint
from tests.support.short_fits import quiet_trainer


class Handlers(L.Callback):
    """Who handles signals when training has begun."""

    def on_train_batch_start(self, *_: object) -> None:
        self.found = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize("in_slurm", [True, False])
def test_signals_under_slurm_are_lightnings(in_slurm: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if in_slurm:
        for name, value in {"NTASKS": "1", "JOB_NAME": "a", "JOB_ID": "1", "PROCID": "0", "LOCALID": "0"}.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    handlers = Handlers()
    saver = RunCheckpoint(dirpath=tmp_path / "run", save_last=True)
    quiet_trainer(tmp_path, handlers, saver, max_steps=1, enable_checkpointing=True).fit(BoringModel())
    ours = [getattr(handler, "__self__", None) is saver._signals for handler in handlers.found]
    assert ours == [not in_slurm, not in_slurm]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_fit_that_a_kill_would_lose_is_warned_of(tmp_path: Path) -> None:
    saver = RunCheckpoint(dirpath=tmp_path, save_last=True, save_top_k=0)
    with pytest.warns(UserWarning, match="nothing is saved before this fit ends.*checkpoint.every_n_train_steps"):
        quiet_trainer(tmp_path, saver, max_steps=1, enable_checkpointing=True).fit(BoringModel())
