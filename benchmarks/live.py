"""Time that a player waits for pixels: several sessions of one model on one device, over real connections.

`benchmarks/README.md` says what each figure means.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from socket import create_server
from statistics import mean, median
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

import torch

from lightning_action import (
    ActionModulationProjection,
    ActionVideoModule,
    BlockCausality,
    CausalWanModel,
    HashingTextEncoder,
    LinearVideoCodec,
    MovingSpriteWorld,
    Sampling,
    SpriteDataModule,
    load_run,
)
from lightning_action.atomic import write_json
from lightning_action.play.access import Access
from lightning_action.play.action_map import default_map
from lightning_action.play.generated import PlaySettings, stage_of, warm_up
from lightning_action.play.live_world import LiveWorld, Stage
from lightning_action.play.scenes import SimulatedTruth
from lightning_action.play.server import Playground, PlayServer, new_server
from lightning_action.run import build_datamodule

SESSIONS = (1, 2, 4, 8)
# Of four frames, sixteen of them a second.
BLOCKS_PER_SECOND = 4
ROOT = Path(__file__).resolve().parents[1]


def toy_stage() -> Stage:
    """An untrained model of a small plain world: as much happens as in a trained one of its size."""
    data = SpriteDataModule(MovingSpriteWorld(image_size=16, sprite_radius=3.0), num_latents=5, test_size=8)
    module = ActionVideoModule(
        lambda: CausalWanModel(24, 32, 2, 2, in_dim=7, out_dim=7, freq_dim=10, text_dim=6, text_len=4),
        lambda: HashingTextEncoder(6, 4),
        lambda: LinearVideoCodec(7, patch_size=4),
        lambda action_dim, dim: ActionModulationProjection(action_dim, dim, hidden_dim=20),
        schema=data.action_schema,
        causality=BlockCausality(1, 5, 1),
        sampling=Sampling(num_inference_steps=2),
    )
    module.frozen.vae.fit(data.codec_videos(8))  # type: ignore[attr-defined]
    module.configure_model()
    return stage_of(module.eval(), data, PlaySettings(), {})


def stage_of_run(config: Sequence[str], ckpt_path: str, device: str) -> Stage:
    """A trained run."""
    module, data = load_run(list(config), ckpt_path), build_datamodule(list(config))
    data.prepare_data()
    data.setup("test")
    module.frozen.load()
    return stage_of(module.to(device), data, PlaySettings(), {})  # type: ignore[arg-type]


@contextmanager
def serving(stage: Stage, max_sessions: int) -> Iterator[tuple[PlayServer, int]]:
    """A server in a thread of this process."""
    listening = create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = PlayServer(Access(None, port), max_sessions, playground=Playground(stage, default_map(stage.schema)))
    uvicorn = new_server(server.app())
    thread = Thread(target=uvicorn.run, args=([listening],), daemon=True)
    thread.start()
    try:
        yield server, port
    finally:
        uvicorn.should_exit = True
        thread.join()


@contextmanager
def players(port: int, count: int, seconds: float) -> Iterator[None]:
    """Several players in processes of their own, who would otherwise take the time of what is measured."""
    command = [sys.executable, "-m", "benchmarks._live_player", str(port)]
    started = [subprocess.Popen([*command, str(seed), str(seconds)], cwd=ROOT) for seed in range(count)]
    try:
        yield
        failed = [process.wait(seconds + 120) for process in started]
        if any(failed):
            raise RuntimeError(f"players have failed: {failed}")
    finally:
        for process in started:
            process.kill()


def measure(stage: Stage, sessions: int, seconds: float) -> dict[str, Any]:
    """Median and 95th percentile of each part in milliseconds, and frames of a second that each player is shown."""
    with serving(stage, sessions) as (server, port):
        rates: list[float] = []
        with players(port, sessions, seconds):
            wait_for(server, sessions)
            while server.num_sessions == sessions:
                time.sleep(0.5)
                rates += [rate for each in list(server._players) if (rate := each.frames_per_second())]
        quantiles = server.latencies.quantiles()
    milliseconds = {part: [1000 * each for each in pair] for part, pair in quantiles.items()}
    return {"sessions": sessions, "frames_per_second": median(rates), "milliseconds": milliseconds}


def wait_for(server: PlayServer, sessions: int) -> None:
    """Wait until so many players have come."""
    while server.num_sessions < sessions:
        time.sleep(0.05)


class Sample(NamedTuple):
    """Observation at a second: memory, and median latency in seconds."""

    second: float
    memory_mb: float
    latency: float


def memory_mb() -> float:
    """Memory that this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def soak(stage: Stage, seconds: float, every: float, beside: float, rounds: int, run: Sequence[str]) -> dict[str, Any]:
    """Play for a long time, and compare the last tenth with the first: memory, and what a player waits for.

    The machine may be busier at one end than at the other. So `aged_to_fresh` says whether a world grows slow, and
    `latency_aged_to_fresh` whether a server does: behind all that, another one is played beside it.

    Args:
        stage: Stage that is played.
        seconds: Duration in seconds.
        every: Seconds between two looks at memory and latency.
        beside: Seconds for which another server is played beside it.
        rounds: Number of comparisons of an old world with a fresh one.
        run: Options of this command line that name the same stage.
    """
    with serving(stage, 1) as (server, port), players(port, 1, seconds + beside):
        wait_for(server, 1)
        begun = time.monotonic()
        times = list(watch(server, begun, seconds, every))
        with played_beside([*run, "--sessions=1", f"--seconds={beside}"]) as fresh:
            (*_, aged) = watch(server, begun, seconds + beside, every)
            latency = fresh()["live"][0]["milliseconds"]["pixels"][0]
    return {
        **soaked(times, seconds),
        "latency_aged_to_fresh": 1000 * aged.latency / latency,
        "aged_to_fresh": aged_to_fresh(stage, round(seconds * BLOCKS_PER_SECOND), rounds),
    }


def watch(server: PlayServer, begun: float, until: float, every: float) -> Iterator[Sample]:
    """Look at a server again and again, until so many seconds after `begun`."""
    while time.monotonic() - begun < until:
        time.sleep(every)
        quantiles = server.latencies.quantiles()
        if "pixels" in quantiles:
            yield Sample(time.monotonic() - begun, memory_mb(), quantiles["pixels"][0])


@contextmanager
def played_beside(options: Sequence[str]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Run this benchmark in a process of its own too, whose result the yielded function waits for."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "live.json")
        command = [sys.executable, str(Path(__file__).resolve()), *options, f"--json={file}"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)

        def result() -> dict[str, Any]:
            if process.wait():
                raise RuntimeError(f"expected {' '.join(command)} to end well, it ended with {process.returncode}")
            return json.loads(file.read_text())

        try:
            yield result
        finally:
            process.kill()
            process.wait()


def soaked(times: Sequence[Sample], seconds: float) -> dict[str, Any]:
    """Ratios of the last tenth to the first one, of which the first half warms up."""
    first = [each for each in times if 0.05 * seconds <= each.second < 0.1 * seconds]
    last = [each for each in times if each.second >= 0.9 * seconds]
    memory = [median(each.memory_mb for each in part) for part in (first, last)]
    latency = [median(each.latency for each in part) for part in (first, last)]
    return {
        "seconds": seconds,
        "memory_last_to_first": memory[1] / memory[0],
        "latency_last_to_first": latency[1] / latency[0],
        "memory_mb": memory[1],
        "latency_ms": 1000 * latency[1],
    }


def aged_to_fresh(stage: Stage, num_blocks: int, rounds: int, blocks: int = 20) -> float:
    """Compute what a block of a world costs that is so many blocks old, over one of a fresh world, by turns."""
    row = torch.zeros(stage.schema.num_columns)

    def seconds_of(world: LiveWorld, count: int) -> float:
        begun = time.process_time()
        for _ in range(count):
            world.step(row)
            world.write_pending()
        return time.process_time() - begun

    aged, fresh = LiveWorld(stage), LiveWorld(stage)
    for world, count in ((aged, num_blocks), (fresh, blocks)):
        world.reset(0)
        seconds_of(world, count)
    ratios = []
    for number in range(rounds):
        order = (aged, fresh) if number % 2 else (fresh, aged)
        seconds = {world: seconds_of(world, blocks) for world in order}
        ratios.append(seconds[aged] / seconds[fresh])
    return median(ratios)


def right_held(stage: Stage, num_worlds: int, num_blocks: int = 2) -> dict[str, float | None]:
    """Measure how far the right arrow, held for some blocks, moves the object to the right, in pixels.

    Means over the worlds that show it at the end: as generated, in the simulator, and how far apart both places are.

    Raises:
        ValueError: The run has no simulator beside it.
    """
    row, seen = default_map(stage.schema).row([(0, 1.0)]), []
    for seed in range(num_worlds):
        truth = stage.start(seed).truth
        if not isinstance(truth, SimulatedTruth):
            raise ValueError("--worlds compares with a simulator: give a run whose data is a SpriteDataModule")
        world = LiveWorld(stage)
        blocks = [world.reset(seed)]
        for _ in range(num_blocks):
            blocks.append(world.step(row))
            world.write_pending()
        world.close()
        begun, generated, true = (
            truth.locate(torch.from_numpy(frames).movedim(-1, 1) / 255)
            for frames in (blocks[0].frames, blocks[-1].frames, blocks[-1].truth)
        )
        if begun and generated and true:
            seen.append((generated[0] - begun[0], true[0] - begun[0], math.dist(generated, true)))
    means = [mean(each) for each in zip(*seen, strict=True)] or [None] * 3
    figures = dict(zip(("generated_px", "true_px", "apart_px"), means, strict=True))
    return {"worlds": num_worlds, "seen": len(seen), **figures}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Lines of a table in Markdown."""
    parts = ("generate", "decode", "encode", "send", "pixels", "key")
    head = ["sessions", "frames a second", *parts]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for result in results:
        cells = [
            f"{median_:.0f} / {tail:.0f}" if part in result["milliseconds"] else "-"
            for part in parts
            for median_, tail in [result["milliseconds"].get(part, (0, 0))]
        ]
        lines.append(f"| {result['sessions']} | {result['frames_per_second']:.1f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config", action="append", help="Configuration of a run; default: an untrained toy.")
    add("--ckpt_path", help="Checkpoint of the run.")
    add("--device", default="cpu")
    add("--sessions", type=int, nargs="*", default=list(SESSIONS))
    add("--seconds", type=float, default=30.0, help="Duration for each number of sessions.")
    add("--soak_minutes", type=float, default=0.0, help="Minutes of one session: do memory and latency stay?")
    add("--worlds", type=int, default=0, help="Worlds in which the right arrow is held: how far does it lead?")
    add("--json", type=Path, help="File of the figures.")
    add("--tiny", action="store_true", help="Show in seconds that everything runs; the figures mean nothing.")
    options = parser.parse_args(args)
    sessions, seconds = ([1, 2], 1.0) if options.tiny else (options.sessions, options.seconds)
    run = [f"--config={each}" for each in options.config or ()] + [f"--device={options.device}"]
    run += [f"--ckpt_path={options.ckpt_path}"] if options.ckpt_path else []
    stage = stage_of_run(options.config, options.ckpt_path, options.device) if options.config else toy_stage()
    warm_up(stage)
    print(f"{torch.get_num_threads()} threads, {options.device}", file=sys.stderr)
    result: dict[str, Any] = {"live": [measure(stage, count, seconds) for count in sessions]}
    if sessions:
        print(table(result["live"]))
    if options.tiny:
        result["soak"] = soak(stage, seconds=3.0, every=0.1, beside=2.0, rounds=3, run=run)
    elif options.soak_minutes:
        seconds = 60 * options.soak_minutes
        result["soak"] = soak(stage, seconds, every=1.0, beside=max(4.0, 0.1 * seconds), rounds=30, run=run)
    if "soak" in result:
        print("\n".join(f"{name}: {value:.3f}" for name, value in result["soak"].items()))
    if options.worlds:
        result["right_held"] = right_held(stage, options.worlds)
        print("\n".join(f"{name}: {value}" for name, value in result["right_held"].items()))
    if options.json is not None:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
