"""The four commands of the demo, small: every shipped config is run, with sizes overridden from the command line."""

from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import docstring_parser
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from lightning_action import (
    ActionFileDataModule,
    ActionVideoModule,
    BlockCausality,
    SpriteDataModule,
)
from lightning_action.callbacks import ActionScan
from lightning_action.cli import main
from lightning_action.cli.check import run_check
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.trainer_cli import warn_of_another_place
from lightning_action.cli.trainer_verbs import run
from lightning_action.generator.network import WanNetwork
from tests.support.shipped import shipped
from tests.support.small_commands import ACTION, ROOT, SMALL_DATA, SMALL_MODEL, checkpoint, last_checkpoint, small
from tests.support.two_ranks import run_on_two

# Of a model that has trained for some steps.
pytestmark = [
    pytest.mark.filterwarnings("ignore:DriftMonitor. generated videos drift"),
    pytest.mark.usefixtures("few_draws"),
]
QUALITY = {
    *("sign_accuracy", "gain_x", "gain_y", "r2_x", "r2_y", "lag_frames"),
    *("delta_psnr_db", "swapped_win_rate", "ade_px"),
}
# Of rollouts whose length does not matter: two latent frames are generated.
SHORT = ("--data.init_args.num_latents=3", "--data.init_args.test_size=4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which both fits of the demo ran, small."""
    folder = tmp_path_factory.mktemp("demo")
    backbone = folder / "backbone"
    run(
        [
            "fit",
            *shipped("demo_backbone"),
            f"--trainer.default_root_dir={backbone}",
            "--trainer.max_steps=3",
            *SMALL_MODEL,
            *SMALL_DATA,
        ]
    )
    run(small("fit", folder, "--trainer.max_steps=6", "--trainer.val_check_interval=3"))
    yield folder


def test_fit_leaves_checkpoint_backbone_config_and_tensorboard(trained: Path) -> None:
    assert (trained / "backbone" / "generator.safetensors").is_file()
    assert last_checkpoint(trained).is_file()
    assert list(trained.glob("lightning_logs/version_*/events.*"))
    saved = yaml.safe_load(next(trained.glob("lightning_logs/version_*/config_fit.yaml")).read_text())
    assert saved["model"]["generator"]["init_args"]["dim"] == 24


def test_last_checkpoint_is_the_end_of_the_fit(trained: Path) -> None:
    """Though 6 is no multiple of `every_n_train_steps`."""
    assert torch.load(last_checkpoint(trained), weights_only=True)["global_step"] == 6


def test_fit_after_test_in_one_process(trained: Path, tmp_path: Path) -> None:
    """What a test computes and keeps for later calls, under inference mode, must serve training too."""
    # Of a length that nothing before it has: what is kept is new.
    shape = ("--data.init_args.num_latents=4", f"--trainer.default_root_dir={tmp_path}")
    run(small("test", trained, checkpoint(trained), "--data.init_args.test_size=2", *shape))
    run(small("fit", trained, "--trainer.max_steps=2", "--trainer.limit_val_batches=0", *shape))


def test_half_precision(trained: Path, tmp_path: Path) -> None:
    for precision in ("bf16-true", "bf16-mixed"):
        more = (f"--trainer.precision={precision}", f"--trainer.default_root_dir={tmp_path / precision}", *SHORT)
        run(small("fit", trained, "--trainer.max_steps=2", *more))
        run(small("predict", trained, checkpoint(tmp_path / precision), *more))
        assert (tmp_path / precision / "predictions" / "000002.mp4").is_file()


def test_discrete_actions_stack_on_the_demo(trained: Path, tmp_path: Path) -> None:
    overlay = (f"--config={ROOT / 'configs' / 'discrete.yaml'}", f"--trainer.default_root_dir={tmp_path}")

    def discrete(verb: str, *more: str) -> list[str]:
        arguments = small(verb, trained, *SHORT, *more)
        return [*arguments[:2], *overlay, *arguments[3:]]

    run(discrete("fit", "--trainer.max_steps=2", "--trainer.limit_val_batches=0"))
    run(discrete("test", checkpoint(tmp_path)))
    run(discrete("predict", checkpoint(tmp_path)))
    about = json.loads((tmp_path / "predictions" / "000001.json").read_text())
    assert {row[0] for row in about["action"]} <= {0, 1, 2, 3, 4}
    assert (tmp_path / "action_scan.png").is_file() and (tmp_path / "report.json").is_file()


@pytest.mark.parametrize(
    "more",
    [
        ["--model.sampling.num_initial_latents=0"],
        ["--model.sampling.action_guidance_scale=2.0", "--data.init_args.eval_batch_size=1"],
        ["--model.sampling.denoising_step_list=[1000, 500]"],
        ["--data.init_args.world.init_args.second_object=true", "--data.init_args.world.init_args.background=busy"],
        ["--model.causality.num_frame_per_block=2", "--model.causality.independent_first_frame=true"],
        # So long that a frame leaves the window.
        ["--model.causality.local_attn_size=3", "--model.causality.sink_size=1", "--data.init_args.num_latents=4"],
    ],
    ids=lambda more: more[0].split(".")[-1],
)
def test_other_ways_to_generate(trained: Path, tmp_path: Path, more: list[str]) -> None:
    root = f"--trainer.default_root_dir={tmp_path}"
    run(small("test", trained, checkpoint(trained), root, "--trainer.logger=false", *SHORT, *more))
    assert json.loads((tmp_path / "report.json").read_text())["episodes"] == 4


def test_test_writes_a_report_for_any_seed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reports = []
    for seed in (5, 6):
        folder = tmp_path / str(seed)
        more = (f"--data.init_args.seed={seed}", f"--trainer.default_root_dir={folder}")
        run(small("test", trained, checkpoint(trained), "--trainer.logger=false", *SHORT, *more))
        reports.append(json.loads((folder / "report.json").read_text()))
    for report in reports:
        assert report.keys() >= {*QUALITY, "episodes", "fit_seconds", "predict_seconds", "baselines"}
        assert report["episodes"] == 4 and report["fit_seconds"] > 0
        for baseline in ("copy_first_frame", "ignore_actions"):
            assert report["baselines"][baseline].keys() >= QUALITY
        assert report["baselines"]["ignore_actions"]["swapped_win_rate"] == 0.5
    assert reports[0]["ade_px"] != reports[1]["ade_px"], "other seeds are other worlds"
    assert "sign accuracy" in capsys.readouterr().out


@pytest.mark.distributed
def test_episodes_of_all_ranks_are_in_the_report(trained: Path, tmp_path: Path) -> None:
    def report(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((tmp_path / name / "report.json").read_text())
        return found

    quiet = ["--trainer.callbacks=null", "--trainer.logger=false"]
    common = [checkpoint(trained), *quiet, *SHORT, "--data.init_args.test_size=8"]
    one, two = (small("test", trained, *common, f"--trainer.default_root_dir={tmp_path / name}") for name in ("1", "2"))
    run([*one, "--data.init_args.eval_batch_size=8"])
    half = [f"--config={ROOT / 'configs' / 'ddp.yaml'}", "--data.init_args.eval_batch_size=4"]
    assert run_on_two([*two, *half]).count("verdict") == 1, "one rank tells"
    whole, both = report("1"), report("2")
    assert sorted(both["sample_ids"]) == whole["sample_ids"] == list(range(8)) != both["sample_ids"]
    for name in ("ade_px", "psnr_db", "motion_ratio", "null_relative_gap", "shuffled_gap_moving"):
        of_sample = dict(zip(both["sample_ids"], both["per_episode"][name], strict=True))
        assert [of_sample[sample] for sample in range(8)] == pytest.approx(whole["per_episode"][name], rel=1e-3)
        assert both[name] == pytest.approx(whole[name], rel=1e-3)
    for quantity, curves in whole["curves"].items():
        for name, curve in curves.items():
            assert both["curves"][quantity][name] == pytest.approx(curve, rel=1e-3), (quantity, name)
    # Each rank probes four samples of its own, which are all eight.
    assert both["held_drift_px"] == pytest.approx(whole["held_drift_px"], rel=1e-3)
    assert both["gain_at_scale_2"] == pytest.approx(whole["gain_at_scale_2"], abs=1e-3)
    assert both["intervals"].keys() == whole["intervals"].keys()


def test_predict_writes_videos_and_the_action_scan(trained: Path, tmp_path: Path) -> None:
    run(small("predict", trained, checkpoint(trained), f"--trainer.default_root_dir={tmp_path}"))
    assert len(list((tmp_path / "predictions").glob("*.mp4"))) == 3
    about = json.loads((tmp_path / "predictions" / "000002.json").read_text())
    assert np.array(about["action"]).shape == (16, 2) and about["prompt"]
    with Image.open(tmp_path / "action_scan.png") as picture:
        assert picture.width > 300


def test_a_run_reloads_from_checkpoint_and_config_alone(trained: Path, tmp_path: Path) -> None:
    """Neither the backbone's folder nor the training data's codec is needed any more."""
    config = next(trained.glob("lightning_logs/version_*/config_fit.yaml"))
    alone = tmp_path / "moved.ckpt"
    alone.write_bytes(last_checkpoint(trained).read_bytes())
    settings = yaml.safe_load(config.read_text())
    settings["model"]["pretrained"] = str(tmp_path / "gone")
    settings["trainer"]["default_root_dir"] = str(tmp_path)
    settings["checkpoint"].pop("dirpath", None)
    for key in ("ckpt_path", "weights_only"):
        settings.pop(key, None)
    moved = tmp_path / "config.yaml"
    moved.write_text(yaml.safe_dump(settings))
    run(["predict", f"--config={moved}", f"--ckpt_path={alone}", "--return_predictions=false"])
    assert (tmp_path / "predictions" / "000000.mp4").is_file()


@pytest.mark.parametrize("suffix", ["npy", "csv"])
def test_predict_takes_a_users_own_actions_image_and_prompt(trained: Path, tmp_path: Path, suffix: str) -> None:
    actions = np.linspace(-1, 1, 24).reshape(12, 2)
    path = tmp_path / f"mine.{suffix}"
    if suffix == "npy":
        np.save(path, actions)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["dx", "dy"], *actions.tolist()])
    Image.new("RGB", (32, 32), (60, 60, 60)).save(tmp_path / "start.png")
    run(
        [
            "predict",
            f"--config={ROOT / 'configs' / 'demo.yaml'}",
            f"--config={ROOT / 'configs' / 'own_actions.yaml'}",
            f"--trainer.default_root_dir={tmp_path}",
            *SMALL_MODEL,
            *ACTION,
            checkpoint(trained),
            f"--data.init_args.actions={path}",
            f"--data.init_args.image={tmp_path / 'start.png'}",
            "--data.init_args.prompt=a red disc",
        ]
    )
    about = json.loads((tmp_path / "predictions" / "000000.json").read_text())
    assert about["prompt"] == "a red disc"
    torch.testing.assert_close(torch.tensor(about["action"]), torch.tensor(actions, dtype=torch.float32))
    assert (tmp_path / "predictions" / "000000.mp4").is_file()


def test_own_actions_of_another_width(trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((8, 3)))
    arguments = small("predict", trained, checkpoint(trained), f"--trainer.default_root_dir={tmp_path}")
    arguments = [argument for argument in arguments if not argument.startswith("--data")]
    own = [f"--config={ROOT / 'configs' / 'own_actions.yaml'}", f"--data.init_args.actions={tmp_path / 'wide.npy'}"]
    with pytest.raises(ValueError, match=r"must be \[B, 8, 2\].*got \[1, 8, 3\]"):
        run([*arguments[:2], *own, "--data.init_args.frame_size=[32, 32]", *arguments[2:]])
    assert not list((tmp_path / "predictions").glob("*.mp4")), "nothing half-written"


def test_validate(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(small("validate", trained, checkpoint(trained), *SHORT))
    assert "validation/swapped_win_rate" in capsys.readouterr().out


def test_own_actions_that_fit_no_alignment(trained: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "odd.npy", np.zeros((10, 2)))
    arguments = [
        "predict",
        f"--config={ROOT / 'configs' / 'demo.yaml'}",
        f"--config={ROOT / 'configs' / 'own_actions.yaml'}",
        f"--trainer.default_root_dir={tmp_path}",
        *SMALL_MODEL,
        *ACTION,
        checkpoint(trained),
        f"--data.init_args.actions={tmp_path / 'odd.npy'}",
        "--data.init_args.frame_size=[32, 32]",
    ]
    with pytest.raises(ValueError, match="10 action rows fit no whole number.*transition.*state.*per_latent"):
        run(arguments)
    assert not list((tmp_path / "predictions").glob("*.mp4")), "nothing half-written"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model.schema.alignmentt=state"], "alignmentt"),
        (["--model.generator.init_args.dimm=3"], "dimm"),
        (["--trainer.max_stepss=3"], "max_stepss"),
    ],
)
def test_unknown_keys_are_refused(more: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"{message}.*: did you mean '.*{message[:-1]}'"):
        run(small("fit", tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["predict", "test", "validate"])
def test_untrained_weights_are_refused(verb: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{verb} needs trained weights: name them with --ckpt_path"):
        run(small(verb, tmp_path / "out"))
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        run(small(verb, tmp_path / "out", f"--ckpt_path={tmp_path / 'nothing.ckpt'}"))
    (tmp_path / "cut.ckpt").write_bytes(b"PK half a checkpoint")
    with pytest.raises(ValueError, match="is not a whole checkpoint"):
        run(small(verb, tmp_path / "out", f"--ckpt_path={tmp_path / 'cut.ckpt'}"))
    assert not (tmp_path / "out").exists()


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_no_option_lets_a_checkpoint_run_code(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "unsafe.yaml").write_text("weights_only: false\n")
    (tmp_path / "saved.yaml").write_text("weights_only: null\n")
    demo = f"--config={ROOT / 'configs' / 'demo.yaml'}"
    for verb, unsafe in (
        *(("fit", "--weights_only=false"), ("test", f"--config={tmp_path / 'unsafe.yaml'}")),
        *(("validate", f"--config={tmp_path / 'unsafe.yaml'}"), ("predict", "--weights_only=0")),
    ):
        with pytest.raises(UsageError, match="always read as tensors and plain values alone"):
            run(small(verb, tmp_path / "out", checkpoint(trained), unsafe))
        with pytest.raises(UsageError, match="always read as tensors and plain values alone"):
            run_check([demo, unsafe])
    assert run_check([demo, f"--config={tmp_path / 'saved.yaml'}"])


@pytest.mark.parametrize(
    ("there", "arguments"),
    [
        (False, ["fit", f"--data.init_args.seed={2**63}"]),
        (True, ["fit", "--model.pretrained=nowhere"]),
        (False, ["fit", "--model.schema.alignment=state"]),
        (True, ["fit", "--model.causality.num_frame_per_block=2"]),
        (False, ["predict", "--model.generator.init_args.dim=28"]),
        (True, ["test", "--model.schema.alignment=state"]),
        (False, ["predict", "--ckpt_path=last"]),
    ],
    ids=str,
)
def test_a_refused_command_leaves_nothing(there: bool, arguments: list[str], trained: Path, tmp_path: Path) -> None:
    """Whether the folder is new or has runs already; the mistake may show as late as at the first batch."""
    if there:
        (tmp_path / "runs" / "out" / "lightning_logs" / "version_0").mkdir(parents=True)
    before = listing(tmp_path)
    verb, *more = arguments
    weights = [] if verb == "fit" else [checkpoint(trained)]
    with pytest.raises((ValueError, OSError)):
        run(small(verb, trained, f"--trainer.default_root_dir={tmp_path / 'runs' / 'out'}", *weights, *more))
    assert listing(tmp_path) == before


def test_a_checkpoint_wins_over_an_adapter(trained: Path, tmp_path: Path) -> None:
    more = ("--model.adapter=nowhere.safetensors", "--trainer.callbacks=null", "--trainer.limit_val_batches=1")
    more = (*more, f"--trainer.default_root_dir={tmp_path}")
    with pytest.warns(UserWarning, match="model.adapter is not read"):
        run(small("validate", trained, checkpoint(trained), *more))


def test_a_moved_run_says_where_it_writes(trained: Path, tmp_path: Path) -> None:
    config = tmp_path / "moved" / "lightning_logs" / "version_0" / "config_fit.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("trainer: {default_root_dir: old}")
    with pytest.warns(UserWarning, match="a run in '.*moved', and writes to 'old'.*--trainer.default_root_dir .*moved"):
        warn_of_another_place([config], "old")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_another_place([config], str(tmp_path / "moved"))
        warn_of_another_place([config], "chosen/on/the/command/line")
        warn_of_another_place([ROOT / "configs" / "demo.yaml", None], "old")


def test_arguments_of_callbacks_are_set_by_name(trained: Path, tmp_path: Path) -> None:
    more = ("--trainer.callbacks.ActionScan.scales=[0.5]", "--trainer.callbacks.PredictionWriter.init_args.fps", "3")
    cli = run(small("predict", trained, checkpoint(trained), f"--trainer.default_root_dir={tmp_path}", *more))
    saved = yaml.safe_load(next(tmp_path.glob("lightning_logs/version_*/config_predict.yaml")).read_text())
    arguments = {each["class_path"].rpartition(".")[2]: each["init_args"] for each in saved["trainer"]["callbacks"]}
    assert arguments["ActionScan"]["scales"] == [0.5] and arguments["PredictionWriter"]["fps"] == 3
    assert arguments["ActionScan"]["sample"] == 1 and len(cli.config["predict"].trainer.callbacks) == 11


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run([sys.executable, *words], env=variables, capture_output=True, text=True, timeout=300)


def test_two_ranks_tell_a_mistake_once_and_keep_the_exit_code(trained: Path, tmp_path: Path) -> None:
    two = ("--trainer.devices=2", "--trainer.strategy=ddp", f"--model.pretrained={tmp_path / 'nowhere'}")
    arguments = small("fit", trained, f"--trainer.default_root_dir={tmp_path / 'out'}", *two)
    # Below the ports that the system hands out, so that nobody takes it before the ranks do.
    ended = python("-m", "lightning_action", *arguments, MASTER_PORT=str(20000 + os.getpid() % 10000))
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert [line[:10] for line in ended.stderr.splitlines() if "nowhere" in line] == ["error: no "]
    assert ended.stderr.splitlines()[-1].startswith("error: ") and not listing(tmp_path)


CALLBACKS = """
import lightning as L

class Interrupted(L.Callback):
    def on_train_start(self, *_):
        raise KeyboardInterrupt

class Faulty(L.Callback):
    def on_train_start(self, *_):
        raise AttributeError("a fault of the program")

class Full(L.Callback):
    def on_train_start(self, *_):
        raise OSError(28, "No space left on device", "/x")
"""


@pytest.mark.parametrize(
    ("name", "error", "code", "told"),
    [("Interrupted", SystemExit, 130, ""), ("Faulty", AttributeError, None, ""), ("Full", SystemExit, 1, "error: ")],
)
def test_how_a_fit_ends(
    name: str,
    error: type[BaseException],
    code: int | None,
    told: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "ending.py").write_text(CALLBACKS)
    monkeypatch.syspath_prepend(tmp_path)
    root = f"--trainer.default_root_dir={tmp_path / 'out'}"
    with pytest.raises(error) as ended:
        main(small("fit", trained, root, "--trainer.callbacks=null", f"--trainer.callbacks+=ending.{name}"))
    assert getattr(ended.value, "code", None) == code
    assert capsys.readouterr().err.startswith(told) and not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write to .*--trainer.default_root_dir"):
        run(small("fit", tmp_path / "file"))


def test_a_checkpoint_of_another_size_is_refused(trained: Path, tmp_path: Path) -> None:
    more = ("--model.generator.init_args.dim=28", f"--trainer.default_root_dir={tmp_path}")
    with pytest.raises(ValueError, match="checkpoint does not fit ActionVideoModule.*of another shape"):
        run(small("predict", trained, checkpoint(trained), *more))
    assert not list(tmp_path.glob("predictions/*.mp4"))


def test_the_command_line_wins_over_the_checkpoint(trained: Path, tmp_path: Path) -> None:
    """Lightning would take hyper-parameters that a checkpoint holds in place of those that are typed."""
    saved = torch.load(last_checkpoint(trained), weights_only=True)
    torch.save(saved | {"hyper_parameters": {"seed": 77}}, tmp_path / "other.ckpt")
    more = ("--trainer.limit_val_batches=1", "--trainer.callbacks=null", f"--trainer.default_root_dir={tmp_path}")
    cli = run(small("validate", trained, f"--ckpt_path={tmp_path / 'other.ckpt'}", "--model.seed=5", *more))
    assert cli.model.seed == 5


@pytest.mark.parametrize(
    ("arguments", "described"),
    [
        (["fit", "--help"], ActionVideoModule),
        (["fit", "--help"], BlockCausality),
        (["fit", "--model.generator.help=lightning_action.CausalWanModel"], WanNetwork),
        (["predict", "--data.help=lightning_action.data.ActionFileDataModule"], ActionFileDataModule),
        (["fit", "--data.help=lightning_action.data.SpriteDataModule"], SpriteDataModule),
        (["fit", "--trainer.callbacks.help=lightning_action.callbacks.ActionScan"], ActionScan),
    ],
)
def test_help_holds_what_docstrings_say(
    arguments: list[str], described: type, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of every argument that is no group of its own, but for where lines are broken."""
    with pytest.raises(SystemExit) as stopped:
        run(arguments)
    assert stopped.value.code == 0
    printed = "".join(capsys.readouterr().out.split())
    parameters = inspect.signature(described).parameters
    said = {each.arg_name: each.description or "" for each in docstring_parser.parse(described.__doc__ or "").params}
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    options = [
        name for name in said if not is_dataclass(parameters[name].default) and parameters[name].kind not in rest
    ]
    assert said.keys() == parameters.keys() and len(options) > 2 and "usage:" in printed
    assert [name for name in options if not said[name] or "".join(said[name].split()) not in printed] == []


def test_a_second_fit_replaces_the_first_if_it_may(tmp_path: Path, trained: Path) -> None:
    root = (f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0")
    run(small("fit", trained, "--trainer.max_steps=2", *root))
    before = tree(tmp_path)
    for elsewhere in ([], [checkpoint(trained)]):
        with pytest.raises(FileExistsError, match="last.ckpt is the end of another fit.*--checkpoint.overwrite true"):
            run(small("fit", trained, "--trainer.max_steps=3", *elsewhere, *root))
    assert tree(tmp_path) == before
    with pytest.warns(UserWarning, match="this fit replaces .*last.ckpt, the end of another"):
        run(small("fit", trained, "--trainer.max_steps=3", "--checkpoint.overwrite=true", *root))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["last.ckpt"]
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 3


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """All that is in a folder, and when it was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    ("verb", "dry", "folder"),
    [("fit", "true", "."), ("fit", "2", "new"), ("validate", "1", "new"), ("test", "2", "."), ("predict", "true", ".")],
)
def test_a_dry_run_writes_and_removes_nothing(
    verb: str, dry: str, folder: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ["report.json", "generator.safetensors", "action_scan.png", "predictions/manifest.jsonl"]
    for name in (*there, "predictions/000000.json", "predictions/000000.mp4", "checkpoints/last.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of an earlier run")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    more = [f"--trainer.default_root_dir={tmp_path / folder}", f"--trainer.fast_dev_run={dry}"]
    more += [*SHORT, "--model.export_weights=true", *([] if verb == "fit" else [checkpoint(trained)])]
    run(small(verb, trained, *more))
    assert tree(tmp_path) == before


def test_a_finished_fit_can_be_continued(tmp_path: Path, trained: Path) -> None:
    root = (f"--trainer.default_root_dir={tmp_path}", "--trainer.limit_val_batches=0")
    run(small("fit", trained, "--trainer.max_steps=2", *root))
    run(small("fit", trained, "--trainer.max_steps=5", checkpoint(tmp_path), *root))
    assert torch.load(last_checkpoint(tmp_path), weights_only=True)["global_step"] == 5
