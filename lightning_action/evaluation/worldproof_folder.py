"""Rollouts in the folder format of worldproof 0.1 (PyPI, Apache-2.0), a judge of world models that is not ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_action.action.schema import ActionSchema
from lightning_action.atomic import write_json

FORMAT_VERSION = "0.1-provisional"


@dataclass(frozen=True)
class RolloutFacts:
    """Facts that the judge tells of rollouts, and pairs them by.

    Args:
        context_id: Name of the start; two rollouts of one start under different actions are a counterfactual pair.
        model_id: Name of the model.
        seed: Seed of the noise of the first video.
        fps: Number of frames of a second.
        seconds: Time that generating took.
    """

    context_id: str
    model_id: str
    seed: int
    fps: float
    seconds: float


def write_rollout(
    folder: Path,
    facts: RolloutFacts,
    action: Tensor,
    context: Tensor,
    predictions: Tensor,
    truth: Tensor | None,
) -> None:
    """Write one rollout as a folder: `manifest.json`, `actions.npy`, and a folder of PNGs for each video.

    Args:
        folder: New folder.
        facts: Facts that are told of it.
        action: Action of each predicted frame, `[horizon, ...]`, see `actions_by_frame`.
        context: Given frames, uint8 `[n, 3, H, W]`.
        predictions: Generated frames after them, of each draw of noise, uint8 `[samples, horizon, 3, H, W]`.
        truth: True frames after them, uint8 `[horizon, 3, H, W]`; None where nobody knows them.
    """
    num_samples, horizon, channels, height, width = predictions.shape
    folder.mkdir(parents=True)
    np.save(folder / "actions.npy", action.float().cpu().numpy())
    _write_frames(folder / "context", context)
    for index, video in enumerate(predictions):
        _write_frames(folder / "predictions" / f"sample_{index:02d}", video)
    if truth is not None:
        _write_frames(folder / "ground_truth", truth)
    manifest = {
        "format_version": FORMAT_VERSION,
        "modality": "pixels",
        "storage": "png_sequence",
        "fps": facts.fps,
        "resolution": [height, width],
        "channels": channels,
        "model_id": facts.model_id,
        "seed": facts.seed,
        "camera_id": None,
        "lossy_source": False,
        "inference_latency_s": facts.seconds,
        "context_id": facts.context_id,
        "is_failure": None,
        "horizon": horizon,
        "n_samples": num_samples,
        "has_ground_truth": truth is not None,
    }
    write_json(folder / "manifest.json", manifest)


def actions_by_frame(schema: ActionSchema, action: Tensor, num_initial_latents: int) -> Tensor:
    """Give each generated pixel frame the action row that belongs to it, as the judge wants them.

    Args:
        schema: Meaning of the actions.
        action: Action rows of a sample, `[rows, columns]`.
        num_initial_latents: Number of latent frames that are given, at least 1.

    Returns:
        `[horizon, columns]`, or `[horizon, rows of a frame, columns]` where a pixel frame has several; what is the row
        of a latent frame stands at each of its pixel frames.
    """
    ratio, last = schema.temporal_compression_ratio, schema.num_latents(len(action))
    if schema.alignment == "per_latent":
        return action[num_initial_latents:].repeat_interleave(ratio, dim=0)
    rows = torch.cat([action[list(schema.rows_of(latent))] for latent in range(num_initial_latents, last)])
    return rows if schema.rows_per_frame == 1 else rows.unflatten(0, (-1, schema.rows_per_frame))


def _write_frames(folder: Path, video: Tensor) -> None:
    from PIL import Image

    folder.mkdir(parents=True)
    for index, frame in enumerate(video.permute(0, 2, 3, 1).contiguous().cpu().numpy()):
        Image.fromarray(frame).save(folder / f"frame_{index:05d}.png")
