"""`record`: episodes of a gymnasium environment, as a LeRobot v3.0 folder of videos, states and actions."""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from lightning_action.atomic import write_json
from lightning_action.cli.support.mistakes import UsageError
from lightning_action.cli.support.usage import VerbParser
from lightning_action.recordings.gym_environments import (
    Policy,
    action_parts,
    action_row,
    frames_per_second,
    make_environment,
    make_policy,
    play,
    read_state,
    render,
    resized,
)
from lightning_action.recordings.lerobot_files import NumericFeature
from lightning_action.recordings.lerobot_writer import (
    LeRobotWriter,
    require_free,
    require_writable_sizes,
    writing_lerobot,
)
from lightning_action.seeding import mix_seed

if TYPE_CHECKING:
    from gymnasium import Env, Space

CAMERA = "observation.image"
Seen = tuple[np.ndarray, dict[str, float]]
"""The frame and the state of a moment."""

_ENV_ARGUMENT = re.compile(r"--env_kwargs\.([A-Za-z_]\w*)(?:=(.*))?", re.DOTALL)


def run_record(args: Sequence[str]) -> None:
    """Run the command `record`; `args` follow the verb."""
    rest, env_kwargs = split_env_kwargs(args)
    parsed = _parser().parse_args(rest)
    output = Path(parsed.output)
    require_free(output, parsed.overwrite)
    env = make_environment(parsed.env, env_kwargs)
    new_policy = make_policy(parsed.policy, env.action_space)
    fps = parsed.fps or frames_per_second(env)
    if fps is None:
        raise ValueError(f"{parsed.env} does not say how many frames a second it has: give --fps")

    def look(env: Env[Any, Any], observation: Any, info: Mapping[str, Any]) -> Seen:
        return resized(render(env), parsed.frame_size), read_state(observation, info, parsed.state)

    frame, state = look(env, *env.reset(seed=mix_seed(parsed.seed, 0) % 2**31))
    size, features = (frame.shape[0], frame.shape[1]), features_of(env.action_space, state)
    require_writable_sizes({CAMERA: size}, fps)
    with writing_lerobot(output, int(fps), {CAMERA: size}, features, parsed.env, overwrite=parsed.overwrite) as writer:
        record_episodes(parsed, env, new_policy, look, writer)
        write_json(writer.folder / "meta/recording.json", provenance(parsed, env_kwargs, env.action_space))
    env.close()
    columns = ", ".join(f"{name} [{len(feature.names)}]" for name, feature in features.items())
    print(
        f"written to {output}: {writer.num_episodes} episodes, {writer.num_frames} frames of {size[0]} x {size[1]}, "
        f"{int(fps)} a second, with {columns}"
    )


def record_episodes(
    parsed: Namespace,
    env: Env[Any, Any],
    new_policy: Callable[[], Policy],
    look: Callable[[Env[Any, Any], Any, Mapping[str, Any]], Seen],
    writer: LeRobotWriter,
) -> None:
    """Play and write episodes, each of which follows from (seed, number of the episode) alone."""
    with tqdm(total=parsed.episodes * parsed.steps, unit=" frames", desc="recording") as progress:
        for episode in range(parsed.episodes):
            moments = play(env, new_policy(), mix_seed(parsed.seed, episode), look)
            for step, ((frame, state), action, reward, ended) in enumerate(moments, 1):
                values: dict[str, Any] = {"action": action, "next.reward": reward, "next.done": ended}
                writer.add_frame({CAMERA: frame}, {**values, "observation.state": list(state.values())})
                progress.update()
                if step == parsed.steps:
                    break
            progress.total -= parsed.steps - step
            writer.end_episode(parsed.prompt)


def features_of(space: Space[Any], state: Mapping[str, float]) -> dict[str, NumericFeature]:
    """Describe the numbers that come with each frame."""
    row = action_row(space, space.sample())
    names = ["action"] if len(row) == 1 else [f"action_{index}" for index in range(len(row))]
    of_state = {"observation.state": NumericFeature(list(state))} if state else {}
    return {
        **of_state,
        "action": NumericFeature(names, "int64" if row.dtype == np.int64 else "float32"),
        "next.reward": NumericFeature(["reward"]),
        "next.done": NumericFeature(["done"], "bool"),
    }


def provenance(parsed: Namespace, env_kwargs: Mapping[str, Any], space: Space[Any]) -> dict[str, Any]:
    """Say where the recording comes from, and what its actions are, where they have bounds."""
    try:
        parts = [part.to_dict() for part in action_parts(space)]
    except ValueError:
        parts = None
    names = ("env", "policy", "seed", "episodes", "steps", "prompt")
    return {**{name: getattr(parsed, name) for name in names}, "env_kwargs": env_kwargs, "action_parts": parts}


def split_env_kwargs(args: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Split what is typed: the other arguments, and those of the environment, read as YAML.

    Raises:
        UsageError: An argument of the environment has no value.
    """
    rest: list[str] = []
    values: dict[str, Any] = {}
    remaining = iter(args)
    for argument in remaining:
        match = _ENV_ARGUMENT.fullmatch(argument)
        if match is None:
            rest.append(argument)
            continue
        text = next(remaining, None) if match[2] is None else match[2]
        if text is None:
            raise UsageError(f"{argument} has no value")
        try:
            values[match[1]] = yaml.safe_load(text)
        except yaml.YAMLError:
            values[match[1]] = text
    return rest, values


def _parser() -> VerbParser:
    parser = VerbParser("record", description=__doc__)
    add = parser.add_argument
    add(
        "--env",
        required=True,
        help="Environment: a name in gymnasium (Pendulum-v1), one with a module to import first "
        "(gym_pusht:gym_pusht/PushT-v0), or module:function that returns an environment (my_robot:make).",
    )
    add("--env_kwargs.NAME", metavar="VALUE", help="Argument of the environment; again for more.")
    told = "New folder of the recording, which appears when it is whole."
    add("--output", "--out", required=True, metavar="DIR", help=told)
    add("--episodes", type=_from_one, default=10, help="Number of episodes; default: 10.")
    add("--steps", type=_from_one, default=100, help="Largest number of frames of an episode; default: 100.")
    add("--seed", type=int, default=0, help="Random seed: episode i follows from it and i alone; default: 0.")
    add(
        "--policy",
        default="hold",
        help="Policy that acts: `random`; `hold`, random actions that are held for 2 to 8 steps; or module:name, a "
        "function of (observation, info, random), where random is a numpy Generator, or a class of such, of which each "
        "episode gets a new one; default: hold.",
    )
    add("--fps", type=_from_one, help="Number of frames of a second; default: what the environment says.")
    add(
        "--frame_size",
        type=_from_one,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="Size that frames are resized to, without cutting anything off; default: as they are rendered.",
    )
    add(
        "--state",
        nargs="+",
        metavar="KEY",
        help="Values of observation or info that are recorded as observation.state; default: an observation that is a "
        "vector, or the vectors in it.",
    )
    add("--prompt", default="", help="Description of what the videos show.")
    add("--overwrite", action="store_true", help="Replace the LeRobot folder that is at --output.")
    return parser


def _from_one(text: str) -> int:
    """Parse a whole number from 1 on; argparse names the option."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


_from_one.__name__ = "whole number above 0"
