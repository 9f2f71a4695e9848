"""The benchmark runs, and what it measures is what it says. Nothing here depends on how long anything takes."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import cost

FIGURES = {
    "block_time_last_to_first",
    *(f"action_{forward}{kind}" for forward in ("teacher_forcing", "denoise") for kind in ("", "_per_layer", "_noise")),
    "rollout_recomputed_to_cached",
}
DIFFUSERS_FIGURES = {"forward_to_diffusers", "video_to_diffusers", "first_block_to_diffusers"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("cost") / "cost.json"
    cost.main(["--tiny", "--json", str(path)])
    assert [path] == list(path.parent.iterdir())
    return json.loads(path.read_text())


def test_every_figure_is_there_and_finite(result: dict[str, Any]) -> None:
    assert result.keys() == {"machine", "sizes", "figures", "checks"}
    assert result["figures"].keys() == FIGURES | DIFFUSERS_FIGURES
    for figure in result["figures"].values():
        measured = [figure["ratio"], figure["numerator_ms"], figure["denominator_ms"]]
        assert all(math.isfinite(value) and value > 0 for value in measured)


def test_machine_is_told(result: dict[str, Any]) -> None:
    assert result["machine"]["torch"] == torch.__version__
    assert result["machine"]["threads"] == torch.get_num_threads()
    assert result["machine"]["device"] == "cpu"


def test_cache_stays_as_it_is(result: dict[str, Any]) -> None:
    checks = result["checks"]
    assert checks["blocks_generated"] == cost.TINY.num_blocks
    assert checks["cache_bytes_before"] == checks["cache_bytes_after"] > 0
    assert checks["cache_stayed_in_place"] is True


def test_cached_and_recomputed_video_agree(result: dict[str, Any]) -> None:
    assert result["checks"]["rollout_max_difference"] < 1e-4  # float32, latents of order 1


def test_both_transformers_have_the_same_size(result: dict[str, Any]) -> None:
    assert result["checks"]["parameters"] == result["checks"]["parameters_diffusers"]


@torch.no_grad()
def test_actions_and_past_matter_to_the_video() -> None:
    """Two videos that agree because nothing acts would prove nothing."""
    bench = cost.Bench(cost.TINY, torch.device("cpu"))
    modulation = bench.shared(bench.actions)
    with_actions, without = cost.cached_video(bench, modulation), cost.cached_video(bench)
    assert (with_actions - without).abs().max() > 1e-2
    last = bench.unlimited.split(cost.TINY.num_frames)[-1]
    alone = cost.velocity_after(
        bench, bench.video[:, :0], modulation[:, last.start :], bench.video[:, last.start :], 500
    )
    after = cost.velocity_after(bench, bench.video[:, : last.start], modulation, bench.video[:, last.start :], 500)
    assert (alone - after).abs().max() > 1e-3


@torch.no_grad()
def test_without_diffusers_it_says_so_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert cost.diffusers_figures(cost.Bench(cost.TINY, torch.device("cpu"))) == ({}, {})
    assert "pip install 'lightning_action[wan]'" in capsys.readouterr().err


def test_a_missing_folder_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cost.main(["--tiny", "--json", str(tmp_path / "missing" / "cost.json")])
    said = capsys.readouterr().err
    assert "no folder" in said
    assert "[1/" not in said
