"""A trained model as a stage: its worlds begin at the samples of its data, and its players take turns on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from lightning_action.batch import num_latent_frames
from lightning_action.data.split_data import Split, SplitDataModule
from lightning_action.evaluation.report.provenance import installed_version, versions
from lightning_action.generation.sampling import Sampling
from lightning_action.generator.causality import BlockCausality
from lightning_action.module.generative_module import GenerativeModule
from lightning_action.play.action_map import default_map
from lightning_action.play.live_world import LiveWorld, Stage
from lightning_action.play.scenes import frames_per_second, scenes_of
from lightning_action.ranges import require_numbers
from lightning_action.weights.fingerprint import checksum


@dataclass(frozen=True)
class PlaySettings:
    """Settings by which a model is played.

    Args:
        split: Samples of the data that worlds begin at.
        fps: Number of frames of a second; None takes that of the data.
        window: Number of latent frames that a block sees; None takes that of the model, and where it has none the
            length of the data's videos, which it was trained on.
        title: Name on the page.
    """

    split: Split = "test"
    fps: float | None = None
    window: int | None = None
    title: str = "a world"

    def __post_init__(self) -> None:
        if self.fps is not None:
            require_numbers({"fps": self.fps}, 1, 240)
        if self.window is not None:
            require_numbers({"window": self.window}, 2, whole=True)


def stage_of(
    module: GenerativeModule, data: SplitDataModule, settings: PlaySettings, provenance: Mapping[str, Any]
) -> Stage:
    """Make a stage of a model that is built, filled, on its device and in eval mode.

    Args:
        module: The model.
        data: DataModule of the run, which has been set up.
        settings: Settings of the play.
        provenance: Entries by which recordings say where they come from, beside fingerprints and versions.

    Raises:
        ValueError: The data has no videos to begin with, or the window does not fit the model.
    """
    ratio = module.schema.temporal_compression_ratio
    start = scenes_of(data, settings.split, module.sampling.num_initial_latents, ratio)
    fps = settings.fps or frames_per_second(data, settings.split)
    causality = with_window(module.causality, settings.window, data, settings.split, ratio)
    sampling = replace(module.sampling, relative_positions=True)
    found = {**fingerprints(module), **provenance, **_told("causality", causality), **_told("sampling", sampling)}
    return Stage(
        module.schema,
        partial(module.open_session, causality=causality, sampling=sampling),
        start,
        fps,
        settings.title,
        found,
        num_warm_up_blocks=1 + math.ceil((causality.local_attn_size or 1) / causality.num_frame_per_block),
    )


def _told(name: str, settings: BlockCausality | Sampling) -> dict[str, str]:
    """Name each of some settings as they are played, as the configuration names them."""
    return {f"model.{name}.{each.name}": f"{vars(settings)[each.name]}" for each in fields(settings)}


def with_window(
    causality: BlockCausality, window: int | None, data: SplitDataModule, split: Split, ratio: int
) -> BlockCausality:
    """Bound what a block sees, so that a world can go on for ever; its first latent frame stays in sight.

    Raises:
        ValueError: The window that is asked for cannot hold the sink and one block.
    """
    if window is None and causality.local_attn_size is not None:
        return causality
    block, sink = causality.num_frame_per_block, max(causality.sink_size, 1)
    if window is None:
        window = max(num_latent_frames(len(data.dataset(split)[0]["video"]), ratio), block + sink)
    if window < block + sink:
        raise ValueError(
            f"a window of {window} (--window) cannot hold the sink ({sink} latent frames) and one block ({block}): use "
            f"at least {block + sink}"
        )
    return replace(causality, local_attn_size=window, sink_size=sink)


def fingerprints(module: GenerativeModule) -> dict[str, str]:
    """Name all that the bits of a world depend on, beside its actions and its seed."""
    found = {"generator": checksum(module.generator.state_dict())}
    if module.action_projection is not None:
        found["action_projection"] = checksum(module.action_projection.state_dict())
    return {
        **found,
        "vae": module.frozen.vae.identity(),
        "text_encoder": type(module.frozen.text_encoder).__name__,
        "weights of the VAE": module.frozen.vae.checksum(),
        "weights of the text encoder": module.frozen.text_encoder.checksum(),
        **{f"tokenizer: {name}": value for name, value in module.frozen.text_encoder.tokenizer_checksums().items()},
        "dtype": str(module.compute_dtype),
        "device": str(module.device),
        "threads": str(torch.get_num_threads()),
        "instructions of the CPU": torch.backends.cpu.get_cpu_capability(),
        **{f"version of {name}": told for name, told in {**versions(), **_versions_of_readers()}.items()},
    }


def _versions_of_readers() -> dict[str, str]:
    """Name the versions of what reads videos and runs frozen parts, where it is installed."""
    found = {name: installed_version(name) for name in ("av", "diffusers", "transformers", "torchao")}
    return {name: told for name, told in found.items() if told is not None}


def warm_up(stage: Stage) -> None:
    """Make the first blocks of a world, so that no player waits for what is compiled, captured or allocated once."""
    world = LiveWorld(stage)
    world.reset(0)
    try:
        for _ in range(stage.num_warm_up_blocks):
            world.step(default_map(stage.schema).row())
            world.write_pending()
    finally:
        world.close()
