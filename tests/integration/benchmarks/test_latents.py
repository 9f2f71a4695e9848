"""The benchmark trains on the same videos in both ways; what it measures is told, not promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import latents

pytest.importorskip("diffusers")


# Those of the packages that diffusers imports.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_figure_is_there(tmp_path: Path) -> None:
    latents.main(["--tiny", "--json", str(tmp_path / "x.json")])
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["sizes"]["rounds"] == 2 and result["target"] == latents.TARGET
    assert result["on_the_fly_to_encoded"] > 0 and result["encoded_seconds"] > 0
    assert result["vae_parameters"] > result["generator_parameters"] > 0
