"""`encode`: latents and encoded prompts of the data of a configuration, made once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.cli import LightningArgumentParser
from tqdm import tqdm

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import num_latent_frames
from lightning_action.checkpoints.pretrained import prepare_codec
from lightning_action.cli.support.folder_lock import FolderLock
from lightning_action.cli.support.parts_cli import PartsCLI, choose_device
from lightning_action.data.clip_encoding import ClipData, cut_clip, encode_clip, encode_prompt
from lightning_action.data.latent_store import CODEC, Encoding, StoredClip, WindowStarts
from lightning_action.data.latent_writer import StoreWriter, write_once
from lightning_action.data.latents import LatentDataModule
from lightning_action.data.split_data import SPLITS, Locator, SplitDataModule
from lightning_action.frozen.holder import FrozenParts
from lightning_action.frozen.interfaces import FittedCodec
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.ranges import require_numbers
from lightning_action.recordings.clips import Clip
from lightning_action.weights.safetensors_files import read_safetensors

DType = Literal["bfloat16", "float32"]


class EncodeCLI(PartsCLI):
    """Adds where to write, in which dtype, and which share of the clips."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        told = "Folder of the store; one that was begun is gone on with."
        add("--output", "--out", type=str, required=True, help=told)
        add("--dtype", type=DType, default="bfloat16", help="Dtype of the latents in the store.")
        add("--device", type=str, default="auto", help="Device of the frozen parts, such as cuda:1 or cpu.")
        add("--rank", type=int | None, default=None, help="Number of this process; default: RANK, or 0.")
        add("--world_size", type=int | None, default=None, help="Number of processes; default: WORLD_SIZE, or 1.")
        add(
            "--window_starts",
            type=WindowStarts,
            default="anywhere",
            help="`clip_start` leaves out what windows inside a clip begin with: half the time and size, about.",
        )
        add(
            "--max_latents",
            type=int | None,
            default=None,
            help="Cut clips into pieces of so many latent frames, each encoded as a video of its own; default: whole.",
        )
        add("--shard_mb", type=float, default=256.0, help="Size of a file in megabytes, about.")


def run_encode(args: Sequence[str]) -> None:
    """Encode all clips of a configuration's data into a store, for LatentDataModule to train from.

    What was finished before is kept, so that the same command goes on after a kill. Processes with different --rank
    share the clips without talking to each other; the one that ends last writes the index.
    """
    cli = EncodeCLI("encode", run_encode.__doc__, args)
    config, source = cli.config, cli.datamodule
    rank = int(os.environ.get("RANK", 0)) if config.rank is None else config.rank
    world_size = int(os.environ.get("WORLD_SIZE", 1)) if config.world_size is None else config.world_size
    require_numbers({"world_size": world_size}, 1, whole=True)
    require_numbers({"rank": rank}, 0, world_size - 1, whole=True)
    require_numbers({"shard_mb": config.shard_mb}, 0.001)
    if config.max_latents is not None:
        require_numbers({"max_latents": config.max_latents}, 1, whole=True)
    device = choose_device(config.device, rank)
    splits, schema = clips_of(source)
    if config.max_latents is not None:
        ratio = cli.model.frozen.vae.temporal_compression_ratio
        splits = {
            split: [piece for clip in clips for piece in cut_clip(clip, config.max_latents, ratio)]
            for split, clips in splits.items()
        }
    cli.model.settle_schema(None, source)
    frame_size = frame_size_of(next(clip for clips in splits.values() for clip in clips), cli.model, schema)
    folder = Path(config.output)
    prepare_frozen(cli.model, source, folder)
    encoding = encoding_of(cli.model, schema, frame_size, config.dtype, config.window_starts)
    writer = StoreWriter(folder, encoding, int(config.shard_mb * 1e6), rank, world_size)
    locator = source.locator if isinstance(source, SplitDataModule) else None
    lock = FolderLock(writer.waiting_room, "give another folder with --output, or another --rank")
    lock.acquire()
    try:
        num_missing = encode(writer, cli.model.frozen, splits, device, locator)
    finally:
        lock.release()
        writer.tidy()
    if num_missing:
        print(f"rank {rank} is done; {num_missing} clips of others are not, so that {folder} has no index yet")
    else:
        print(f"written to {folder}")


def clips_of(source: L.LightningDataModule) -> tuple[dict[str, Sequence[Clip]], ActionSchema | None]:
    """List the clips of each split of a DataModule, and say what their actions mean.

    Raises:
        ValueError: The DataModule offers no clips, or two different ones of one name.
    """
    if isinstance(source, LatentDataModule) or not isinstance(source, ClipData):
        raise ValueError(
            f"{type(source).__name__} has no clips to encode: give a DataModule with `clips(split)`, such as "
            "LeRobotDataModule, VideoFolderDataModule or SpriteDataModule"
        )
    source.prepare_data()
    source.setup("fit")
    splits: dict[str, Sequence[Clip]] = {split: source.clips(split) for split in SPLITS}
    if not any(len(clips) for clips in splits.values()):
        raise ValueError(f"{type(source).__name__} has no clips to encode: its data is empty")
    for split, clips in splits.items():
        names = [clip.name for clip in clips]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two clips of {split} have the name {twice!r}: each needs one of its own")
    return splits, source.action_schema


def prepare_frozen(model: ActionVideoModule, source: L.LightningDataModule, folder: Path) -> None:
    """Read the VAE. One that is fitted to data takes what the store was begun with, or is fitted as in `fit`, and kept.

    Raises as `prepare_codec`.
    """
    vae = model.frozen.vae
    vae.load()
    if not isinstance(vae, FittedCodec):
        return
    path = folder / CODEC
    if not path.exists():
        if not vae.fitted:
            prepare_codec(vae, model.initial_weights.generator, source)
        write_once(path, vae.fitted_tensors())
    vae.load_fitted_tensors(read_safetensors(path), str(path))


def frame_size_of(clip: Clip, model: ActionVideoModule, schema: ActionSchema | None) -> tuple[int, int]:
    """Measure the frames of a clip, in pixels, that has the actions of `schema`; None for those of the model.

    Raises:
        ValueError: Model and data mean different actions, or the VAE takes no frames of this size.
    """
    if schema is not None and model.takes_actions and schema != model.schema:
        raise ValueError(f"the data has the actions {schema}, the model {model.schema}: correct model.schema")
    height, width = clip.video(0, 1).shape[-2:]
    model.frozen.vae.latent_shape(height, width)
    return height, width


def encoding_of(
    model: ActionVideoModule,
    schema: ActionSchema | None,
    frame_size: tuple[int, int],
    dtype: DType,
    window_starts: WindowStarts = "anywhere",
) -> Encoding:
    """Say what all latents will have in common. Actions of the data are those of the model where `schema` is None."""
    schema = model.schema if schema is None else schema
    text_encoder = type(model.frozen.text_encoder).__name__
    return Encoding(model.frozen.vae.identity(), text_encoder, schema, frame_size, dtype, window_starts)


def encode(
    writer: StoreWriter,
    frozen: FrozenParts,
    splits: dict[str, Sequence[Clip]],
    device: torch.device,
    locator: Locator | None = None,
) -> int:
    """Encode this process's share of the clips, as the first one the prompts too; write the index if all are there.

    Args:
        writer: Writer of the store.
        frozen: Frozen parts, which encode.
        splits: Clips of each split; those of one name are the same clip.
        device: Device that the frozen parts run on.
        locator: Function that finds an object in the frames; None keeps no positions.

    Returns:
        Number of clips that other processes have yet to encode.

    Raises:
        ValueError: A clip is not the one that the store has of that name, or is broken.
    """
    clips = list({clip.name: clip for clips in splits.values() for clip in clips}.values())
    ratio = frozen.vae.temporal_compression_ratio
    done = writer.recover()
    wanted = [replace(stored(clip, ratio), has_positions=locator is not None) for clip in clips]
    for entry in wanted:
        require_same_clip(entry, done.get(entry.name), writer.folder)
    if writer.rank == 0:
        # The empty one is that of guidance, and of samples that lose theirs.
        prompts = [*(clip.prompt for clip in wanted), ""]
        writer.write_prompts(prompts, lambda prompt: encode_prompt(frozen, prompt, device))
        frozen.park()
    share = [number for number in range(writer.rank, len(clips), writer.world_size) if clips[number].name not in done]
    total = sum(wanted[number].num_frames for number in share)
    size, dtype = writer.encoding.frame_size, getattr(torch, writer.encoding.dtype)
    with tqdm(total=total, unit="frame", unit_scale=True, desc="encoding", disable=not share) as bar:
        for number in share:
            starts = writer.encoding.window_starts
            tensors = encode_clip(frozen, clips[number], size, dtype, device, locator, starts, bar.update)
            writer.add(number, wanted[number], tensors)
    writer.merge()
    return writer.write_index(splits)


def stored(clip: Clip, temporal_compression_ratio: int) -> StoredClip:
    """Say how a store describes a clip."""
    num_latents = num_latent_frames(clip.num_frames, temporal_compression_ratio)
    return StoredClip(clip.name, num_latents, clip.num_frames, float(clip.fps), clip.prompt, clip.has_actions)


def require_same_clip(entry: StoredClip, found: StoredClip | None, folder: Path) -> None:
    """Refuse to go on with a store that holds another clip of this name.

    Raises:
        ValueError: The store holds another clip of this name.
    """
    if found is None:
        return
    names = ("num_frames", "fps", "prompt", "has_actions", "has_positions")
    differing = [
        f"{name} {getattr(found, name)!r}, now {getattr(entry, name)!r}"
        for name in names
        if getattr(found, name) != getattr(entry, name)
    ]
    if differing:
        raise ValueError(
            f"{folder} holds another clip {entry.name!r} ({'; '.join(differing)}): the data has changed, give a new "
            "folder as --output"
        )
