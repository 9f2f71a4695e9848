"""What is in a batch: a dict that DataModules make, and that training, measuring and generating read.

`video` `[B, T, 3, H, W]` in [-1, 1], `action` `[B, rows, columns]` as an `ActionSchema` says (None is the null action),
`prompt`, a list of B strings, and `sample_id` `[B]`, to which the noise belongs. For generation `video` may be just the
start, or be missing; then `frame_size` `[B, 2]` gives height and width.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lightning_action.action.schema import ActionSchema

Batch = dict[str, Any]


def check_batch(batch: Batch) -> None:
    """Refuse a batch that nothing can be generated from.

    Raises:
        ValueError: names what is missing, or does not fit the number of samples.
    """
    missing = [key for key in ("prompt", "sample_id") if key not in batch]
    if missing:
        raise ValueError(f"the batch has no {' and no '.join(missing)}; it has {', '.join(sorted(batch))}")
    size = len(batch["sample_id"])
    if not isinstance(batch["prompt"], list | tuple) or len(batch["prompt"]) != size:
        raise ValueError(f"`prompt` must be a list of {size} strings, one for each sample_id, got {batch['prompt']!r}")
    if "video" in batch and (batch["video"].ndim != 5 or not batch["video"].is_floating_point()):
        raise ValueError(
            "`video` must be floats [B, T, 3, H, W] in [-1, 1], got "
            f"{batch['video'].dtype} of shape {list(batch['video'].shape)}"
        )


def has_actions(batch: Batch) -> bool:
    """Whether a batch has action rows."""
    return batch.get("action") is not None


def without_actions(batch: Batch) -> Batch:
    """The batch with the null action, which an action module does not replace by one of its own."""
    return {**batch, "action": None}


def other_actions(batch: Batch) -> Batch:
    """The batch under actions that are not its own: those of the next sample, or its own backwards if it is alone."""
    action: Tensor = batch["action"]
    return {**batch, "action": action.roll(1, dims=0) if len(action) > 1 else action.flip(1)}


def frame_size(batch: Batch) -> tuple[int, int]:
    """Height and width of the pixel frames.

    Raises:
        ValueError: the batch has neither a video nor a frame size.
    """
    if "video" in batch:
        height, width = batch["video"].shape[-2:]
    elif "frame_size" in batch:
        height, width = batch["frame_size"][0].tolist()
    else:
        raise ValueError("a batch without `video` needs `frame_size` [B, 2], the height and width of the pixel frames")
    return height, width


def num_latents(batch: Batch, schema: ActionSchema) -> int:
    """Latent frames to generate: as the action rows say, else as long as `video`, else `num_latents`.

    Raises:
        ValueError: the rows are for no whole number of latent frames, or nothing says how long the video is.
    """
    if has_actions(batch):
        return schema.num_latents(batch["action"].shape[1])
    if "video" in batch:
        frames: int = batch["video"].shape[1]
        return 1 + (frames - 1) // schema.temporal_compression_ratio
    if "num_latents" not in batch:
        raise ValueError("a batch with neither `action` nor `video` needs `num_latents`, the length of the video")
    return int(batch["num_latents"])


def first_frames(batch: Batch, num_initial_latents: int, temporal_compression_ratio: int) -> Tensor | None:
    """The pixel frames `[B, T0, 3, H, W]` of the first latent frames of `video`; None for none.

    Raises:
        ValueError: the video is shorter.
    """
    if "video" not in batch or num_initial_latents == 0:
        return None
    count = 1 + temporal_compression_ratio * (num_initial_latents - 1)
    video: Tensor = batch["video"]
    if video.shape[1] < count:
        raise ValueError(f"num_initial_latents {num_initial_latents} needs {count} frames, got {video.shape[1]}")
    return video[:, :count]
