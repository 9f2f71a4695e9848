from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_action import ActionVideoModule
from lightning_action.cli import main
from lightning_action.cli.compare import TIMESTEPS, Measured, beyond, difference, velocities_behind_truth
from lightning_action.diffusion.flow_matching import add_noise
from lightning_action.diffusion.noise import frame_noise
from lightning_action.generator.causality import BlockCausality
from tests.support.small_demo import small_data, small_demo
from tests.support.written_run import write_run

SMALL_DATA = ["--data.world.image_size=16", "--data.world.sprite_radius=3", "--data.num_latents=4"]
SMALL_DATA += ["--data.test_size=3", "--data.eval_batch_size=2"]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    config, checkpoint = write_run(tmp_path_factory.mktemp("run"))
    return ["compare", f"--config={config}", f"--ckpt_path={checkpoint}", *SMALL_DATA]


def test_it_says_what_attention_in_8_bits_changes(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*command, "--model.acceleration.attention=fp8", "--json"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < report["difference"]["velocity_error"] < 0.1 and 25 < report["difference"]["psnr_db"] < 99
    assert report["plain"].keys() == report["in_8_bits"].keys() and report["problems"] == []
    assert report["plain"]["psnr_db"] != report["in_8_bits"]["psnr_db"]


def test_beyond_a_limit_the_exit_status_is_1(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    limits = ["--max_velocity_error=1e-9", "--min_psnr_db=99"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--model.acceleration.quantization=int8_weight_only", *limits])
    printed = capsys.readouterr().out
    assert stopped.value.code == 1 and "THE 8 BITS COST TOO MUCH" in printed and "within the limits" not in printed
    assert "velocities are off by" in printed and "less than 99.0" in printed and "in 8 bits" in printed


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "nothing to compare: give --model.acceleration.quantization"),
        (["--model.acceleration.attention=fp8", "--num_batches=0"], "num_batches must be"),
        (["--model.acceleration.attention=fp8", "--ckpt_path=null"], "Give --ckpt_path"),
    ],
)
def test_what_cannot_be_compared_is_told(
    command: list[str], arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, *arguments])
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def ready() -> tuple[ActionVideoModule, dict[str, Any]]:
    module, data = small_demo(), small_data()
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    module.configure_model()
    module.frozen.vae.fit(batch["video"])  # type: ignore[attr-defined]
    return module.eval(), batch


@torch.no_grad()
def test_velocities_behind_the_truth_are_those_of_teacher_forcing() -> None:
    module, batch = ready()
    found = velocities_behind_truth(module, batch)
    clean, text = module.frozen.encode_video(batch["video"]), module.frozen.encode_text(batch["prompt"])
    modulation = module.conditioning.of_rollout(batch["action"], False, clean.shape[1], text, module.causality)
    noise = frame_noise(module.sampling.seed, batch["sample_id"].tolist(), clean.shape[2:])(range(clean.shape[1]), 0)
    assert isinstance(modulation, torch.Tensor)
    for velocity, timestep in zip(found, TIMESTEPS, strict=True):
        timesteps = torch.full(clean.shape[:2], timestep)
        noisy = add_noise(clean, noise, timesteps / 1000)
        expected = module.generator.teacher_forcing(clean, noisy, timesteps, text, module.causality, modulation)
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(velocity, expected, rtol=1e-4, atol=1e-5)


def test_velocities_have_the_positions_of_generation() -> None:
    """Behind a window that has moved on they depend on where its frames count from."""
    module, batch = ready()
    module.causality = BlockCausality(1, local_attn_size=3, sink_size=1)
    found = {}
    for relative in (False, True):
        module.sampling = replace(module.sampling, relative_positions=relative)
        found[relative] = velocities_behind_truth(module, batch)
    apart = (found[True] - found[False]).abs().amax(dim=(0, 1, 3, 4, 5))
    assert apart[:3].max() < 1e-5 < 1e-3 < apart[-1]


def test_figures_of_a_difference() -> None:
    velocities, video = torch.ones(2, 1, 3, 4, 1, 1), torch.full((1, 5, 3, 2, 2), 0.5)
    off = velocities.clone()
    off[1] *= 1.3
    plain = Measured([velocities], [video], {"sign_accuracy": 0.9})
    same = difference(plain, plain)
    assert same.velocity_error == 0 and same.psnr_db == pytest.approx(100) and same.sign_accuracy_lost == 0
    found = difference(plain, Measured([off], [video + 0.1], {"sign_accuracy": 0.7}))
    assert found.velocity_error == pytest.approx(0.3) and found.psnr_db == pytest.approx(20)
    assert found.sign_accuracy_lost == pytest.approx(0.2)
    assert beyond(found, 0.31, 19, 0.21) == [] and len(beyond(found, 0.29, 21, 0.19)) == 3
    assert len(beyond(difference(plain, Measured([off * torch.nan], [video], {})), 0.31, 19, 0.21)) == 1
