"""A fit that stopped goes on as if it had not, however it stopped: by what it sees and by what it computes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.strategies import DDPStrategy, ParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.utils.data import DataLoader, DistributedSampler

from lightning_action.callbacks import FreezeBackboneFirst
from lightning_action.cli.support.run_checkpoint import AtomicCheckpointIO, RunCheckpoint
from lightning_action.cli.trainer_verbs import run
from lightning_action.distributed.fsdp2 import FSDP2Strategy
from lightning_action.generation.sampling import Sampling
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.optimization import Optimization
from tests.support.forked_processes import end_of, start
from tests.support.shipped import shipped
from tests.support.small_commands import ROOT, SMALL_DATA, SMALL_MODEL
from tests.support.small_demo import small_data, small_demo

# Some fits end before a checkpoint is due.
pytestmark = pytest.mark.filterwarnings("ignore:nothing is saved before this fit ends")
# Five batches an epoch; 13 steps end in the middle of the third.
END = 13
Options = dict[str, Any]
ON_TWO: Options = {
    "devices": 2,
    "strategy": DDPStrategy(start_method="fork", process_group_backend="gloo", find_unused_parameters=True),
}
SHARDED: Options = {"devices": 1, "strategy": FSDP2Strategy(), "inference_mode": False, "freeze": False}


class Seen(L.Callback):
    """What each batch is, and when the module logs it."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, ...]] = []
        self.validations: list[int] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        axis, rates = trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.optimizers[0].param_groups
        place = (trainer.current_epoch, batch_idx, trainer.global_step, axis, [group["lr"] for group in rates])
        self.batches.append((*place, batch["sample_id"].tolist()))

        if isinstance(trainer.strategy, ParallelStrategy):
            with (Path(trainer.default_root_dir) / f"seen_by_{trainer.global_rank}").open("a") as file:
                file.write(json.dumps(self.batches[-1]) + "\n")

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.validations.append(trainer.global_step)


@dataclass
class At(L.Callback):
    """Does something to the Trainer at a step: at the end of a training batch, or of a validation's."""

    step: int
    act: Callable[[L.Trainer], Any]
    hook: str = "on_train_batch_end"

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_train_batch_end", trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_validation_batch_start", trainer)

    def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_validation_end", trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._act_at("on_train_epoch_end", trainer)

    def _act_at(self, hook: str, trainer: L.Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            self.act(trainer)


class CountedSaves(AtomicCheckpointIO):
    """Remembers of which step each save is."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        self.steps += [checkpoint["global_step"]] if "global_step" in checkpoint else []
        super().save_checkpoint(checkpoint, path, storage_options)


@dataclass
class Leg:
    """What a fit saw, and what it left."""

    folder: Path
    seen: Seen = field(default_factory=Seen)
    saves: CountedSaves = field(default_factory=CountedSaves)

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    def left(self) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(self.last, weights_only=True)
        return loaded


def stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True


@dataclass(frozen=True)
class Send:
    """Sends a signal to this process, on all ranks or on one."""

    number: signal.Signals
    only_rank: int | None = None

    def __call__(self, trainer: L.Trainer) -> None:
        if self.only_rank in (None, trainer.global_rank):
            os.kill(os.getpid(), self.number)


def fit(
    folder: Path,
    ckpt_path: Path | None = None,
    *,
    workers: int = 0,
    every: int | None = None,
    top_k: int = 0,
    overwrite: bool = False,
    freeze: bool = True,
    module: type[ActionVideoModule] = ActionVideoModule,
    data: L.LightningDataModule | None = None,
    decay: float = 0.0,
    optimization: Options | None = None,
    **options: Any,
) -> Leg:
    leg = Leg(folder)
    saver = RunCheckpoint(
        overwrite,
        dirpath=folder,
        save_last=True,
        save_top_k=top_k,
        enable_version_counter=False,
        every_n_train_steps=every,
    )
    first = FreezeBackboneFirst(["generator"], unfreeze_at_step=4, warmup_steps=3, learning_rate=2e-3)
    callbacks = [*([first] if freeze else []), leg.seen, *options.pop("callbacks", ()), saver]
    defaults: Options = {"max_steps": -1, "max_epochs": -1, "limit_val_batches": 0, "num_sanity_val_steps": 0}
    quiet: Options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        plugins=[leg.saves],
        callbacks=callbacks,
        **{**quiet, **defaults, **options},
    )
    if data is None:
        data = small_data()
        data.num_workers = workers
    settings = Optimization(**{"warmup_steps": 3, "decay_fraction": decay, **(optimization or {})})
    model = small_demo(optimization=settings, module_class=module)
    model.sampling = Sampling(num_inference_steps=1)
    trainer.fit(model, data, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    return leg


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Leg]:
    """`fit` from beginning to end, once for the same options."""

    @cache
    def fitted(**options: Any) -> Leg:
        return fit(tmp_path_factory.mktemp("uninterrupted"), **options)

    return fitted


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def assert_as_if_uninterrupted(whole: Leg, *legs: Leg, num_repeated: int = 0) -> None:
    batches = [batch for leg in legs for batch in leg.seen.batches]
    last = legs[-1].seen.batches
    assert last == whole.seen.batches[len(whole.seen.batches) - len(last) :]
    assert len(batches) == len(whole.seen.batches) + num_repeated
    ours, theirs = legs[-1].left(), whole.left()
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert same(ours[key], theirs[key]), key


def early_stop() -> Options:
    return {"callbacks": (EarlyStopping("validation/loss", stopping_threshold=1e9),), "limit_val_batches": 1}


def told(*arguments: Any) -> Callable[[], Options]:
    return lambda: {"callbacks": (At(*arguments),)}


MID, AT_END = 7, 10
# What ends the first fit, and whether that is known to the schedule of learning rates.
ENDS: dict[str, tuple[Callable[[], Options], bool]] = {
    "max_steps in mid-epoch": (lambda: {"max_steps": MID}, True),
    "max_steps at the end of an epoch": (lambda: {"max_steps": AT_END}, True),
    "max_steps where it was saved already": (lambda: {"max_steps": MID, "every": MID}, True),
    "max_epochs": (lambda: {"max_epochs": 2}, True),
    "max_epochs, saved with each": (lambda: {"max_epochs": 2, "top_k": 1}, True),
    "max_epochs, saved with a validation": (lambda: {"max_epochs": 2, "top_k": 1, "limit_val_batches": 1}, True),
    "max_time": (lambda: {"max_time": timedelta(microseconds=1), "min_steps": 3}, False),
    "told in mid-epoch": (told(MID, stop), False),
    "told at the last batch": (told(AT_END, stop), False),
    "told at the end of an epoch": (told(AT_END, stop, "on_train_epoch_end"), False),
    "early stop in mid-epoch": (lambda: {**early_stop(), "val_check_interval": 3}, False),
    "early stop at the end of an epoch": (early_stop, False),
    "SIGTERM in mid-epoch": (told(MID, Send(signal.SIGTERM)), False),
    "SIGINT at the last batch": (told(AT_END, Send(signal.SIGINT)), False),
}
LIMITS: dict[str, Options] = {"steps": {"max_steps": END}, "epochs": {"max_epochs": 3}}


@pytest.mark.parametrize("by", LIMITS)
@pytest.mark.parametrize("end", ENDS)
def test_every_end(end: str, by: str, tmp_path: Path, uninterrupted: Callable[..., Leg]) -> None:
    first, changes_schedule = ENDS[end]
    limits = {**LIMITS[by], "decay": 0.0 if changes_schedule else 0.5}
    with suppress(SystemExit):
        fit(tmp_path, **{**({"decay": 0.0} if changes_schedule else limits), **first()})
    num_steps = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert 0 < num_steps < END
    rest = fit(tmp_path, tmp_path / "last.ckpt", **limits)
    whole = uninterrupted(**limits)
    before = Leg(tmp_path)
    before.seen.batches = whole.seen.batches[:num_steps]
    assert_as_if_uninterrupted(whole, before, rest)


# What the data and the steps are, for a whole fit and for its parts.
SETTINGS: dict[str, Options] = {
    "accumulation": {"accumulate_grad_batches": 2},
    "limit_train_batches": {"limit_train_batches": 3},
    "a limit of half the batches": {"limit_train_batches": 0.5},
    "overfit_batches": {"overfit_batches": 2, "check_val_every_n_epoch": 99},
    "workers": {"workers": 2},
}


@pytest.mark.parametrize("stops_at", [3, 6])
@pytest.mark.parametrize("settings", SETTINGS)
def test_settings(settings: str, stops_at: int, tmp_path: Path, uninterrupted: Callable[..., Leg]) -> None:
    """An epoch has 3 steps with accumulation and with a limit, so that these are ends of epochs, else middles."""
    options = {**SETTINGS[settings], "max_steps": 8, "decay": 0.5}
    whole = uninterrupted(**options)
    first = fit(tmp_path, **options, callbacks=(At(stops_at, stop),))
    rest = fit(tmp_path, first.last, **options)
    num_repeated = len(first.seen.batches) + len(rest.seen.batches) - len(whole.seen.batches)
    assert num_repeated == 0
    assert_as_if_uninterrupted(whole, first, rest)


def test_gradients_that_were_not_stepped_with_are_made_again(tmp_path: Path, uninterrupted: Callable[..., Leg]) -> None:
    """After 4 of 5 batches, of which 3 make a step: the fourth is seen twice."""
    options = {"accumulate_grad_batches": 3, "max_steps": 5}
    first = fit(
        tmp_path, **options, callbacks=(At(1, lambda trainer: trainer.fit_loop.batch_idx == 3 and stop(trainer)),)
    )
    assert len(first.seen.batches) == 4
    rest = fit(tmp_path, first.last, **options)
    assert rest.seen.batches[0][:3] == (0, 3, 1)
    assert_as_if_uninterrupted(uninterrupted(**options), first, rest, num_repeated=1)


@pytest.mark.parametrize("by", LIMITS)
def test_a_fit_that_stopped_before_its_first_step_begins_anew(
    by: str, tmp_path: Path, uninterrupted: Callable[..., Leg]
) -> None:
    options = {"accumulate_grad_batches": 3, **LIMITS[by]}
    first = fit(
        tmp_path, **options, callbacks=(At(0, lambda trainer: trainer.fit_loop.batch_idx == 1 and stop(trainer)),)
    )
    assert len(first.seen.batches) == 2 and first.left()["global_step"] == 0
    rest = fit(tmp_path, first.last, **options)
    assert_as_if_uninterrupted(uninterrupted(**options), first, rest, num_repeated=2)


@pytest.mark.parametrize("by", LIMITS)
@pytest.mark.parametrize("stops", [(5, 10), (3, 11)])
def test_two_resumes_in_a_row(
    stops: tuple[int, int], by: str, tmp_path: Path, uninterrupted: Callable[..., Leg]
) -> None:
    legs: list[Leg] = []
    for step in (*stops, 0):
        legs.append(fit(tmp_path, legs[-1].last if legs else None, **LIMITS[by], callbacks=(At(step, stop),)))
    assert_as_if_uninterrupted(uninterrupted(**LIMITS[by]), *legs)


class AsksForSteps(ActionVideoModule):
    """As Lightning's documentation says it for schedulers, which begins with the data too early."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


@pytest.mark.parametrize("step", [MID, AT_END])
def test_optimizers_that_ask_for_the_number_of_steps(
    step: int, tmp_path: Path, uninterrupted: Callable[..., Leg]
) -> None:
    options = {"max_epochs": 3, "module": AsksForSteps, "freeze": False}
    first = fit(tmp_path, **options, callbacks=(At(step, stop),))
    rest = fit(tmp_path, first.last, **options)
    assert_as_if_uninterrupted(uninterrupted(**options), first, rest)


class OrdinaryLoader(L.LightningDataModule):
    """With a sampler that knows the epoch, and workers that load ahead."""

    def train_dataloader(self) -> DataLoader[Any]:
        dataset = small_data().dataset("train")
        return DataLoader(dataset, 3, sampler=DistributedSampler(dataset, 1, 0), num_workers=1, collate_fn=whole_batch)

    def codec_videos(self) -> Tensor:
        return small_data().codec_videos()


def whole_batch(batch: Any) -> Any:
    return batch


def test_an_ordinary_loader_goes_on_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    options: Options = {"max_steps": 7}
    whole = fit(tmp_path / "whole", **options, data=OrdinaryLoader())
    first = fit(tmp_path, max_steps=5, data=OrdinaryLoader())
    rest = fit(tmp_path, first.last, **options, data=OrdinaryLoader())
    assert_as_if_uninterrupted(whole, first, rest)


VALIDATED: Options = {"max_steps": 9, "limit_val_batches": 1, "val_check_interval": 3, "check_val_every_n_epoch": None}


@pytest.mark.parametrize(
    ("hook", "act"),
    [
        ("on_train_batch_end", Send(signal.SIGTERM)),
        ("on_validation_batch_start", Send(signal.SIGTERM)),
        ("on_validation_end", Send(signal.SIGINT)),
        ("on_validation_end", stop),
    ],
)
def test_every_validation_is_run_once(
    hook: str, act: Callable[[L.Trainer], Any], tmp_path: Path, uninterrupted: Callable[..., Leg]
) -> None:
    """One that was due when a signal came is run when the fit goes on; a switch that waits for it comes as it would."""
    whole = uninterrupted(**VALIDATED)
    first = Leg(tmp_path)
    with suppress(SystemExit):
        fit(tmp_path, **VALIDATED, callbacks=(first.seen, At(6, act, hook)))
    rest = fit(tmp_path, tmp_path / "last.ckpt", **VALIDATED)
    assert whole.seen.validations == [3, 6, 9] == first.seen.validations + rest.seen.validations
    assert_as_if_uninterrupted(whole, first, rest)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"max_steps": 4}, [4]),
        ({"max_steps": 4, "every": 2}, [2, 4]),
        ({"max_steps": 4, "every": 3}, [3, 4]),
        ({"max_epochs": 1, "every": 5}, [5]),
        ({"max_steps": 3, "fast_dev_run": True}, []),
        ({"max_steps": 3, "fast_dev_run": 2}, []),
    ],
)
def test_the_end_is_written_once(options: Options, steps: list[int], tmp_path: Path) -> None:
    assert fit(tmp_path, **options).saves.steps == steps
    assert [path.name for path in tmp_path.iterdir()] == (["last.ckpt"] if steps else [])


@pytest.mark.parametrize("every", [3, 7])
def test_killed(every: int, tmp_path: Path, uninterrupted: Callable[..., Leg]) -> None:
    """At the seventh step; what was saved last is what there is, and nobody holds the folder."""
    options: Options = {"max_steps": 9, "every": every}
    killing = partial(fit, tmp_path, **options, callbacks=(At(8, Send(signal.SIGKILL)),))
    assert end_of(start(tmp_path.with_suffix(".txt"), killing)) == -signal.SIGKILL
    assert (tmp_path / ".lock").exists()
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]
    assert saved == {3: 6, 7: 7}[every]
    before, rest = Leg(tmp_path), fit(tmp_path, tmp_path / "last.ckpt", **options)
    before.seen.batches = uninterrupted(max_steps=9).seen.batches[:saved]
    assert_as_if_uninterrupted(uninterrupted(max_steps=9), before, rest)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    def spoil_weight(trainer: L.Trainer) -> None:
        next(trainer.lightning_module.action_projection.parameters()).data.view(-1)[1] = float("nan")

    def spoil_moment(trainer: L.Trainer) -> None:
        next(iter(trainer.optimizers[0].state.values()))["exp_avg_sq"].view(-1)[2] = float("inf")

    fit(tmp_path, max_steps=2)
    for spoil, what in ((spoil_weight, "action_projection.*"), (spoil_moment, "the optimizer's exp_avg_sq")):
        spoiling = (At(3, spoil),)
        with pytest.raises(RuntimeError, match=f"not saved: {what} is not finite after step 3"):
            fit(tmp_path, tmp_path / "last.ckpt", max_steps=3, callbacks=spoiling)
        assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_settings_of_the_optimizer_are_those_of_the_configuration(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=3, decay=0.5)
    changed = {"action_learning_rate": 7e-3, "betas": (0.8, 0.9), "weight_decay": 0.2}
    told = r"learning rate of action 0.007 \(before: 0.001\), betas of action .*, weight_decay of backbone 0.2"
    with pytest.warns(UserWarning, match=told):
        rest = fit(tmp_path, tmp_path / "last.ckpt", max_steps=9, decay=0.5, optimization=changed)
    # Whole at step 3, after a warm-up of 3 steps; the first fit has ended with 1 / 3 of the rates.
    assert [batch[4] for batch in rest.seen.batches[:2]] == [[7e-3, 1e-3], [7e-3, 1e-3]]
    state = rest.left()["optimizer_states"][0]["param_groups"]
    assert [(g["initial_lr"], tuple(g["betas"]), g["weight_decay"]) for g in state] == [
        (7e-3, (0.8, 0.9), 0.2),
        (1e-3, (0.8, 0.9), 0.2),
    ]
    assert rest.left()["lr_schedulers"][0]["base_lrs"] == [7e-3, 1e-3]


def test_another_choice_of_what_trains_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"last.ckpt trained tensors of {'action': \d+, 'backbone': \d+}, the config"):
        fit(tmp_path, tmp_path / "last.ckpt", max_steps=2, freeze=False, optimization={"train_backbone": False})
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


def test_one_fit_at_a_time_and_none_replaces_another(tmp_path: Path) -> None:
    def begin_another(trainer: L.Trainer) -> None:
        with pytest.raises(
            BlockingIOError, match=f"{tmp_path} is being written to by process {os.getpid()} on .*since"
        ):
            fit(tmp_path, max_steps=1, overwrite=True)

    first = fit(tmp_path, max_steps=2, callbacks=(At(1, begin_another),))
    elsewhere = fit(tmp_path / "elsewhere", max_steps=1)
    for ckpt_path in (None, elsewhere.last):
        with pytest.raises(FileExistsError, match="last.ckpt is the end of another fit"):
            fit(tmp_path, ckpt_path, max_steps=3)
    assert first.left()["global_step"] == 2
    with pytest.warns(UserWarning, match="this fit replaces .*last.ckpt, the end of another"):
        assert fit(tmp_path, max_steps=1, overwrite=True).left()["global_step"] == 1
    assert fit(tmp_path, first.last, max_steps=3).left()["global_step"] == 3


@pytest.mark.distributed
@pytest.mark.parametrize("end", ["max_steps", "a signal to one rank"])
def test_two_ranks(end: str, tmp_path: Path) -> None:
    """An epoch has two batches on each: a stop in mid-epoch, and one at an epoch's end."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    limit = {"max_steps": 5, "every": 5}
    fit_apart(whole, **ON_TWO, **limit)
    if end == "max_steps":
        fit_apart(parts, **ON_TWO, max_steps=2)
        fit_apart(parts, parts / "last.ckpt", **ON_TWO, max_steps=3)
    else:
        fit_apart(parts, **ON_TWO, **limit, callbacks=(At(3, Send(signal.SIGTERM, only_rank=1)),), exit_code=1)
        assert "terminated with exit code 143" in parts.with_suffix(".txt").read_text()
        assert torch.load(parts / "last.ckpt", weights_only=True)["global_step"] == 3
    fit_apart(parts, parts / "last.ckpt", **ON_TWO, **limit)
    for rank in (0, 1):
        seen = [(folder / f"seen_by_{rank}").read_text() for folder in (whole, parts)]
        assert seen[0] == seen[1] and len(seen[0].splitlines()) == 5
    assert same(Leg(parts).left()["state_dict"], Leg(whole).left()["state_dict"])


@pytest.mark.distributed
def test_sharded(tmp_path: Path) -> None:
    """At a signal in mid-epoch, and at an epoch's end."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    fit_apart(whole, **SHARDED, max_steps=6)
    fit_apart(parts, **SHARDED, max_steps=6, callbacks=(At(3, Send(signal.SIGTERM)),), exit_code=128 + signal.SIGTERM)
    fit_apart(parts, parts / "last.ckpt", **SHARDED, max_steps=5)
    fit_apart(parts, parts / "last.ckpt", **SHARDED, max_steps=6)
    seen = [(folder / "seen_by_0").read_text() for folder in (whole, parts)]
    assert seen[0] == seen[1] and len(seen[0].splitlines()) == 6
    left = [read_shards(folder / "last.ckpt") for folder in (whole, parts)]
    assert left[0] and same(left[0], left[1])


def fit_apart(folder: Path, ckpt_path: Path | None = None, *, exit_code: int = 0, **options: Any) -> None:
    """In a process of its own, which has the process group."""
    folder.mkdir(exist_ok=True)
    assert end_of(start(folder.with_suffix(".txt"), partial(fit, folder, ckpt_path, **options))) == exit_code


def read_shards(path: Path) -> dict[str, Any]:
    whole = path.with_suffix(".pt")
    dcp_to_torch_save(path, whole)
    read: dict[str, Any] = torch.load(whole, weights_only=False)
    return read


def test_the_command_line_saves_on_a_signal_and_goes_on(tmp_path: Path) -> None:
    arguments = ["fit", *shipped("demo_backbone"), f"--trainer.default_root_dir={tmp_path}", *SMALL_MODEL, *SMALL_DATA]
    last = tmp_path / "checkpoints" / "last.ckpt"
    more = ["--trainer.max_steps=1000000", "--checkpoint.every_n_train_steps=10"]
    started = subprocess.Popen([sys.executable, "main.py", *arguments, *more], cwd=ROOT, stderr=subprocess.PIPE)
    while not last.exists() and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    said = started.communicate(timeout=60)[1].decode()
    assert started.returncode == 128 + signal.SIGTERM, said
    assert f"saved {last}" in said and "Traceback" not in said
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    stopped = torch.load(last, weights_only=True)["global_step"]
    run([*arguments, f"--trainer.max_steps={stopped + 2}", f"--ckpt_path={last}"])
    assert torch.load(last, weights_only=True)["global_step"] == stopped + 2
