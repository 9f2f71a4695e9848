"""Runs on two gloo processes, replicated and sharded, against the same run on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lightning_action.cli import main
from lightning_action.cli.trainer_verbs import run
from tests.support.shipped import shipped
from tests.support.small_commands import ROOT, SMALL_DATA, SMALL_MODEL, last_checkpoint, small
from tests.support.two_ranks import RankFailed, run_on_two
from tests.support.uneven_videos import NUM_LATENTS

pytestmark = pytest.mark.distributed
SHORT = """
trainer:
  max_steps: 12
  limit_val_batches: 0
  gradient_clip_val: 0.02
  callbacks:
    - class_path: lightning_action.callbacks.FreezeBackboneFirst
      init_args: {backbone: [generator], unfreeze_at_step: 5, warmup_steps: 2}
    - class_path: tests.support.recorded_losses.RecordedLosses
checkpoint: {every_n_train_steps: 3, save_top_k: -1}
"""
FSDP = (f"--config={ROOT / 'configs' / 'fsdp.yaml'}", "--model.sharding.param_dtype=float32")
ONE_FILE = "--trainer.strategy.init_args.save_distributed_checkpoint=false"
WRITER = "--trainer.callbacks=lightning_action.callbacks.PredictionWriter"
EACH_HALF = "--data.init_args.batch_size=2"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained backbone, the settings of a short fit, and that fit on one process in `one`."""
    folder = tmp_path_factory.mktemp("sharding")
    (folder / "short.yaml").write_text(SHORT)
    backbone = ["fit", *shipped("demo_backbone"), "--trainer.max_steps=3"]
    run([*backbone, f"--trainer.default_root_dir={folder / 'backbone'}", *SMALL_MODEL, *SMALL_DATA])
    run(fit(folder, "one"))
    return folder


def fit(workshop: Path, name: str, *more: str) -> list[str]:
    arguments = small("fit", workshop / name, *more, f"--model.pretrained={workshop / 'backbone'}")
    return [*arguments[:2], f"--config={workshop / 'short.yaml'}", *arguments[2:], "--allow=tests"]


def path_at_step(workshop: Path, name: str, step: int) -> Path:
    (path,) = (workshop / name / "checkpoints").glob(f"*step={step}.ckpt")
    return path


def at_step(workshop: Path, name: str, step: int) -> str:
    return f"--ckpt_path={path_at_step(workshop, name, step)}"


def last(workshop: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(last_checkpoint(workshop / name), weights_only=True)
    return loaded


def assert_same_run(workshop: Path, name: str) -> None:
    """Losses, and weights and optimizer states after 12 steps, to the rounding of sums in another order."""
    one, other = last(workshop, "one"), last(workshop, name)
    assert one["global_step"] == other["global_step"] == 12
    torch.testing.assert_close(other["state_dict"], one["state_dict"], atol=1e-5, rtol=0)
    torch.testing.assert_close(other["optimizer_states"][0]["state"], one["optimizer_states"][0]["state"])
    losses = [json.loads((workshop / each / "losses.json").read_text()) for each in ("one", name)]
    assert len(losses[0]) == 12
    torch.testing.assert_close(losses[1], losses[0][-len(losses[1]) :], atol=1e-5, rtol=0)


def test_the_fit_on_one_process_moves_both_parts_and_clips(workshop: Path) -> None:
    """The positive control: what the other runs are compared with is not where they began."""
    run(fit(workshop, "free", "--trainer.gradient_clip_val=null"))
    with pytest.raises(AssertionError):
        assert_same_run(workshop, "free")
    before, after = (torch.load(path_at_step(workshop, "one", step), weights_only=True) for step in (3, 12))
    for part in ("generator.blocks.0.ffn.0.weight", "action_projection.action_projection.weight"):
        assert (before["state_dict"][part] - after["state_dict"][part]).abs().max() > 1e-3


def test_replicated(workshop: Path) -> None:
    run_on_two(fit(workshop, "ddp", EACH_HALF, f"--config={ROOT / 'configs' / 'ddp.yaml'}"))
    assert_same_run(workshop, "ddp")


def test_sharded_with_one_file_goes_on_unsharded_and_back(workshop: Path) -> None:
    run_on_two(fit(workshop, "file", EACH_HALF, *FSDP, ONE_FILE))
    assert_same_run(workshop, "file")
    run(fit(workshop, "file_to_one", at_step(workshop, "file", 9)))
    assert_same_run(workshop, "file_to_one")
    run_on_two(fit(workshop, "one_to_file", at_step(workshop, "one", 3), EACH_HALF, *FSDP, ONE_FILE))
    assert_same_run(workshop, "one_to_file")


def test_a_folder_goes_on_with_another_number_of_ranks_and_is_exported(workshop: Path) -> None:
    run_on_two(fit(workshop, "fsdp_folder", EACH_HALF, *FSDP))
    run(fit(workshop, "folder_to_one", at_step(workshop, "fsdp_folder", 3), *FSDP, ONE_FILE, "--trainer.devices=1"))
    assert_same_run(workshop, "folder_to_one")
    folder = workshop / "fsdp_folder" / "checkpoints" / "last.ckpt"
    (config,) = (workshop / "fsdp_folder" / "lightning_logs").glob("*/config_fit.yaml")
    output = workshop / "exported.safetensors"
    main(["export", f"--config={config}", f"--ckpt_path={folder}", "--format=wan", f"--output={output}"])
    exported, expected = load_file(output), last(workshop, "one")["state_dict"]
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, expected[f"generator.{name}"], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="is a folder of shards: stack configs/fsdp.yaml"):
        run(small("predict", workshop / "fsdp_folder", f"--ckpt_path={folder}"))


def test_a_rank_killed_while_it_writes_a_checkpoint_loses_nothing_older(workshop: Path) -> None:
    checkpoints = workshop / "killed" / "checkpoints"
    (workshop / "killer.yaml").write_text(f"""
trainer:
  callbacks+:
    - class_path: tests.support.killed_while_writing.KilledWhileWriting
      init_args: {{folder: {checkpoints}, step: 5}}
""")
    command = fit(workshop, "killed", EACH_HALF, *FSDP, f"--config={workshop / 'killer.yaml'}")
    with pytest.raises(RankFailed, match="a rank died"):
        run_on_two(command)
    assert {path.name.split("-")[-1] for path in checkpoints.glob("[!.]*.ckpt")} == {"step=3.ckpt", "last.ckpt"}
    assert list(checkpoints.glob(".*step=6.ckpt-being-written")), "the control: it died while it wrote"
    command = fit(workshop, "killed", at_step(workshop, "killed", 3), EACH_HALF, *FSDP, ONE_FILE)
    run_on_two(command)
    assert_same_run(workshop, "killed")


LORA = """
trainer:
  log_every_n_steps: 3
  callbacks:
    - class_path: lightning_action.callbacks.FreezeBackboneFirst
      init_args: {name: lora, backbone: ["generator.*.lora_*"], unfreeze_at_step: 2}
    - class_path: lightning_action.callbacks.FreezeBackboneFirst
      init_args: {backbone: [generator], exclude: ["generator.*.lora_*"], unfreeze_at_step: 6}
    - class_path: lightning_action.callbacks.EMA
    - class_path: lightning_action.callbacks.GradientStatistics
model:
  lora: {rank: 3, target_modules: [q, ffn.0]}
  generator: {init_args: {activation_checkpointing: true}}
"""


def gradient_statistics(workshop: Path, name: str) -> dict[str, list[float]]:
    (log,) = (workshop / name / "lightning_logs").glob("*/events.out.*")
    events = EventAccumulator(str(log)).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("grad/")]
    return {tag: [event.value for event in events.Scalars(tag)] for tag in tags}


def assert_same_statistics(shown: dict[str, list[float]], expected: dict[str, list[float]]) -> None:
    assert shown.keys() == expected.keys()
    for tag, values in expected.items():
        assert shown[tag] == pytest.approx(values, rel=2e-3, abs=1e-6), tag


def test_three_states_with_lora_averages_statistics_and_checkpointing(workshop: Path) -> None:
    (workshop / "lora.yaml").write_text(LORA)
    lora = f"--config={workshop / 'lora.yaml'}"
    run(fit(workshop, "one_lora", lora))
    run_on_two(fit(workshop, "ddp_lora", lora, EACH_HALF, f"--config={ROOT / 'configs' / 'ddp.yaml'}"))
    run_on_two(fit(workshop, "lora", lora, EACH_HALF, *FSDP, ONE_FILE))
    statistics = gradient_statistics(workshop, "one_lora")
    assert len(statistics["grad/norm/action"]) == 4 and "grad/clipped_norm/lora" in statistics
    for name in ("ddp_lora", "lora"):
        assert_same_statistics(gradient_statistics(workshop, name), statistics)
    one, two = last(workshop, "one_lora"), last(workshop, "lora")
    for part in ("state_dict", "ema_state_dict"):
        torch.testing.assert_close(two[part], one[part], atol=1e-5, rtol=0)
        torch.testing.assert_close(last(workshop, "ddp_lora")[part], one[part], atol=1e-5, rtol=0)
    assert [group["name"] for group in two["optimizer_states"][0]["param_groups"]] == ["action", "lora", "backbone"]
    first = torch.load(path_at_step(workshop, "one_lora", 3), weights_only=True)["state_dict"]
    moved = {name: bool((value != first[name]).any()) for name, value in one["state_dict"].items()}
    assert moved["generator.blocks.0.self_attn.q.lora_B.default.weight"]
    assert moved["generator.blocks.0.self_attn.q.base_layer.weight"]
    before = load_file(workshop / "backbone" / "generator.safetensors")["blocks.0.self_attn.q.weight"]
    assert torch.equal(first["generator.blocks.0.self_attn.q.base_layer.weight"], before), "frozen until step 6"
    run_on_two(fit(workshop, "lora_on", at_step(workshop, "one_lora", 3), lora, EACH_HALF, *FSDP, ONE_FILE))
    for part in ("state_dict", "ema_state_dict"):
        torch.testing.assert_close(last(workshop, "lora_on")[part], one[part], atol=1e-5, rtol=0)


DROPPED = """
trainer:
  max_steps: 4
  callbacks: [tests.support.dropped_actions.DroppedActions]
"""


def test_a_rank_without_actions_keeps_nobody_waiting(workshop: Path) -> None:
    (workshop / "dropped.yaml").write_text(DROPPED)
    dropped = f"--config={workshop / 'dropped.yaml'}"
    replicated = (f"--config={ROOT / 'configs' / 'ddp.yaml'}",)
    for name, strategy in (("ddp", replicated), ("fsdp", (*FSDP, ONE_FILE))):
        run_on_two(fit(workshop, f"{name}_dropped", dropped, EACH_HALF, *strategy))
    replicated_state, sharded_state = (last(workshop, f"{name}_dropped")["state_dict"] for name in ("ddp", "fsdp"))
    torch.testing.assert_close(sharded_state, replicated_state, atol=1e-5, rtol=0)


FROZEN = """
trainer:
  callbacks: [lightning_action.callbacks.EMA]
model:
  lora: {rank: 3}
  optimization: {train_backbone: false}
"""


def test_a_frozen_backbone_has_no_state_in_folders_either(workshop: Path) -> None:
    (workshop / "frozen.yaml").write_text(FROZEN)
    frozen = f"--config={workshop / 'frozen.yaml'}"
    run(fit(workshop, "one_frozen", frozen))
    run_on_two(fit(workshop, "frozen", frozen, EACH_HALF, *FSDP))
    assert_average_is_exported(workshop, "frozen", last(workshop, "one_frozen"))
    start = at_step(workshop, "frozen", 9)
    run_on_two(fit(workshop, "frozen_on", start, frozen, EACH_HALF, *FSDP, ONE_FILE))
    one, two = last(workshop, "one_frozen"), last(workshop, "frozen_on")
    for part in ("state_dict", "ema_state_dict"):
        torch.testing.assert_close(two[part], one[part], atol=1e-5, rtol=0)
    torch.testing.assert_close(two["optimizer_states"][0]["state"], one["optimizer_states"][0]["state"])
    trained = [name for name in one["state_dict"] if name.startswith("action_projection") or ".lora_" in name]
    assert len(one["optimizer_states"][0]["state"]) == len(trained) < len(one["state_dict"])


def assert_average_is_exported(workshop: Path, name: str, expected: dict[str, Any]) -> None:
    """With LoRA merged: what a plain `export` writes differs."""
    (config,) = (workshop / name / "lightning_logs").glob("*/config_fit.yaml")
    folder = workshop / name / "checkpoints" / "last.ckpt"
    exported = {}
    for more in ((), ("--ema",)):
        output = workshop / name / f"generator{len(more)}.safetensors"
        main(["export", f"--config={config}", f"--ckpt_path={folder}", "--format=wan", f"--output={output}", *more])
        exported[more] = load_file(output)["blocks.0.self_attn.q.weight"]
    layer = "generator.blocks.0.self_attn.q"
    lora = [expected["ema_state_dict"][f"{layer}.lora_{side}.default.weight"] for side in "BA"]
    merged = expected["state_dict"][f"{layer}.base_layer.weight"] + lora[0] @ lora[1]
    torch.testing.assert_close(exported[("--ema",)], merged, atol=1e-5, rtol=0)
    assert (exported[()] - merged).abs().max() > 1e-6


def predict(workshop: Path, name: str, *more: str) -> list[str]:
    """Five videos of five lengths, one of which switches prompts; Lightning's own sampler shares them out unevenly."""
    videos = "data: {class_path: tests.support.uneven_videos.UnevenVideos}"
    (workshop / "uneven.yaml").write_text(videos)
    arguments = [argument for argument in small("predict", workshop / name) if "--data" not in argument]
    return [*arguments, f"--config={workshop / 'uneven.yaml'}", at_step(workshop, "one", 12), *more, "--allow=tests"]


def videos(workshop: Path, name: str) -> dict[str, Tensor]:
    paths = (workshop / name / "predictions").glob("*.pt")
    return {path.stem: torch.load(path, weights_only=True)["latents"] for path in paths}


@pytest.mark.parametrize("reshard", ["true", "false"])
def test_ranks_with_other_numbers_and_lengths_of_videos_finish(workshop: Path, reshard: str) -> None:
    name = f"reshard_{reshard}"
    run(predict(workshop, "alone", WRITER))
    run_on_two(predict(workshop, name, *FSDP, WRITER, f"--model.sharding.reshard_after_forward={reshard}"))
    alone, shared = videos(workshop, "alone"), videos(workshop, name)
    assert [len(alone[name]) for name in sorted(alone)] == list(NUM_LATENTS)
    # Gathered parameters lie elsewhere in memory, which decides how a product of matrices is summed up.
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)
