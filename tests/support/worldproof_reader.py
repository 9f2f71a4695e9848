"""A reader of worldproof's folders that takes what its documentation says, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

KINDS: dict[str, type | tuple[type, ...]] = {
    "format_version": str,
    "modality": str,
    "storage": str,
    "fps": float,
    "resolution": list,
    "channels": int,
    "model_id": str,
    "seed": int,
    "camera_id": type(None),
    "lossy_source": bool,
    "inference_latency_s": float,
    "context_id": str,
    "is_failure": type(None),
    "horizon": int,
    "n_samples": int,
    "has_ground_truth": bool,
}


@dataclass(frozen=True)
class Rollout:
    """Frames are uint8 `[T, H, W, 3]`; predictions have a first axis of samples."""

    manifest: dict[str, object]
    actions: np.ndarray
    context: np.ndarray
    predictions: np.ndarray
    ground_truth: np.ndarray | None


def read_rollout(folder: Path) -> Rollout:
    """Read a rollout, and see that it holds what its manifest says."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest.keys() == KINDS.keys()
    assert all(isinstance(manifest[name], kind) for name, kind in KINDS.items()), manifest
    assert manifest["format_version"] == "0.1-provisional"
    assert (manifest["modality"], manifest["storage"], manifest["channels"]) == ("pixels", "png_sequence", 3)
    assert manifest["fps"] > 0 and manifest["inference_latency_s"] >= 0 and manifest["lossy_source"] is False
    horizon, size = manifest["horizon"], (*manifest["resolution"], 3)
    actions = np.load(folder / "actions.npy", allow_pickle=False)
    assert actions.dtype == np.float32 and actions.ndim >= 2 and len(actions) == horizon
    samples = [f"sample_{index:02d}" for index in range(manifest["n_samples"])]
    assert sorted(path.name for path in (folder / "predictions").iterdir()) == samples
    context = read_frames(folder / "context")
    predictions = np.stack([read_frames(folder / "predictions" / name) for name in samples])
    truth = read_frames(folder / "ground_truth") if manifest["has_ground_truth"] else None
    assert context.shape[1:] == size and predictions.shape[1:] == (horizon, *size)
    assert truth is None or truth.shape == (horizon, *size)
    parts = {"manifest.json", "actions.npy", "context", "predictions"} | (
        {"ground_truth"} if truth is not None else set()
    )
    assert {path.name for path in folder.iterdir()} == parts
    return Rollout(manifest, actions, context, predictions, truth)


def read_frames(folder: Path) -> np.ndarray:
    """Read PNGs in the order of their numbers, which go from 0 on."""
    names = sorted(path.name for path in folder.iterdir())
    assert names == [f"frame_{index:05d}.png" for index in range(len(names))]
    frames = [Image.open(folder / name) for name in names]
    assert all(frame.format == "PNG" and frame.mode == "RGB" for frame in frames)
    return np.stack([np.asarray(frame) for frame in frames])
