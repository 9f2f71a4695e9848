"""Content of a batch: a dict that DataModules make, and that training, measuring and generating read.

`video` `[B, T, 3, H, W]` in [-1, 1], `action` `[B, rows, columns]` as an `ActionSchema` says (None is no action),
`prompt`, a list of B strings, and `sample_id` `[B]`, to which the noise belongs. Where some samples were recorded
without actions, `has_action` `[B]` bool says which have one, and the rows of the others mean nothing. For generation
`video` may be just the start, or be missing; then `frame_size` `[B, 2]` gives height and width. `prompt_switches`, for
each sample a list of pairs (latent frame, prompt), says what follows on `prompt` while the video runs.

What the frozen parts make may be there already: `latents` `[B, F, C, h, w]` in place of `video`, with `frame_size`, and
`text` `[B, L, text_dim]`, the encoded `prompt`, zero past each prompt's end; `empty_text`, likewise, is an empty one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor

from lightning_action.action.schema import ActionSchema

Batch = dict[str, Any]

_WHOLE = {
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
}
# How far pixels may lie outside [-1, 1]: resizing overshoots a little.
_PIXEL_TOLERANCE = 0.1


def num_pixel_frames(num_latents: int, temporal_compression_ratio: int) -> int:
    """Pixel frames of some latent frames, the first of which stands for one: `T = 1 + r (F - 1)`."""
    return 1 + temporal_compression_ratio * (num_latents - 1)


def pixel_frames_of(latent: int, temporal_compression_ratio: int) -> range:
    """Pixel frames that a latent frame stands for: one the first, r each other."""
    ratio = temporal_compression_ratio
    return range(max(0, num_pixel_frames(latent, ratio)), num_pixel_frames(latent + 1, ratio))


def num_latent_frames(num_frames: int, temporal_compression_ratio: int) -> int:
    """Latent frames that some pixel frames fill, `F = 1 + (T - 1) // r`."""
    return 1 + (num_frames - 1) // temporal_compression_ratio


def to_unit_range(video: Tensor) -> Tensor:
    """Map pixels from [-1, 1], as they are inside, to [0, 1], as they are handed out."""
    return (video * 0.5 + 0.5).clamp(0, 1)


def to_bytes(video: Tensor) -> Tensor:
    """Map pixels from [-1, 1] to bytes, uint8 from 0 to 255, as files hold them."""
    return bytes_of_unit_range(to_unit_range(video))


def bytes_of_unit_range(video: Tensor) -> Tensor:
    """Map pixels from [0, 1] to bytes, as `to_bytes`."""
    return (video.float() * 255).round().to(torch.uint8)


def from_unit_range(video: Tensor) -> Tensor:
    """Map pixels from [0, 1] to [-1, 1]."""
    return video * 2 - 1


def check_batch(batch: Batch) -> None:
    """Refuse a batch that nothing can be generated from.

    Raises:
        ValueError: The batch lacks what the message names, or it does not fit the number of samples.
    """
    if not isinstance(batch, dict):
        raise ValueError(f"a batch is a dict with `prompt` and `sample_id`, got a {type(batch).__name__}")
    missing = [key for key in ("prompt", "sample_id") if key not in batch]
    if missing:
        raise ValueError(f"the batch has no {' and no '.join(missing)}; {_what_it_has(batch, missing)}")
    samples = batch["sample_id"]
    if not isinstance(samples, Tensor) or samples.ndim != 1 or samples.dtype not in _WHOLE:
        found = f"{samples.dtype} of shape {list(samples.shape)}" if isinstance(samples, Tensor) else repr(samples)
        raise ValueError(f"`sample_id` must be a tensor [B] of whole numbers, to which the noise belongs, got {found}")
    size = len(samples)
    prompts = batch["prompt"]
    is_list = isinstance(prompts, list | tuple) and len(prompts) == size
    if not is_list or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"`prompt` must be a list of {size} strings, one for each sample_id, got {prompts!r}")
    if has_actions(batch):
        _check_rows(batch["action"], size)
    told = batch.get("has_action", torch.ones(size, dtype=torch.bool))
    if not isinstance(told, Tensor) or told.shape != (size,) or told.dtype != torch.bool:
        raise ValueError(f"`has_action` must be a tensor [{size}] of bool, got {told!r}")
    if "video" in batch and not isinstance(batch["video"], Tensor):
        raise ValueError(f"`video` must be a tensor [B, T, 3, H, W], got {type(batch['video']).__name__}")
    if "video" in batch and (batch["video"].ndim != 5 or not batch["video"].is_floating_point()):
        raise ValueError(
            "`video` must be floats [B, T, 3, H, W] in [-1, 1], got "
            f"{batch['video'].dtype} of shape {list(batch['video'].shape)}"
        )
    for key, axes in (("latents", "F, C, h, w"), ("text", "L, text_dim"), ("empty_text", "L, text_dim")):
        if key in batch:
            _check_encoded(key, axes, batch[key], size)


def _check_encoded(key: str, axes: str, encoded: object, size: int) -> None:
    ndim = 1 + len(axes.split(", "))
    if (
        not isinstance(encoded, Tensor)
        or not encoded.is_floating_point()
        or (encoded.ndim, len(encoded)) != (ndim, size)
    ):
        found = f"{encoded.dtype} {list(encoded.shape)}" if isinstance(encoded, Tensor) else type(encoded).__name__
        raise ValueError(f"`{key}` must be a tensor of floats [{size}, {axes}], got {found}")


def has_video(batch: Batch) -> bool:
    """Tell whether a batch has a video, as pixels or as latents."""
    return "video" in batch or "latents" in batch


def check_pixels(batch: Batch) -> None:
    """Refuse a video whose samples, channels or range are not those of a batch; look once, it waits for the device.

    Raises:
        ValueError: The video has another type, shape or range; the message says what was expected and what came.
    """
    if "video" not in batch:
        return
    video: Tensor = batch["video"]
    if len(video) != len(batch["sample_id"]) or video.shape[2] != 3:
        raise ValueError(f"expected `video` [{len(batch['sample_id'])}, T, 3, H, W], got {list(video.shape)}")
    if not video.numel():
        return
    low, high = video.aminmax()
    if not bool((low >= -1 - _PIXEL_TOLERANCE) & (high <= 1 + _PIXEL_TOLERANCE)):
        raise ValueError(f"pixels are in [-1, 1], those of `video` go from {low.item():g} to {high.item():g}")
    if bool((low >= 0) & (high > 0.5)):
        # A dark or a bright video may be right.
        warnings.warn(
            f"pixels are in [-1, 1], and those of `video` go from {low.item():g} to {high.item():g}: if they are in "
            "[0, 1], give 2 x - 1",
            stacklevel=2,
        )


def check_actions(batch: Batch, schema: ActionSchema, num_frames: int, infers: bool) -> None:
    """Refuse actions that are not those of `num_frames` latent frames, and a missing key that nothing makes up for.

    Args:
        batch: Batch of any origin.
        schema: Meaning of its actions.
        num_frames: Number of latent frames of its video.
        infers: True if an action module says what was done where the key is missing.

    Raises:
        ValueError: The rows are missing, or have another type, shape or number; the message has what was expected and
            what came.
    """
    if "action" not in batch and not infers:
        raise ValueError(
            "the batch has no `action` [B, rows, columns] (None for no action), and no action_module infers one; "
            f"{_what_it_has(batch, ['action'])}"
        )
    if has_actions(batch):
        schema.encode(batch["action"], num_frames)


def _check_rows(action: object, size: int) -> None:
    if not isinstance(action, Tensor) or action.ndim != 3 or len(action) != size or action.is_complex():
        found = f"{action.dtype} {list(action.shape)}" if isinstance(action, Tensor) else type(action).__name__
        raise ValueError(f"`action` must be a tensor of real numbers [{size}, rows, columns], got {found}")


def trained_latents(batch: Batch, temporal_compression_ratio: int) -> int:
    """Count latent frames of a video to train on.

    Raises:
        ValueError: The batch has no video, or its frames are no whole number of latent frames.
    """
    if "latents" in batch:
        return int(batch["latents"].shape[1])
    if "video" not in batch:
        raise ValueError(
            f"the batch has no `video` [B, T, 3, H, W], which training needs; {_what_it_has(batch, ['video'])}"
        )
    frames: int = batch["video"].shape[1]
    if (frames - 1) % temporal_compression_ratio:
        raise ValueError(
            f"a video of {frames} frames is no whole number of latent frames: expected 1 + "
            f"{temporal_compression_ratio} n"
        )
    return num_latent_frames(frames, temporal_compression_ratio)


def _what_it_has(batch: Batch, missing: list[str]) -> str:
    close = [name for key in missing for name in get_close_matches(key, map(str, batch), 1)]
    return f"it has {', '.join(sorted(map(str, batch)))}" + "".join(f"; did you mean `{name}`?" for name in close)


def first_samples(batch: Batch, count: int) -> Batch:
    """Take the first samples of a batch; what is not a row of values for each sample stays as it is."""
    return choose_samples(batch, range(min(count, len(batch["sample_id"]))))


def choose_samples(batch: Batch, indices: Sequence[int]) -> Batch:
    """Take some samples of a batch by their places in it; what is not a row of values for each stays as it is."""
    size, places = len(batch["sample_id"]), list(indices)

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(value[place] for place in places) if len(value) == size else value
        has_rows = isinstance(value, Tensor | ndarray) and value.ndim > 0 and len(value) == size
        return value[places] if has_rows else value

    return {key: cut(value) for key, value in batch.items()}


def has_actions(batch: Batch) -> bool:
    """Tell whether a batch has action rows."""
    return batch.get("action") is not None


def samples_without_action(batch: Batch) -> Tensor | None:
    """Tell which samples `[B]` have no action although the batch has action rows; None where all have one."""
    return ~batch["has_action"] if "has_action" in batch else None


def acting(batch: Batch) -> slice | Tensor:
    """Index of the samples of a batch with action rows that have an action."""
    return batch.get("has_action", slice(None))


def infers_actions(batch: Batch) -> bool:
    """Tell whether a batch leaves its actions to an action module; a batch without actions says so by None."""
    return "action" not in batch


def kinds_in(batch: object) -> list[Any]:
    """Describe what a batch consists of, by which another one differs that must be looked at again.

    How long its prompts are makes no difference.
    """
    if not isinstance(batch, dict):
        return [type(batch)]
    tensors = [
        (key, value.shape[2 if key in ("text", "empty_text") else 1 :], value.dtype)
        for key, value in batch.items()
        if isinstance(value, Tensor)
    ]
    return [sorted(map(str, batch)), tensors]


def without_actions(batch: Batch) -> Batch:
    """Replace the actions of a batch by none, which an action module does not replace by one of its own."""
    return {**batch, "action": None}


def other_actions(batch: Batch, num_initial_rows: int = 0) -> Batch:
    """The batch under actions that are not its own: those of the sample before, or its own backwards if it is alone.

    The first rows, `num_initial_rows` of them, belong to what is given, and stay.
    """
    action: Tensor = batch["action"]
    other = action.roll(1, dims=0) if len(action) > 1 else action.flip(1)
    return {**batch, "action": after_start(action, other, num_initial_rows)}


def after_start(own: Tensor, other: Tensor, num_initial_rows: int) -> Tensor:
    """Keep the action rows that belong to the given frames, and take others `[B, rows, columns]` after them."""
    return torch.cat([own[:, :num_initial_rows], other[:, num_initial_rows:]], dim=1)


def shuffled_actions(batch: Batch, randoms: Sequence[torch.Generator]) -> Batch:
    """The batch under the rows of its own actions in another order, which a random generator of each sample draws."""
    action: Tensor = batch["action"]
    orders = [torch.randperm(action.shape[1], generator=random) for random in randoms]
    rows = [sample[order.to(action.device)] for sample, order in zip(action, orders, strict=True)]
    return {**batch, "action": torch.stack(rows)}


def frame_size(batch: Batch) -> tuple[int, int]:
    """Find height and width of the pixel frames.

    Raises:
        ValueError: The batch has neither a video nor a frame size.
    """
    if "video" in batch:
        height, width = batch["video"].shape[-2:]
    elif "frame_size" in batch:
        height, width = batch["frame_size"][0].tolist()
    else:
        raise ValueError("a batch without `video` needs `frame_size` [B, 2], the height and width of the pixel frames")
    return height, width


def num_latents(batch: Batch, schema: ActionSchema) -> int:
    """Count latent frames to generate: as the action rows say, else as long as the video, else `num_latents`.

    Raises:
        ValueError: The rows are for no whole number of latent frames, or nothing says how long the video is.
    """
    if has_actions(batch):
        return schema.num_latents(batch["action"].shape[1])
    if "latents" in batch:
        return int(batch["latents"].shape[1])
    if "video" in batch:
        return num_latent_frames(batch["video"].shape[1], schema.temporal_compression_ratio)
    if "num_latents" not in batch:
        raise ValueError("a batch with neither `action` nor `video` needs `num_latents`, the length of the video")
    return int(batch["num_latents"])


def first_frames(
    batch: Batch, num_initial_latents: int, num_latents: int, temporal_compression_ratio: int
) -> Batch | None:
    """Take the first of `num_latents` latent frames of a video, as `latents` or as the pixels of them; None for none.

    Raises:
        ValueError: The video has fewer frames than are given, or nothing is left to generate.
    """
    if not has_video(batch) or num_initial_latents == 0:
        return None
    if num_initial_latents >= num_latents:
        raise ValueError(
            f"num_initial_latents {num_initial_latents} leaves nothing to generate of a video of {num_latents} latent "
            "frames: lower sampling.num_initial_latents, or give more actions"
        )
    key, count = "latents", num_initial_latents
    if key not in batch:
        key, count = "video", num_pixel_frames(num_initial_latents, temporal_compression_ratio)
    frames: Tensor = batch[key]
    if frames.shape[1] < count:
        told = "frames" if key == "video" else "latent frames"
        raise ValueError(f"num_initial_latents {num_initial_latents} needs {count} {told}, got {frames.shape[1]}")
    return {key: frames[:, :count]}
