"""Outputs of the public causal Wan implementations, for every pair of files in the reference folder.

A pair is `*_weights.safetensors` (original Wan names, constructor sizes as metadata) and `*_cases.safetensors`. The
cases say by their names what they are: block size, window, sink, and whether actions act.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lightning_action import ActionModulationProjection, BlockCausality, CausalRollout, CausalWanModel
from lightning_action.diffusion.flow_matching import FlowMatchSchedule
from lightning_action.diffusion.samplers import few_step
from lightning_action.generation.rollout import rollout

FOLDER = Path(os.environ.get("LIGHTNING_ACTION_REFERENCE_DIR", Path(__file__).parents[1] / "data"))
TOLERANCE = 1e-5
CASE = re.compile(r"(diffusion_forcing|teacher_forcing|rollout)_block\d+.*|(sigmas|training_weights)_shift.*")


@cache
def pair(stem: str) -> tuple[CausalWanModel, dict[str, Tensor]]:
    path = FOLDER / f"{stem}_weights.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    sizes = {key: json.loads(f"[{value}]" if "," in value else value) for key, value in metadata.items()}
    generator = CausalWanModel(**sizes)
    generator.load_state_dict(load_file(path))
    return generator.eval(), load_file(FOLDER / f"{stem}_cases.safetensors")


def stems() -> list[str]:
    found = sorted(path.name.removesuffix("_weights.safetensors") for path in FOLDER.glob("*_weights.safetensors"))
    return [stem for stem in found if (FOLDER / f"{stem}_cases.safetensors").is_file()]


def cases() -> list[tuple[str, str]]:
    names = []
    for stem in stems():
        with safe_open(FOLDER / f"{stem}_cases.safetensors", "pt") as file:
            names += [(stem, name) for name in file.keys() if CASE.fullmatch(name)]  # noqa: SIM118
    return names


def causality_of(name: str) -> BlockCausality:
    def number(word: str) -> int | None:
        found = re.search(rf"_{word}(\d+)", name)
        return int(found.group(1)) if found else None

    return BlockCausality(number("block") or 1, number("window"), number("sink") or 0)


def compute(generator: CausalWanModel, data: dict[str, Tensor], name: str) -> Tensor:
    causality, acts = causality_of(name), name.endswith("_action")
    if name.startswith("diffusion_forcing"):
        modulation = data["action_modulation"] if acts else None
        return generator.block_causal(data["noisy"], data["timestep"], data["text"], causality, modulation)
    if name.startswith("teacher_forcing"):
        modulation = data["action_modulation"] if acts else None
        return generator.teacher_forcing(
            data["clean"], data["noisy"], data["timestep"], data["text"], causality, modulation
        )
    return compute_rollout(generator, data, causality, acts)


def compute_rollout(
    generator: CausalWanModel, data: dict[str, Tensor], causality: BlockCausality, acts: bool
) -> Tensor:
    num_frames = data["rollout_noise"].shape[1]

    def noise(frames: range, step: int) -> Tensor:
        source = data["rollout_noise"] if step == 0 else data["rollout_renoise"][:, step - 1]
        return source[:, frames.start : frames.stop]

    latent_shape = data["rollout_noise"].shape[2:]
    timesteps = data["denoising_timesteps"].tolist()
    sampler = partial(few_step, timesteps=timesteps, schedule=FlowMatchSchedule(5.0))
    session = CausalRollout(generator, data["text"], causality, sampler, noise, tuple(latent_shape), num_frames)
    modulation = data[f"action_modulation_{num_frames}"] if acts else None
    return torch.cat(list(rollout(session, num_frames, modulation)), dim=1)


def test_there_are_references() -> None:
    kinds = {name.split("_block")[0] for _, name in cases()}
    assert {"diffusion_forcing", "teacher_forcing", "rollout"} <= kinds, f"no reference cases in {FOLDER}"


@pytest.mark.parametrize(("stem", "name"), cases())
@torch.no_grad()
def test_case(stem: str, name: str) -> None:
    generator, data = pair(stem)
    if name.startswith(("sigmas", "training_weights")):
        schedule = FlowMatchSchedule(float(name.split("_shift")[1]))
        computed = schedule.sigmas if name.startswith("sigmas") else schedule.weights
    else:
        computed = compute(generator, data, name)
    torch.testing.assert_close(computed, data[name], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("stem", stems())
@torch.no_grad()
def test_actions_matter(stem: str) -> None:
    """A parity that holds with the actions left out would prove nothing about them."""
    generator, data = pair(stem)
    with_actions = [name for name in data if CASE.fullmatch(name) and name.endswith("_action")]
    assert with_actions
    for name in with_actions:
        without = compute(generator, data, name.removesuffix("_action"))
        assert (without - data[name]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("stem", stems())
@torch.no_grad()
def test_action_projection(stem: str) -> None:
    _, data = pair(stem)
    prefix = "projection_state."
    state = {name.removeprefix(prefix): tensor for name, tensor in data.items() if name.startswith(prefix)}
    action_dim = data["projection_actions"].shape[-1]
    hidden_dim, num_features = state["action_embedding.0.weight"].shape
    projection = ActionModulationProjection(
        action_dim,
        dim=data["projection_modulation"].shape[-1],
        hidden_dim=hidden_dim,
        num_fourier_bands=(num_features // action_dim - 1) // 2,
        lowest_band=1.0,
        slot_scales=(1, 1, 0.2, 1, 1, 0.2),
    )
    projection.load_state_dict(state)
    modulation = projection(data["projection_actions"])
    torch.testing.assert_close(modulation, data["projection_modulation"], atol=TOLERANCE, rtol=0)
