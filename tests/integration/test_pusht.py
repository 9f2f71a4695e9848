"""The steps of `make demo-pusht` with its configurations, small, on a recording that is there already."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lightning_action.cli import main
from tests.support.small_commands import ACTION, ROOT, SMALL_MODEL, checkpoint

RECORDING = ROOT / "tests" / "data" / "lerobot" / "v3"
SMALL_DATA = ["--data.init_args.num_latents=3", "--data.init_args.batch_size=4"]
# Its prompts have up to eight words.
PROMPTS = ["--model.generator.init_args.text_len=8", "--model.text_encoder.init_args.text_len=8"]
SMALL_CODEC = ["--model.vae.init_args.num_steps=80", "--model.vae.init_args.width=8"]


def command(verb: str, folder: Path, *overlays: str) -> list[str]:
    configs = [f"--config={ROOT / 'configs' / f'{name}.yaml'}" for name in ("pusht", *overlays)]
    data = f"store={folder / 'latents'}" if "pusht_latents" in overlays else f"root={RECORDING}"
    return [verb, *configs, *SMALL_MODEL, *SMALL_CODEC, *PROMPTS, *SMALL_DATA, f"--data.init_args.{data}"]


@pytest.mark.usefixtures("few_draws")
@pytest.mark.filterwarnings("ignore:ActionSensitivity. the model ignores its actions")
def test_record_to_report(tmp_path: Path) -> None:
    root, backbone = f"--trainer.default_root_dir={tmp_path}", tmp_path / "backbone"
    begins, goes_on = ["--model.pretrained=null"], [f"--model.pretrained={backbone}", *ACTION, root]
    main([*command("encode", tmp_path), *begins, *ACTION, f"--output={tmp_path / 'latents'}"])
    of_backbone = [f"--trainer.default_root_dir={backbone}", "--trainer.max_steps=2"]
    main([*command("fit", tmp_path, "pusht_latents", "pusht_backbone"), *of_backbone])
    main([*command("fit", tmp_path, "pusht_latents"), *goes_on, "--trainer.max_steps=3"])
    for verb in ("predict", "test"):
        main([*command(verb, tmp_path), *goes_on, checkpoint(tmp_path)])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["num_frames"] == 9 and {"gain_x", "lag_frames"} <= set(report)
    assert list((tmp_path / "predictions").glob("*.mp4"))


def test_make_demo_pusht_runs_what_is_tested_here() -> None:
    recipe = re.search(r"^demo-pusht:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    verbs = re.findall(r"\$\(MAIN\) (\w+)", recipe[1])
    assert verbs == ["record", "inspect", "encode", "fit", "fit", "predict", "test"]
