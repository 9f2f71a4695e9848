"""`compare`: what 8 bits change in a trained model: its velocities, its videos and its obedience, at the same noise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.pytorch.cli import LightningArgumentParser
from torch import Tensor
from tqdm import tqdm

from lightning_action.batch import Batch, infers_actions, num_pixel_frames, samples_without_action
from lightning_action.cli.check import precision_of
from lightning_action.cli.support.parts_cli import PartsCLI, choose_device
from lightning_action.cli.support.text_table import text_table
from lightning_action.diffusion.flow_matching import NUM_TRAIN_TIMESTEPS, add_noise
from lightning_action.diffusion.noise import frame_noise
from lightning_action.diffusion.samplers import Noise, Velocity
from lightning_action.evaluation.known_state import ReadPositions, position_reader
from lightning_action.evaluation.metrics.video_quality import psnr
from lightning_action.evaluation.obedience import ObedienceTest
from lightning_action.evaluation.report.report import Report, format_table, null_where_undefined
from lightning_action.generation.rollout import rollout
from lightning_action.generation.video import VideoGenerator
from lightning_action.generator.attention_kernels import hold_attention_kernels
from lightning_action.module.action_video_module import ActionVideoModule
from lightning_action.ranges import require_numbers
from lightning_action.run import load_weights

# Noise levels at which velocities are compared.
TIMESTEPS = (1000.0, 750.0, 500.0, 250.0)


class CompareCLI(PartsCLI):
    """Adds the checkpoint, what is measured, and the limits."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        add = parser.add_argument
        add("--device", type=str, default="auto", help="Device of the model, such as cuda:1 or cpu.")
        add("--num_batches", type=int, default=2, help="Number of test batches that are looked at.")
        add(
            "--max_velocity_error",
            type=float,
            default=0.1,
            help="Largest norm of the difference of velocities, as a share of their norm.",
        )
        add("--min_psnr_db", type=float, default=25.0, help="Lowest PSNR of the videos against those without 8 bits.")
        add(
            "--max_sign_accuracy_lost",
            type=float,
            default=0.03,
            help="Largest loss of sign accuracy, where the state is known.",
        )
        add("--json", action="store_true", help="Print JSON instead of a table.")


@dataclass(frozen=True)
class Measured:
    """Outputs of a model for some batches.

    Args:
        velocities: Velocities `[levels, B, F, C, h, w]` of each batch, see `velocities_behind_truth`.
        videos: Videos `[B, T, 3, H, W]` in [0, 1] of each batch, under its own and under other actions.
        obedience: Figures of `evaluation.obedience`.
    """

    velocities: list[Tensor]
    videos: list[Tensor]
    obedience: Report


@dataclass(frozen=True)
class Difference:
    """Distance by which 8 bits take a model from itself.

    Args:
        velocity_error: Norm of the difference of velocities over that of the velocities, largest of the noise levels.
        psnr_db: Mean PSNR of the generated frames against those without 8 bits.
        sign_accuracy_lost: Sign accuracy without 8 bits less that with them; None where no state is known.
    """

    velocity_error: float
    psnr_db: float
    sign_accuracy_lost: float | None


def run_compare(args: Sequence[str]) -> bool:
    """Measure what `model.acceleration.quantization` and `attention` of a configuration change in a trained model.

    It is looked at with and without them, at the same noise: velocities, videos, and obedience. True says that all is
    within the limits.
    """
    cli = CompareCLI("compare", run_compare.__doc__, args)
    config, module, wanted = cli.config, cli.model, cli.model.acceleration
    require_numbers({"num_batches": config.num_batches}, 1, whole=True)
    if wanted.quantization is None and wanted.attention is None:
        raise ValueError(
            "nothing to compare: give --model.acceleration.quantization, --model.acceleration.attention, or both"
        )
    if config.ckpt_path is None:
        raise ValueError("whose weights? Give --ckpt_path, the checkpoint of the run")
    device = choose_device(config.device, 0)
    cli.datamodule.prepare_data()
    cli.datamodule.setup("test")
    load_weights(module, config.ckpt_path)
    precision = precision_of(config.trainer, module.sharding)
    module.to(device, precision.weights).eval()
    batches = [
        move_data_to_device(batch, device) for batch in islice(cli.datamodule.test_dataloader(), config.num_batches)
    ]
    reader = position_reader(cli.datamodule, "test")
    mixes = precision.compute != precision.weights
    hold_attention_kernels(device)
    with torch.autocast(device.type, precision.compute, enabled=mixes):
        module.acceleration = replace(wanted, quantization=None, attention=None)
        plain = measure(module, batches, reader, "as it is")
        module.acceleration = wanted
        module.quantize()
        in_8_bits = measure(module, batches, reader, "in 8 bits")
    found = difference(plain, in_8_bits)
    problems = beyond(found, config.max_velocity_error, config.min_psnr_db, config.max_sign_accuracy_lost)
    report = {"difference": asdict(found), "plain": plain.obedience, "in_8_bits": in_8_bits.obedience}
    print(
        json.dumps(null_where_undefined({**report, "problems": problems}))
        if config.json
        else format_comparison(found, plain.obedience, in_8_bits.obedience, problems)
    )
    return not problems


@torch.no_grad()
def measure(module: ActionVideoModule, batches: Sequence[Batch], reader: ReadPositions | None, told: str) -> Measured:
    """Have a model predict velocities, and generate videos under the batches' own and under other actions.

    Args:
        module: Model, with the acceleration that is to be judged.
        batches: Batches with actions and videos, on the module's device.
        reader: Reader of positions, see `ObedienceTest`.
        told: Name of the progress bar.
    """
    velocities, videos = [], []

    def generate(batch: Batch, scale: float | None, draw: int) -> Tensor:
        video = module.generate(batch)
        videos.append(video[:, num_given:].cpu())
        return video

    schema, num_initial_latents = module.schema, module.sampling.num_initial_latents
    num_given = num_pixel_frames(num_initial_latents, schema.temporal_compression_ratio) if num_initial_latents else 0
    test = ObedienceTest(generate, module.true_video, schema, num_initial_latents, reader, causality=module.causality)
    for batch in tqdm(batches, desc=told, unit="batch"):
        velocities.append(velocities_behind_truth(module, batch).cpu())
        test.add_model(batch, module.matched_losses(batch))
    return Measured(velocities, videos, test.compute("model"))


def velocities_behind_truth(module: ActionVideoModule, batch: Batch) -> Tensor:
    """Predict velocities under the KV cache as in generation, with its `sampling.context`, but behind the true past.

    Returns:
        `[levels, B, F, C, h, w]` in float32, at the noise levels `TIMESTEPS`.
    """
    device, dtype = module.device, module.compute_dtype
    latents, text = module.frozen.latents_of(batch, device, dtype), module.frozen.text_of(batch, device, dtype)
    _, num_frames, channels, height, width = latents.shape
    modulation = module.conditioning.of_rollout(
        batch.get("action"), infers_actions(batch), num_frames, text, module.causality, samples_without_action(batch)
    )
    shape = channels, height, width
    blocks = iter([latents[:, block.start : block.stop] for block in module.causality.split(num_frames)])
    found: list[Tensor] = []
    *_, last = module.sampling.past_timesteps(module.schedule, module.causality.split(num_frames))

    def noisy_at(timestep: float, clean: Tensor, fresh: Tensor) -> Tensor:
        return add_noise(clean, fresh, torch.full(clean.shape[:2], timestep / NUM_TRAIN_TIMESTEPS, device=device))

    def probe(velocity: Velocity, noise: Noise) -> Tensor:
        clean, fresh = next(blocks), noise(0)
        levels = [(noisy_at(timestep, clean, fresh), timestep) for timestep in TIMESTEPS]
        found.append(torch.stack([velocity(*level) for level in levels]))
        if module.sampling.context == "last_step":
            # What later blocks see of this one is what its last pass leaves.
            velocity(noisy_at(last, clean, fresh), last)
        return clean

    kernel = module.acceleration.kernel(device, module.generator.head_dim)
    unguided = replace(module.sampling, action_guidance_scale=1.0, prompt_guidance_scale=1.0)
    generation = VideoGenerator(module.generator, module.causality, unguided, module.schedule, kernel=kernel)
    noise = frame_noise(unguided.seed, batch["sample_id"].tolist(), shape, device, dtype)
    session = generation.begin(text, noise, (num_frames, *shape), sampler=probe)
    for _ in rollout(session, num_frames, modulation):
        pass
    return torch.cat(found, dim=2).float()


def difference(plain: Measured, other: Measured) -> Difference:
    """Compare what a model gave for the same batches with and without 8 bits."""
    pairs = zip(plain.velocities, other.velocities, strict=True)
    squares = [torch.stack([(a - b).square().flatten(1).sum(1), a.square().flatten(1).sum(1)]) for a, b in pairs]
    changed, whole = torch.stack(squares).sum(dim=0)
    quality = [psnr(b, a).flatten() for a, b in zip(plain.videos, other.videos, strict=True)]
    signs = [measured.obedience.get("sign_accuracy") for measured in (plain, other)]
    lost = None if signs[0] is None or signs[1] is None else signs[0] - signs[1]
    return Difference(float((changed / whole).sqrt().max()), float(torch.cat(quality).mean()), lost)


def beyond(
    found: Difference, max_velocity_error: float, min_psnr_db: float, max_sign_accuracy_lost: float
) -> list[str]:
    """Say which limits a difference is beyond; a figure that is not a number is beyond all."""
    problems = []
    if not found.velocity_error <= max_velocity_error:
        problems.append(f"velocities are off by {found.velocity_error:.3f}, more than {max_velocity_error}")
    if not found.psnr_db >= min_psnr_db:
        problems.append(f"videos are {found.psnr_db:.1f} dB near, less than {min_psnr_db}")
    if found.sign_accuracy_lost is not None and not found.sign_accuracy_lost <= max_sign_accuracy_lost:
        problems.append(f"sign accuracy falls by {found.sign_accuracy_lost:.3f}, more than {max_sign_accuracy_lost}")
    return problems


def format_comparison(found: Difference, plain: Report, in_8_bits: Report, problems: Sequence[str]) -> str:
    """Write the comparison as tables, with the verdict under them."""
    rows = [
        ("velocity error", f"{found.velocity_error:.4f}"),
        ("PSNR against the videos without 8 bits, dB", f"{found.psnr_db:.1f}"),
    ]
    tables = [
        text_table("WHAT 8 BITS CHANGE", ("", ""), rows),
        format_table({**plain, "baselines": {"in 8 bits": in_8_bits}}),
        "\n".join(["THE 8 BITS COST TOO MUCH", *(f"- {problem}" for problem in problems)])
        if problems
        else "The 8 bits are within the limits.",
    ]
    return "\n\n".join(tables)
