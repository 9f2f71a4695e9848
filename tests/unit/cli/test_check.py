"""The verb `check`: every shipped configuration, and data that does not fit."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace

from lightning_action.cli import main
from lightning_action.cli.check import precision_of, run_check
from lightning_action.cli.support.dry_run import Precision
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.distributed.sharding import Sharding
from tests.support.shipped import shipped, stack
from tests.support.small_commands import small
from tests.support.written_videos import LEROBOT

ROOT = Path(__file__).resolve().parents[3]
ALL_CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
DEMO = ROOT / "configs" / "demo.yaml"
# The data that a configuration leaves to the user.
GIVEN = {
    "own_actions.yaml": [
        f"--data.init_args.actions={ROOT / 'docs' / 'examples' / 'circle.csv'}",
        f"--data.init_args.image={ROOT / 'docs' / 'examples' / 'start.png'}",
    ],
    "lerobot.yaml": [f"--data.root={LEROBOT / 'v3'}", "--data.num_latents=7"],
    "pusht.yaml": [f"--data.root={LEROBOT / 'v3'}", "--model.text_encoder.text_len=7", "--model.generator.text_len=7"],
}
# Their data is what another configuration leaves: test_pusht.py runs them one after the other.
OF_ANOTHER_RUN = {"pusht_backbone", "pusht_latents"}
CONFIGS = [path for path in ALL_CONFIGS if path.stem not in OF_ANOTHER_RUN]


def arguments(config: Path, folder: Path) -> list[str]:
    """A configuration alone, or on top of the one that it stacks on, the demo's where it stacks on any."""
    names = stack(config.stem)
    stands_alone = "class_path" in yaml.safe_load(config.read_text()).get("model", {}).get("generator", {})
    below = [] if stands_alone or len(names) > 1 else ["demo"]
    given = of_a_store(folder) if config.stem == "latents" else GIVEN.get(config.name, [])
    return [*shipped(*below, config.stem), *given]


def of_a_store(folder: Path) -> list[str]:
    """The demo's videos, encoded."""
    size = "--data.init_args.world.init_args.image_size=32"
    main(small("encode", folder, "--model.pretrained=null", size, f"--output={folder / 'store'}"))
    return [f"--data.store={folder / 'store'}", "--data.num_latents=5"]


def checked(*given: str) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        run_check([*given, "--json"])
    report: dict[str, Any] = json.loads(printed.getvalue())
    return report


@pytest.fixture(scope="module")
def checked_as_shipped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], dict[str, Any]]:
    return cache(lambda config: checked(*arguments(config, tmp_path_factory.mktemp("store"))))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_fits_its_data(
    config: Path, checked_as_shipped: Callable[[Path], dict[str, Any]]
) -> None:
    report = checked_as_shipped(config)
    assert report["problems"] == []
    keys = [key for section in report.values() if isinstance(section, dict) for key in section]
    assert all(re.fullmatch(r"[a-z_]+(\.[a-z_]+)?", key) for key in keys)
    trains = [numbers["trainable"] for numbers in report["parameters"].values() if numbers is not None]
    assert max(trains) > 0 and len(report["shapes"]) > 5


def test_a_backbone_that_never_trains_takes_no_memory_for_training(
    checked_as_shipped: Callable[[Path], dict[str, Any]],
) -> None:
    frozen, trained = (checked_as_shipped(DEMO.with_name(f"{name}.yaml")) for name in ("frozen_backbone", "demo"))
    of_projection = trained["parameters"]["action_projection"]["trainable"]
    assert frozen["parameters"]["generator"]["trainable"] == 0 < trained["parameters"]["generator"]["trainable"]
    assert frozen["memory"]["gradients"] == 4 * of_projection
    assert frozen["memory"]["adamw_moments"] == 8 * of_projection
    assert frozen["memory"]["weights"] == trained["memory"]["weights"]


@pytest.mark.parametrize(
    ("config", "numbers", "tokens", "latents"),
    [
        ("wan2.1_1.3b", 1_418_996_800, 1560, [1, 22, 16, 60, 104]),
        ("wan2.1_14b", 14_288_491_584, 1560, [1, 22, 16, 60, 104]),
        ("wan2.2_5b", 4_999_787_712, 880, [1, 17, 48, 44, 80]),
        ("longlive_action", 1_418_996_800, 1560, [1, 21, 16, 60, 104]),
    ],
)
def test_released_models(
    config: str, numbers: int, tokens: int, latents: list[int], checked_as_shipped: Callable[[Path], dict[str, Any]]
) -> None:
    report = checked_as_shipped(ROOT / "configs" / f"{config}.yaml")
    assert report["parameters"]["generator"] == {"trainable": numbers, "frozen": 0}
    assert report["blocks"]["tokens_per_frame"] == tokens
    assert report["shapes"]["latents"] == latents
    if config == "longlive_action":
        one_pass = report["flops"]["one_pass"]
        assert (one_pass["linear"] / 1e12, one_pass["attention"] / 1e12) == pytest.approx((11.7, 16.6), rel=5e-3)
        assert (report["blocks"]["frames_per_block"], report["blocks"]["frames_seen"]) == (3, 12)
        assert (report["settings"]["num_steps"], report["settings"]["num_branches"]) == (4, 1)
        generated = report["flops"]["block"]
        assert sum(generated.values()) / 1e12 == pytest.approx(141, rel=5e-3)


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", f"--config={DEMO}"])
    page = capsys.readouterr().out
    lines = page.splitlines()
    titles = [line for line in lines if line.isupper() and not line.startswith(" ")]
    assert titles == ["PARAMETERS", "SHAPES", "BLOCKS", "MEMORY", "OPERATIONS", "ACTIONS IN TIME"]
    assert lines[-1] == "The data fits the model."
    assert max(map(len, lines)) <= 120
    table = lines[lines.index("PARAMETERS") + 1 : lines.index("SHAPES") - 1]
    assert len(set(map(len, table))) == 1, "numbers end in one column"
    assert any(line.split() == ["generator", "8,642,304", "0"] for line in table)
    assert any(line.split() == ["8", "29", "-", "32", "28", "-", "31"] for line in lines)


def test_data_that_does_not_fit_is_told_with_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--model.causality.num_frame_per_block=2", "--model.schema.alignment=state"]
    assert not run_check([f"--config={DEMO}", *more])
    page = capsys.readouterr().out
    told = page[page.index("THE DATA DOES NOT FIT THE MODEL") :].splitlines()
    assert len(told) == 3 and "not a whole number of blocks" in told[1] and "this schema says state" in told[2]
    assert "8,642,304" in page, "what does not depend on the data is there"


def test_data_that_gives_no_batch(capsys: pytest.CaptureFixture[str]) -> None:
    own = f"--config={ROOT / 'configs' / 'own_actions.yaml'}"
    with pytest.raises(SystemExit) as stopped:
        main(
            ["check", f"--config={DEMO}", own, "--data.init_args.actions=nowhere.csv", "--data.init_args.image=no.png"]
        )
    assert stopped.value.code == 1
    assert "ActionFileDataModule gives no batch: no actions at nowhere.csv" in capsys.readouterr().out


@pytest.mark.parametrize("unknown", ["--model.nonsense=3", "--trainer.nonsense=3", "--nonsense=3"])
def test_unknown_keys_are_refused(unknown: str) -> None:
    with pytest.raises(UsageError, match="there is no option --.*nonsense"):
        run_check([f"--config={DEMO}", unknown])


def test_devices_that_are_not_there() -> None:
    trainer = ["accelerator=gpu", "devices=8", "num_nodes=4", "precision=bf16-true", "strategy=fsdp"]
    report = checked(f"--config={DEMO}", *(f"--trainer.{setting}" for setting in trainer))
    assert report["settings"]["weights_dtype"] == "bfloat16"


def test_what_another_verb_saved_can_be_checked(tmp_path: Path) -> None:
    more = {"ckpt_path": "last.ckpt", "weights_only": None, "return_predictions": False, "verbose": True}
    saved = tmp_path / "config_predict.yaml"
    saved.write_text(yaml.safe_dump({**yaml.safe_load(DEMO.read_text()), **more}))
    assert checked(f"--config={saved}")["problems"] == []


@pytest.mark.parametrize(
    ("precision", "strategy", "expected"),
    [
        (None, "auto", (torch.float32, torch.float32, torch.float32)),
        ("bf16-true", "auto", (torch.bfloat16, torch.bfloat16, torch.bfloat16)),
        ("bf16-mixed", "ddp", (torch.float32, torch.bfloat16, torch.bfloat16)),
        ("16-mixed", Namespace(class_path="x.FSDPStrategy"), (torch.float32, torch.float16, torch.float16)),
        ("32-true", Namespace(class_path="x.FSDP2Strategy"), (torch.float32, torch.bfloat16, torch.bfloat16)),
    ],
)
def test_precision(precision: str | None, strategy: Any, expected: tuple[torch.dtype, ...]) -> None:
    assert precision_of(Namespace(precision=precision, strategy=strategy), Sharding()) == Precision(*expected)


def test_check_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "`check`," in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    assert " check [-" in capsys.readouterr().out
