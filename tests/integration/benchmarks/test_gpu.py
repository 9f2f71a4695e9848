"""The benchmark for GPUs, at toy size on the CPU: that it runs with every flag, never how fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks import gpu
from lightning_action.generator.causality import Visibility
from lightning_action.generator.cost import video_flops
from lightning_action.generator.model import CausalWanModel

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def no_process_group() -> None:
    """Fits of other tests may have left theirs."""
    if dist.is_initialized():
        dist.destroy_process_group()


FIGURES = {"first_frame_latency_s", "block_s_p50", "block_s_p95", "frames_per_second_p50", "frames_per_second_p95"}


@pytest.mark.parametrize(
    "flags", [[], ["--overlap", "--quantization=int8_weight_only", "--no-checkpointing", "--fsdp", "--no-actions"]]
)
def test_it_runs_with_every_flag(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.json"
    gpu.main(["--toy", f"--json={path}", *flags])
    result = json.loads(path.read_text())
    assert result["generation"].keys() == {"none", "full", "tiny"}
    for figures in result["generation"].values():
        assert figures.keys() >= FIGURES and all(figures[name] > 0 for name in FIGURES)
        assert figures["block_s_p50"] <= figures["block_s_p95"]
    assert result["training"]["step_s"] > 0
    assert "| tiny |" in capsys.readouterr().out


@pytest.mark.distributed
def test_several_processes_measure_once(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["benchmarks/gpu.py", "--toy", "--fsdp", f"--json={path}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("| tiny |") == 1
    assert json.loads(path.read_text())["training"]["step_s"] > 0


def test_compiled_layers_are_measured_too() -> None:
    bench = gpu.Bench(gpu.TOY, gpu.Options(compile_mode="default"), torch.float32)
    plain = gpu.Bench(gpu.TOY, gpu.Options(), torch.float32)
    with torch.no_grad():
        for ours, theirs in zip(bench.blocks(3), plain.blocks(3), strict=True):
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
        gpu.main(["--toy", "--json", str(tmp_path / "missing" / "gpu.json")])
