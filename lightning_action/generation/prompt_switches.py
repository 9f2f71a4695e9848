"""Other prompts while a video runs: from which latent frame on, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_action.batch import Batch
from lightning_action.generator.causality import BlockCausality
from lightning_action.ranges import require_numbers


@dataclass(frozen=True)
class PromptSwitch:
    """A prompt that holds from some latent frame on, see `CausalRollout.switch_prompt`.

    Args:
        latent_frame: Latent frame of the video, the first of a block behind the initial frames.
        prompt: Prompt of what follows.
    """

    latent_frame: int
    prompt: str

    def __post_init__(self) -> None:
        require_numbers({"prompt_switches.latent_frame": self.latent_frame}, 1, whole=True)
        if not isinstance(self.prompt, str):
            raise ValueError(f"prompt_switches.prompt must be a string, got {self.prompt!r}")


def prompts_by_frame(switches: Sequence[Sequence[PromptSwitch]]) -> dict[int, list[str]]:
    """Arrange the switches of B samples by latent frame: the prompts that hold from there on, B each.

    Raises:
        ValueError: A sample has two prompts for a frame, or switches at other frames than the first one.
    """
    frames = [sorted(switch.latent_frame for switch in of_sample) for of_sample in switches]
    for mine in frames:
        if len(set(mine)) < len(mine):
            raise ValueError(f"prompt_switches have two prompts for one latent frame, among {mine}: give one")
        if mine != frames[0]:
            raise ValueError(
                f"the samples of a batch switch prompts at the same latent frames, got {frames[0]} and {mine}: put "
                "them into batches of their own"
            )
    of_samples = [{switch.latent_frame: switch.prompt for switch in of_sample} for of_sample in switches]
    return {frame: [prompts[frame] for prompts in of_samples] for frame in frames[0]}


def switched_prompts(batch: Batch, for_all: Sequence[PromptSwitch]) -> dict[int, list[str]]:
    """Find the prompts of a batch that follow on `prompt`, by the latent frame from which on they hold, B each.

    Args:
        batch: Batch, whose `prompt_switches` are for each sample a list of pairs (latent frame, prompt), if it has any.
        for_all: Switches of samples of other batches.

    Raises:
        ValueError: The value of `prompt_switches` is not of that form, or samples switch at other frames than each
            other.
    """
    size = len(batch["sample_id"])
    given = batch.get("prompt_switches")
    if given is None:
        return prompts_by_frame([for_all] * size)
    if len(given) != size or any(len(pair) != 2 for of_sample in given for pair in of_sample):
        raise ValueError(
            f"`prompt_switches` must be {size} lists, one for each sample_id, of pairs (latent frame, prompt), got "
            f"{given!r}"
        )
    return prompts_by_frame([[PromptSwitch(*pair) for pair in of_sample] for of_sample in given])


def require_switchable(frames: Iterable[int], blocks: Sequence[range], num_initial_latents: int) -> None:
    """Refuse latent frames at which a rollout cannot switch prompts.

    Args:
        frames: Latent frames at which another prompt should begin.
        blocks: Latent frames of each block of the video.
        num_initial_latents: Number of latent frames that are given.

    Raises:
        ValueError: A frame is none of those that begin a block behind the initial ones.
    """
    possible = [block.start for block in blocks if block.start >= max(1, num_initial_latents)]
    for frame in frames:
        if frame not in possible:
            below, above = [s for s in possible if s < frame][-1:], [s for s in possible if s > frame][:1]
            nearest = " and ".join(map(str, below + above))
            raise ValueError(
                f"prompt_switches cannot begin at latent frame {frame}: expected the first frame of a block behind the "
                f"{num_initial_latents} initial ones of {blocks[-1].stop} latent frames, "
                + (f"the nearest: {nearest}" if nearest else "and there is none")
            )


def count_switch_passes(frames: Iterable[int], causality: BlockCausality) -> int:
    """Count the passes that switches cost: one for each block of the window, and one for the prompts.

    What computes their keys and values goes through all layers, too, so that ranks that share a sharded generator take
    it for a pass.

    Args:
        frames: Latent frames at which another prompt begins.
        causality: Block size, window and sink.
    """
    return sum(1 + len(causality.window_blocks(causality.block_after(frame))) for frame in frames)
