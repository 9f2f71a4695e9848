"""Effect of distillation on a world with chance in it: one table of a teacher and its students.

Trains students of one, two and four steps, and one whose teacher and critic do not see the actions, from a run that
exists; then measures all of them, and the teacher with as many steps, on the same held-out videos: python -m
benchmarks.distill_demo --run runs/chance --config configs/demo.yaml --config configs/chance.yaml
"""

from __future__ import annotations

import argparse
import logging
import math
import statistics
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks._random_object import RandomObject, determined_psnr, look_at, object_share, realism
from benchmarks.wrong_actions import config_of
from lightning_action import ActionVideoModule, MovingSpriteWorld, SpriteDataModule, load_run
from lightning_action.atomic import write_json
from lightning_action.batch import Batch, from_unit_range
from lightning_action.checkpoints.run_format import AVERAGES
from lightning_action.checkpoints.run_weights import RunWeights
from lightning_action.cli.trainer_verbs import run
from lightning_action.data.sprite_world import SECOND_COLOR
from lightning_action.evaluation.known_state import position_reader, simulator
from lightning_action.evaluation.report.report import null_where_undefined
from lightning_action.generation.sampling import Sampling
from lightning_action.run import build_datamodule, load_averages

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
STEPS: dict[int, list[float]] = {1: [1000], 2: [1000, 250], 4: [1000, 750, 500, 250]}
OBEDIENCE = ("sign_accuracy", "gain_x", "gain_y", "r2_x", "r2_y")
COLUMNS = (*OBEDIENCE, "realism_distance", "psnr_db", "seconds_per_block")
# Share of the random object from which on a pixel is left to chance.
_BY_CHANCE = 0.05
_ROUNDS = 5

Row = dict[str, float]


@dataclass(frozen=True)
class Contender:
    """A model with the settings that it generates with."""

    module: ActionVideoModule
    sampling: Sampling

    def generate(self, batch: Batch) -> Tensor:
        """Videos of a batch, `[B, T, 3, H, W]` in [0, 1]."""
        return self.module.generate(batch, self.sampling)

    def seconds_per_block(self, batch: Batch) -> float:
        """Time of a block's latents, without decoding: once, of all blocks that are generated."""
        started = time.perf_counter()
        blocks = list(self.module.stream_latents(batch, self.sampling))
        return (time.perf_counter() - started) / (len(blocks) - 1)


@dataclass(frozen=True)
class Settings:
    """Settings that the command line asks for."""

    run: Path
    configs: list[str]
    out: Path
    consistency_steps: int
    matching_steps: int
    more: list[str]

    def fit(self, overlay: str, name: str, max_steps: int, *more: str) -> Path:
        """Train a student into a folder of its own."""
        folder = self.out / name
        stacked = [f"--config={path}" for path in (*self.configs, CONFIGS / f"{overlay}.yaml")]
        arguments = [f"--trainer.default_root_dir={folder}", f"--trainer.max_steps={max_steps}"]
        arguments += ["--trainer.limit_val_batches=0", "--trainer.logger=false", "--checkpoint.overwrite=true"]
        run(["fit", *stacked, *arguments, f"--model.teacher={self.run}", *self.more, *more])
        return folder


def students(settings: Settings) -> dict[str, Path]:
    """Train all students, by the names of their rows; those that see share a start, the blind one has its own."""
    blind = "--model.action_blind=true"

    def begun(name: str, *more: str) -> Path:
        return settings.fit("consistency", name, settings.consistency_steps, *more)

    def matched(name: str, num_steps: int, start: Path, *more: str) -> Path:
        steps = f"--model.sampling.denoising_step_list={STEPS[num_steps]}"
        return settings.fit("distillation", name, settings.matching_steps, f"--model.start={start}", steps, *more)

    start = begun("start")
    folders = {f"student_{count}": matched(f"student_{count}", count, start) for count in STEPS}
    return {**folders, "student_2_blind": matched("student_2_blind", 2, begun("start_blind", blind), blind)}


def loaded(folder: Path) -> ActionVideoModule:
    """The model of a run, with its averages where it has them, as `RunWeights` takes them for a teacher."""
    run = RunWeights(str(folder))
    module = load_run(config_of(run), run.path)
    if AVERAGES in torch.load(run.path, weights_only=True, mmap=True):
        load_averages(module, run.path)
    return module


def contenders(settings: Settings, folders: Mapping[str, Path]) -> dict[str, Contender]:
    """The rows of the table, with what generates them."""
    teacher = loaded(settings.run)
    many = replace(teacher.sampling, num_initial_latents=1)
    rows = {"teacher_many": Contender(teacher, many)}
    rows |= {f"teacher_{count}": Contender(teacher, replace(many, num_inference_steps=count)) for count in STEPS}
    for name, folder in folders.items():
        module = loaded(folder)
        rows[name] = Contender(module, module.sampling)
    return rows


class Judge:
    """Measures videos of the held-out worlds."""

    def __init__(self, data: SpriteDataModule, teacher: ActionVideoModule) -> None:
        if not isinstance(data.world, MovingSpriteWorld) or not data.world.second_object:
            raise ValueError("the table is about a world with chance in it: MovingSpriteWorld with second_object: true")
        self.data, self.world, self.teacher = data, data.world, teacher
        self.batches = list(data.test_dataloader())
        self.ratio = teacher.schema.temporal_compression_ratio

    def row(self, contender: Contender) -> Row:
        """Collect all figures but the time, and what realism consists of."""
        made: list[Tensor] = []

        def generate(batch: Batch, scale: float | None, draw: int) -> Tensor:
            made.append(contender.generate(batch))
            return made[-1]

        reader, simulate = position_reader(self.data, "test"), simulator(self.data, "test")
        test = contender.module.obedience_test(reader, simulate, generate=generate)
        seen, true, errors = [], [], []
        for batch in self.batches:
            test.add_model(batch, {})
            # Under the samples' own actions first, then under others.
            video, truth = made[-2], self._through_codec(batch)
            shares = [self._share(each, batch) for each in (video, truth)]
            found = [look_at(share[:, 1:], self._area) for share in shares]
            seen.append(found[0])
            true.append(found[1])
            by_chance = (shares[0] > _BY_CHANCE) | (shares[1] > _BY_CHANCE)
            errors.append(10 ** (-determined_psnr(video[:, 1:], truth[:, 1:], by_chance[:, 1:]) / 10))
        figures = test.compute("model")
        psnr = float(-10 * torch.tensor(errors).mean().log10())
        compared = realism(_together(seen), _together(true), self.ratio)
        return {**{name: float(figures[name]) for name in OBEDIENCE}, **compared, "psnr_db": psnr}

    def _through_codec(self, batch: Batch) -> Tensor:
        """True videos as the codec shows them, so that its loss is nobody's."""
        latents = self.teacher.frozen.latents_of(batch, self.teacher.device, torch.float32)
        decoded = self.teacher.true_video({"latents": latents})
        assert decoded is not None
        return decoded

    def _share(self, video: Tensor, batch: Batch) -> Tensor:
        start = self.world.start(self.data.dataset("test").seeds(batch["sample_id"].tolist()))
        color = torch.tensor(SECOND_COLOR)
        return object_share(from_unit_range(video.cpu()), start.background, color, start.color)

    @property
    def _area(self) -> float:
        return math.pi * self.world.second_radius**2


def _together(found: Sequence[RandomObject]) -> RandomObject:
    return RandomObject(*(torch.cat(values) for values in zip(*found, strict=True)))


def add_times(rows: Mapping[str, Row], of: Mapping[str, Contender], batch: Batch) -> None:
    """Add `seconds_per_block`, over that of the teacher with many steps: a median of rounds in which all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in of}
    names = list(of)
    for turn in range(_ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seconds[name].append(of[name].seconds_per_block(batch))
    many = seconds["teacher_many"]
    for name, its in seconds.items():
        rows[name]["seconds_per_block"] = statistics.median(a / b for a, b in zip(its, many, strict=True))


def as_table(rows: Mapping[str, Row]) -> str:
    """The table in Markdown."""
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[column]:.3f}' for column in COLUMNS)} |" for name, row in rows.items()]
    return "\n".join(lines)


def findings(rows: Mapping[str, Row]) -> dict[str, float]:
    """Say what students are for: obedience kept, realism made good, time saved, and control lost if blind."""
    many, few, student = rows["teacher_many"], rows["teacher_2"], rows["student_2"]
    distance = few["realism_distance"] - many["realism_distance"]
    made_good = few["realism_distance"] - student["realism_distance"]
    return {
        # All of these figures are 1 at best.
        "obedience_lost": max(abs(1 - student[name]) - abs(1 - many[name]) for name in OBEDIENCE),
        # A teacher that has no more than two steps lacks nothing in two.
        "realism_made_good": made_good / distance if distance else math.nan,
        "times_faster": 1 / student["seconds_per_block"],
        "sign_accuracy_lost_by_the_blind": student["sign_accuracy"] - rows["student_2_blind"]["sign_accuracy"],
        "gain_lost_by_the_blind": student["gain_x"] - rows["student_2_blind"]["gain_x"],
    }


def data_of(configs: Sequence[str], num_videos: int) -> SpriteDataModule:
    """The data of the configurations, with as many test videos."""
    settings = [f"--data.test_size={num_videos}", f"--data.eval_batch_size={min(num_videos, 64)}"]
    data = build_datamodule(configs, settings=settings)
    if not isinstance(data, SpriteDataModule):
        raise ValueError(f"the table is about simulated worlds, a SpriteDataModule, got {type(data).__name__}")
    return data


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the students, measure all, print the table and write `report.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distill_demo", description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/chance"), help="Run of the teacher.")
    parser.add_argument("--config", action="append", help="Configuration of the teacher; several stack.")
    parser.add_argument("--out", type=Path, default=Path("runs/distill_demo"), help="Folder of students and report.")
    parser.add_argument("--consistency_steps", type=int, default=600, help="Steps of each of the two starts.")
    parser.add_argument("--matching_steps", type=int, default=400, help="Steps of each student behind it.")
    parser.add_argument("--videos", type=int, default=128, help="Number of held-out videos.")
    parser.add_argument("--measure_only", action="store_true", help="Measure the students that are there.")
    parser.add_argument("--json", type=Path, help="File for the figures; default: report.json in the folder.")
    options, more = parser.parse_known_args(arguments)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")
    configs = options.config or [str(CONFIGS / "demo.yaml"), str(CONFIGS / "chance.yaml")]
    settings = Settings(options.run, configs, options.out, options.consistency_steps, options.matching_steps, more)
    started = time.monotonic()
    names = [*(f"student_{count}" for count in STEPS), "student_2_blind"]
    folders = {name: options.out / name for name in names} if options.measure_only else students(settings)
    of = contenders(settings, folders)
    judge = Judge(data_of(configs, options.videos), of["teacher_many"].module)
    rows: dict[str, Row] = {}
    for name, contender in of.items():
        rows[name] = judge.row(contender)
        print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    add_times(rows, of, judge.batches[0])
    found = findings(rows)
    report = {**rows, "findings": found, "seconds": time.monotonic() - started}
    write_json(options.json or options.out / "report.json", null_where_undefined(report))
    print(as_table(rows))
    print("\n".join(f"{name}: {value:.3f}" for name, value in found.items()))


if __name__ == "__main__":
    main()
