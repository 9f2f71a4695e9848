"""Each shipped configuration and overlay through its whole life, as it is shipped, only shorter and smaller."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lightning_action import load_run
from lightning_action.cli import main
from lightning_action.cli.trainer_verbs import run
from tests.support.shipped import CONFIGS, shorter
from tests.support.small_commands import ACTION, FEW_VIDEOS, SMALL_DATA, SMALL_MODEL, SMALL_SPRITE
from tests.support.two_ranks import run_on_two
from tests.support.wan_release import VERSIONS, small_arguments, write_release


@dataclass(frozen=True)
class Life:
    """What is run: `configs` stacked, on `devices` processes, all numbers of steps divided by `factor`.

    The fit stops after `stop` steps, behind every switch of phases, and goes on from `last.ckpt` to `end`. Then come
    validate, test and predict, export in `formats`, and `load_run`. `trains` says which parts have moved by then.
    """

    configs: tuple[str, ...]
    factor: int
    stop: int
    end: int
    devices: int = 1
    formats: tuple[str, ...] = ("wan", "diffusers")
    trains: tuple[str, ...] = ("action", "backbone")

    def __str__(self) -> str:
        return "+".join(self.configs) + (f" on {self.devices}" if self.devices > 1 else "")

    @property
    def is_released_size(self) -> bool:
        return self.configs[0] in VERSIONS


LIVES = (
    Life(("demo",), factor=100, stop=3, end=4, formats=("wan",)),
    Life(("demo", "compile"), factor=100, stop=3, end=4, formats=("wan",)),
    Life(("demo", "discrete"), factor=100, stop=2, end=3, formats=("wan",)),
    Life(("demo", "panning"), factor=100, stop=2, end=3, formats=("wan",)),
    Life(("demo", "chance"), factor=100, stop=2, end=3, formats=("wan",)),
    Life(("demo", "frozen_backbone"), factor=100, stop=1, end=2, formats=("adapter",), trains=("action",)),
    Life(("demo", "ddp"), factor=100, stop=3, end=4, devices=2, formats=("wan",)),
    Life(("longlive_action",), factor=2000, stop=2, end=3),
    Life(("wan2.1_1.3b",), factor=2000, stop=2, end=3),
    Life(("wan2.1_1.3b", "lora"), factor=5000, stop=3, end=4, trains=("action", "lora", "backbone")),
    Life(("wan2.1_14b", "fsdp"), factor=2000, stop=2, end=3, devices=2),
    Life(("wan2.2_5b", "fsdp"), factor=2000, stop=2, end=3),
)
# Run elsewhere, or (own_actions) no life of its own.
ELSEWHERE = {"demo_backbone", "fp8", "latents", "lerobot", "own_actions", "pusht", "pusht_backbone", "pusht_latents"}
ELSEWHERE |= {"consistency", "distillation", "longlive_train_action"}


# Of a model that has trained for some steps.
@pytest.mark.filterwarnings("ignore:ActionSensitivity. the model ignores its actions", "ignore:DriftMonitor. generated")
@pytest.mark.usefixtures("scalar_code")
@pytest.mark.usefixtures("few_draws")
@pytest.mark.parametrize("life", LIVES, ids=str)
def test_whole_life(life: Life, tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    if life.is_released_size:
        began = dict(write_release(tmp_path / "release", VERSIONS[life.configs[0]]).state_dict())
        monkeypatch.setenv("LIGHTNING_ACTION_WEIGHTS", str(tmp_path / "release"))
    else:
        began = load_file(backbone / "generator.safetensors")
    common = [*shorter(life.configs, life.factor, tmp_path), f"--trainer.default_root_dir={folder}"]
    common += _smaller(life, backbone)
    resumed = f"--ckpt_path={checkpoint}"
    stop, end = (f"--trainer.max_steps={steps}" for steps in (life.stop, life.end))
    verbs = [[verb, *common, resumed] for verb in ("validate", "test", "predict")]
    _run(life, ["fit", *common, stop], ["fit", *common, end, resumed], *verbs)

    assert _global_step(checkpoint) == life.end
    report = json.loads((folder / "report.json").read_text())
    videos = sorted(path.name for path in (folder / "predictions").glob("*.mp4"))
    assert (report["episodes"], len(videos)) == _sizes(life)
    assert (folder / "predictions" / videos[-1]).stat().st_size > 0

    (config,) = (folder / "lightning_logs" / "version_0").glob("config_fit.yaml")
    for number, form in enumerate(life.formats):
        output = tmp_path / (f"exported_{number}" if form == "diffusers" else f"exported_{number}.safetensors")
        main(["export", f"--config={config}", resumed, f"--format={form}", f"--output={output}"])
        assert output.exists()
    module = load_run(config, checkpoint)
    assert _moved(dict(module.state_dict()), began) == set(life.trains) and not module.training


def test_every_config_has_a_life() -> None:
    alive = {name for life in LIVES for name in life.configs}
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == alive | ELSEWHERE and not alive & ELSEWHERE


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's, through the first half of its own life: fit, stop, and on."""
    folder = tmp_path_factory.mktemp("lives")
    common = [*shorter(("demo_backbone",), 100, folder), f"--trainer.default_root_dir={folder / 'backbone'}"]
    common += [*SMALL_MODEL, *SMALL_DATA]
    run(["fit", *common, "--trainer.max_steps=2"])
    run(["fit", *common, f"--ckpt_path={folder / 'backbone' / 'checkpoints' / 'last.ckpt'}"])
    return folder / "backbone"


def _smaller(life: Life, backbone: Path) -> list[str]:
    """Sizes alone, and the devices of this machine."""
    devices = ["--trainer.accelerator=cpu", f"--trainer.devices={life.devices}"]
    if life.is_released_size:
        return [*small_arguments(life.configs[0]), *devices]
    tested, predicted = _sizes(life)
    sizes = [f"--data.init_args.test_size={tested}", f"--data.init_args.predict_size={predicted}"]
    world = ["--data.init_args.world.init_args.image_size=16"] if "panning" in life.configs else SMALL_SPRITE
    return [f"--model.pretrained={backbone}", *SMALL_MODEL, *FEW_VIDEOS, *world, *ACTION, *sizes, *devices]


def _sizes(life: Life) -> tuple[int, int]:
    """Videos of `test` and of `predict`; compiled ones all alike, as each size of a batch has a code of its own."""
    if life.is_released_size:
        return 2, 1
    return (4, 4) if "compile" in life.configs else (6, 3)


def _run(life: Life, *commands: list[str]) -> None:
    if life.devices == 1:
        for command in commands:
            run(command)
        return
    assert run_on_two(*commands).count("sign accuracy") == 1, "one rank tells"


def _global_step(checkpoint: Path) -> int:
    path = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    step: int = torch.load(path, weights_only=True)["global_step"]
    return step


def _moved(state: dict[str, Tensor], began: dict[str, Tensor]) -> set[str]:
    """The parts whose weights are not those that a fit begins with: zeros in the last layers of actions and LoRA."""
    plain = {name.replace(".base_layer.", "."): value for name, value in state.items()}
    backbone = any(not torch.equal(plain[f"generator.{name}"], value) for name, value in began.items())
    lora = any(bool(value.any()) for name, value in state.items() if ".lora_B." in name)
    action = bool(state["action_projection.action_projection.weight"].any())
    found = {"action": action, "lora": lora, "backbone": backbone}
    return {part for part, moved in found.items() if moved}
