"""`evaluate --export`: rollouts of a checkpoint, for a judge that is not ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from torch import Tensor
from tqdm import tqdm

from lightning_action.atomic import creating_folder, require_new_folder
from lightning_action.batch import (
    Batch,
    bytes_of_unit_range,
    choose_samples,
    has_actions,
    num_pixel_frames,
    other_actions,
)
from lightning_action.cli.support.data_section import build_data, load_samples
from lightning_action.cli.support.parts_cli import choose_device
from lightning_action.evaluation.known_state import Simulate, simulator
from lightning_action.evaluation.worldproof_folder import RolloutFacts, actions_by_frame, write_rollout
from lightning_action.generation.clock import Clock
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.ranges import require_numbers
from lightning_action.run import load_run


@dataclass(frozen=True)
class RolloutOptions:
    """Options of what is generated and where it goes; see `evaluate --help`.

    Args:
        config: Configurations of the run.
        ckpt_path: Checkpoint of the run.
        output: New folder.
        settings: Further arguments of the data.
        allow: Modules whose classes the configuration may name.
        split: Samples of the data that are generated.
        num_samples: Number of videos of each start and actions, each with noise of its own.
        fps: Number of frames of a second that the folder tells.
        device: Name of the device.
        dtype: Name of the dtype of the weights.
        overwrite: Replace what is there.
    """

    config: Sequence[str]
    ckpt_path: str
    output: Path
    settings: Sequence[str] = ()
    allow: Sequence[str] = ()
    split: Literal["test", "predict"] = "test"
    num_samples: int = 1
    fps: float = 16.0
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    overwrite: bool = False

    def __post_init__(self) -> None:
        require_numbers({"num_samples": self.num_samples}, 1, whole=True)
        require_numbers({"fps": self.fps}, 0, without_low=True)
        if not self.overwrite:
            require_new_folder(self.output)


def export_rollouts(options: RolloutOptions) -> None:
    """Write rollouts of test samples under their own actions, and with a simulator under another sample's too.

    Raises:
        FileExistsError: The path `output` is taken.
        ValueError: Samples have no actions or no video, or the model begins from nothing.
    """
    data = build_data(options.config, options.settings, options.allow)
    module = load_run(list(options.config), options.ckpt_path, options.allow)
    if module.action_projection is None or module.sampling.num_initial_latents == 0:
        raise ValueError(
            "the judge compares futures of a given start under actions: it needs an action_projection, and "
            "model.sampling.num_initial_latents of at least 1"
        )
    loader = load_samples(data, options.split)
    module.frozen.load()
    module.to(choose_device(options.device, 0), getattr(torch, options.dtype))
    simulate, written = simulator(data, options.split), 0
    with creating_folder(options.output, options.overwrite) as folder:
        for batch in tqdm(loader, desc="generating", unit="batch"):
            for name, chosen, truth in rollouts_of(module, move_data_to_device(batch, module.device), simulate):
                write_batch(folder, name, module, chosen, truth, options)
                written += len(chosen["sample_id"])
    told = f"{written} rollout{'s' * (written != 1)} written to {options.output}"
    if simulate is None:
        told += f"; without counterfactual pairs, for {type(data).__name__} cannot simulate what other actions show"
    print(told)


def rollouts_of(
    module: ActionVideoModule, batch: Batch, simulate: Simulate | None
) -> Iterator[tuple[str, Batch, Tensor]]:
    """Yield what is generated of a batch: its name, the batch, and its true videos `[B, T, 3, H, W]` in [0, 1].

    That is the batch as it is, and under the actions of another sample where it is known what they show.

    Raises:
        ValueError: Samples have no actions or no video.
    """
    if not has_actions(batch) or not bool(torch.as_tensor(batch.get("has_action", True)).all()):
        raise ValueError("the judge compares futures under actions, and some samples of this data have none")
    truth = module.true_video(batch)
    if truth is None:
        raise ValueError("the judge compares with true videos, and this data has none (`video` or `latents`)")
    yield "own", batch, truth
    if simulate is None:
        return
    rows = module.schema.num_rows(module.sampling.num_initial_latents)
    other = other_actions(batch, rows)
    # The judge refuses pairs of equal actions.
    differing = (other["action"] != batch["action"]).flatten(1).any(dim=1).nonzero().flatten().tolist()
    if differing:
        other = choose_samples(other, differing)
        yield "other", other, simulate(other)[0]


def write_batch(
    folder: Path, name: str, module: ActionVideoModule, batch: Batch, truth: Tensor, options: RolloutOptions
) -> None:
    """Generate a batch with several draws of noise, and write a folder for each sample, `000007_own`."""
    clock = Clock(module.device)
    generate = clock.timed("rollouts", module.generate)
    seeds = [module.sampling.seed + draw for draw in range(options.num_samples)]
    videos = [generate(batch, replace(module.sampling, seed=seed)) for seed in seeds]
    seconds = sum(clock.seconds()["rollouts"]) / len(batch["sample_id"])
    generated = torch.stack([bytes_of_unit_range(video).cpu() for video in videos])
    truth, given = bytes_of_unit_range(truth).cpu(), module.sampling.num_initial_latents
    start = num_pixel_frames(given, module.schema.temporal_compression_ratio)
    for index, sample in enumerate(batch["sample_id"].tolist()):
        context = f"{sample:06d}"
        facts = RolloutFacts(context, options.ckpt_path, module.sampling.seed, options.fps, seconds)
        action = actions_by_frame(module.schema, batch["action"][index], given)
        shown, hidden = truth[index, :start], truth[index, start:]
        write_rollout(folder / f"{context}_{name}", facts, action, shown, generated[:, index, start:], hidden)
