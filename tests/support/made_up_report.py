"""A report of a model that nobody trained, with everything that a report may have; and pictures for it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lightning_action.data.sprite_world import MovingSpriteWorld

NUM_FRAMES, EPISODES = 33, 12
LEVELS = (0, 200, 400, 600, 800, 1000)


def report(skill: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Figures of a model that obeys by a share `skill`."""
    random = torch.Generator().manual_seed(seed)

    def noisy(value: float, deviation: float) -> list[float]:
        return (value + deviation * torch.randn(EPISODES, generator=random)).tolist()

    per_episode = {
        "gain_x": noisy(skill, 0.03),
        "gain_y": noisy(0.98 * skill, 0.03),
        "sign_accuracy": [min(1.0, value) for value in noisy(0.5 + 0.5 * skill, 0.02)],
        "ade_px": noisy(0.6 + 8 * (1 - skill), 0.2),
        "psnr_db": noisy(28 + 2 * skill, 0.7),
        "swapped_win_rate": noisy(skill, 0),
    }
    figures: dict[str, Any] = {name: sum(values) / EPISODES for name, values in per_episode.items()}
    figures |= {"r2_x": 0.98, "r2_y": None, "lag_frames": 0.0, "missing_rate": 0.01, "delta_psnr_db": 4.2}
    figures |= {"cross_talk_x_to_y": 0.01, "cross_talk_y_to_x": -0.02, "psnr_moving_db": 22.4, "ssim": 0.93}
    figures |= {f"gain_speed_q{quartile}": 0.9 + 0.02 * quartile for quartile in range(1, 5)}
    figures |= {
        "counterfactual_ratio": 0.31,
        "swapped_relative_gap": 0.6,
        "held_drift_px": 0.21,
        "a_figure_of_its_own": 3.5,
    }
    blind = {name: 0.0 for name in figures} | {"swapped_win_rate": 0.5, "ade_px": 9.5, "psnr_db": 24.0}
    return {
        **figures,
        "verdict": {
            "label": "obeys" if skill > 0.9 else "partly",
            "reasons": [f"gain x {skill:.2f}, gain y {0.98 * skill:.2f}, right direction in 99 %, lag 0"],
            "thresholds": {"gain_low": 0.8, "gain_high": 1.25, "sign_accuracy": 0.9, "episodes": 8},
        },
        "intervals": {name: [value - 0.05, value + 0.05] for name, value in figures.items() if value is not None},
        "baselines": {"copy_first_frame": blind, "ignore_actions": {**blind, "psnr_db": 23.1}},
        "per_episode": per_episode,
        "baselines_per_episode": {
            "copy_first_frame": {"gain_x": [0.0] * EPISODES, "psnr_db": noisy(24, 0.7)},
            "ignore_actions": {"gain_x": [0.0] * EPISODES, "psnr_db": noisy(23, 0.7)},
        },
        "sample_ids": list(range(EPISODES)),
        "episodes": float(EPISODES),
        "seed": 0,
        "num_frames": NUM_FRAMES,
        "num_initial_frames": 1,
        "rollout": "fully autoregressive",
        "fit_seconds": 431.2,
        "predict_seconds": 12.5,
        "curves": _curves(),
        "protocol": {
            "teacher_forced": ["swapped_win_rate", "swapped_relative_gap"],
            "autoregressive": ["gain_x", "gain_y", "sign_accuracy", "psnr_db"],
        },
        "loss_by_noise_level": {
            kind: [[low, high, scale * high / 5000, 0.5 + high / 2000] for low, high in pairwise(LEVELS)]
            for kind, scale in (("swapped", 1.0), ("shuffled", 0.8), ("null", 0.5))
        },
        "provenance": {
            "checkpoint": {"path": "runs/demo/checkpoints/last.ckpt", "fingerprint": "5f0c" * 16},
            "data": {"class": "SpriteDataModule", "samples": EPISODES, "fingerprint": "ab91" * 16},
            "config": {"model": {"objective": "teacher_forcing"}, "data": {"test_size": EPISODES}},
            "versions": {"lightning_action": "0.1.0", "torch": "2.9.0", "lightning": "2.6.6"},
        },
    }


def _curves() -> dict[str, Any]:
    frames = range(1, NUM_FRAMES)
    psnr = {
        "model": [31 - 0.08 * frame for frame in frames],
        "copy_first_frame": [27 - 4 * (1 - math.exp(-frame / 8)) for frame in frames],
        "ignore_actions": [28 - 5 * (1 - math.exp(-frame / 9)) for frame in frames],
    }
    error = {
        "model": [0.2 + 0.02 * frame for frame in frames],
        "copy_first_frame": [0.55 * frame for frame in frames],
        "ignore_actions": [None if frame < 4 else 0.5 * frame for frame in frames],
    }
    return {"psnr_db": psnr, "position_error_px": error, "psnr_moving_db": psnr, "ssim": {"model": [0.95, 0.94, 0.93]}}


def pictures(num_samples: int = 2, num_frames: int = NUM_FRAMES, image_size: int = 32) -> dict[str, Tensor]:
    """Videos of a world, uint8 `[n, T, 3, H, W]`, as a model would make that obeys."""
    world = MovingSpriteWorld(image_size=image_size, sprite_radius=image_size / 8)
    seeds = list(range(num_samples))
    start = world.start(seeds)

    def video(actions: Tensor) -> Tensor:
        shown = world.render(start, world.simulate(start, actions))
        return ((shown + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    own = world.sample_actions(seeds, num_frames - 1)
    held = {"+x": (1.0, 0.0), "-x": (-1.0, 0.0), "+y": (0.0, 1.0), "-y": (0.0, -1.0), "zero": (0.0, 0.0)}
    return {
        "truth": video(own),
        "model": video(0.97 * own),
        "other": video(own.roll(1, dims=0)),
        "null": video(torch.zeros_like(own)),
        **{f"held {name}": video(torch.tensor(row).mul(0.15).expand_as(own)) for name, row in held.items()},
    }
