"""The benchmark for GPUs, at tiny size on the CPU: that it runs with every flag, never how fast."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import _gpu_bench, gpu
from lightning_action.generator.causality import Visibility
from lightning_action.generator.estimates import video_flops
from lightning_action.generator.model import CausalWanModel
from tests.support.forked_processes import end_of, random_port, start_rank


@pytest.fixture(autouse=True)
def no_process_group() -> None:
    """Fits of other tests may have left theirs."""
    if dist.is_initialized():
        dist.destroy_process_group()


FIGURES = {"first_frame_latency_s", "block_s", "block_s_waited_p50", "block_s_waited_p95", "frames_per_second"}
EVERY_FLAG = [
    "--overlap",
    "--capture",
    "--quantization=fp8_dynamic",
    "--attention=fp8",
    "--checkpointing=keep_attention",
    "--no-flex",
    "--fsdp",
    "--no-actions",
]


OTHER_VALUES = ["--compile=default", "--quantization=int8_weight_only", "--checkpointing=none", "--prompt-tokens=3"]


@pytest.mark.parametrize(
    ("flags", "decoders"),
    [([], ["none", "tiny"]), (EVERY_FLAG, ["full", "none", "tiny"]), (OTHER_VALUES, ["none", "tiny"])],
)
def test_it_runs_with_every_flag(
    flags: list[str], decoders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "gpu.json"
    parts = ["--only", "generation", "training", "--decoders", *decoders]
    with torch.compiler.set_stance("force_eager"):
        gpu.main(["--tiny", f"--json={path}", *parts, *flags])
    result = json.loads(path.read_text())
    cases = [
        f"{name}, window {size}, {kept}" for name in decoders for size in (6, 9) for kept in ("clean", "last_step")
    ]
    assert list(result["generation"]) == cases
    for name, figures in result["generation"].items():
        assert figures.keys() >= FIGURES and all(figures[figure] > 0 for figure in FIGURES)
        assert figures["block_s_waited_p50"] <= figures["block_s_waited_p95"]
        assert ("frames_per_second_delivered" in figures) == (not name.startswith("none"))
    assert result["training"]["step_s_min"] > 0
    assert result["machine"]["attention"] and result["machine"]["torch"] == torch.__version__
    assert "| tiny, window 6, clean |" in capsys.readouterr().out


def test_what_cannot_be_measured_is_left_out_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory\nmore lines")

    path = tmp_path / "gpu.json"
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setattr(gpu, "training", full_memory)
    monkeypatch.setattr(_gpu_bench, "find_spec", lambda name: None)
    gpu.main(["--tiny", f"--json={path}", "--decoders", "full", "none"])
    result = json.loads(path.read_text())
    assert result["training"] == {"left out": "out of memory"}
    assert result["peer"] == {"left out": "diffusers is not installed"}
    assert "diffusers" in result["generation"]["full, window 6, clean"]["left out"]
    assert result["generation"]["none, window 6, clean"]["block_s"] > 0


def test_a_missing_package_costs_its_part_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    path = tmp_path / "gpu.json"
    only = ["--only", "generation", "training", "--decoders", "none"]
    gpu.main(["--tiny", f"--json={path}", *only, "--quantization=int8_weight_only"])
    result = json.loads(path.read_text())
    assert all("needs torchao" in figures["left out"] for figures in result["generation"].values())
    assert result["training"]["step_s_min"] > 0


def test_attention_that_cannot_be_kept_is_refused_first(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--checkpointing=keep_attention"])
    assert "give --no-flex too" in capsys.readouterr().err


def test_the_peer_is_the_same_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: model)
    bench = gpu.Bench(gpu.TINY, gpu.Options(), torch.float32)
    passes = _gpu_bench.peers(bench)
    assert set(passes) == {"ours", "diffusers", "diffusers, compiled"}
    assert passes["ours"]().transpose(1, 2).shape == passes["diffusers"]().shape
    theirs = _gpu_bench.diffusers_model(gpu.TINY)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in bench.generator.parameters())
    path = tmp_path / "gpu.json"
    gpu.main(["--tiny", f"--json={path}", "--only", "peer", "--quantization=fp8_dynamic"])
    measured = json.loads(path.read_text())["peer"]
    assert set(measured) == {f"{name} ms" for name in passes} and all(value > 0 for value in measured.values())


@pytest.mark.distributed
def test_several_processes_measure_once(tmp_path: Path) -> None:
    """Started as torchrun starts them."""
    path, told = tmp_path / "gpu.json", [tmp_path / f"told_{rank}" for rank in range(2)]
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(random_port())}
    place["TORCHELASTIC_RUN_ID"] = "this test"
    arguments = ["--tiny", "--fsdp", f"--json={path}", "--only", "generation", "training"]
    ranks = [start_rank(rank, place, told[rank], gpu.main, arguments) for rank in range(2)]
    assert [end_of(rank) for rank in ranks] == [0, 0], told[0].read_text()[-4000:] + told[1].read_text()[-4000:]
    assert sum(each.read_text().count("| tiny, window 6, clean |") for each in told) == 1
    assert json.loads(path.read_text())["training"]["step_s_min"] > 0


def test_compiled_layers_are_measured_too() -> None:
    bench = gpu.Bench(gpu.TINY, gpu.Options(compile_mode="default"), torch.float32)
    plain = gpu.Bench(gpu.TINY, gpu.Options(), torch.float32)
    with torch.no_grad():
        for ours, theirs in zip(bench.blocks(3, 9, "clean"), plain.blocks(3, 9, "clean"), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_the_default_size_is_that_of_wan_1_3b() -> None:
    sizes = gpu.Sizes()
    with torch.device("meta"):
        generator = CausalWanModel(sizes.dim, sizes.ffn_dim, sizes.num_heads, sizes.num_layers)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 1_418_996_800
    one_pass = video_flops(generator, (Visibility(range(9, 12), (range(12),)),), 1560).total
    assert abs(one_pass / 28.3e12 - 1) < 0.02  # TFLOP of one pass over three latents behind a window of 12


def test_a_missing_folder_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--json", str(tmp_path / "missing" / "gpu.json")])
