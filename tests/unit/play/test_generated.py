"""A trained model as a stage."""

from __future__ import annotations

from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_action import ActionVideoModule, BlockCausality, Sampling
from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.play.generated import PlaySettings, fingerprints, stage_of, warm_up, with_window
from lightning_action.play.live_world import LiveWorld, Stage
from tests.support.live_server import next_block, serving
from tests.support.simulated_session import SimulatedSession, simulated_stage
from tests.support.sprite_module import LATENTS, data, ready


def stage(module: ActionVideoModule, **settings: Any) -> Stage:
    return stage_of(module, data(), PlaySettings(**settings), {"ckpt_path": "somewhere"})


class Frames:
    """An observer that keeps the frames."""

    is_over = False

    def __init__(self) -> None:
        self.frames: list[Tensor] = []

    def begin(self, seed: int, prompt: str, frames: Tensor, given: Tensor | None) -> None:
        self.frames = [frames]

    def step(self, rows: Tensor, frames: Tensor) -> None:
        self.frames.append(frames)

    def prompt(self, text: str) -> None: ...

    def close(self) -> None: ...


def play(stage: Stage, seed: int, rows: Tensor, blocks: int | list[int] = 4) -> Tensor:
    kept = Frames()
    world = LiveWorld(stage, kept)
    world.reset(seed)
    for block in rows.split(blocks):
        world.step_rows(block)
        world.write_pending()
    world.close()
    return torch.cat(kept.frames)


def test_what_is_played_is_what_the_model_generates() -> None:
    module, _ = ready(causality=BlockCausality(1, LATENTS, 0))
    batch = data().dataset("test").batch([2])
    frames = play(stage(module), 2, batch["action"][0])
    sampling = replace(module.sampling, seed=2)
    expected = module.generate({**batch, "sample_id": torch.tensor([0])}, sampling)[0]
    assert torch.equal(frames, expected)


def test_players_who_take_turns_do_not_disturb_each_other() -> None:
    module, _ = ready()
    shared, rows = stage(module), torch.rand(16, 2, generator=torch.Generator().manual_seed(1))
    alone = [play(shared, seed, rows) for seed in range(3)]
    found: dict[int, Tensor] = {}
    threads = [Thread(target=lambda seed=seed: found.update({seed: play(shared, seed, rows)})) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[seed], alone[seed]) for seed in range(3))
    assert not torch.equal(alone[0], alone[1])


@pytest.mark.parametrize("alignment", ["transition", "state", "per_latent"])
def test_worlds_that_begin_from_nothing_are_played(alignment: Any) -> None:
    schema, sampling = replace(data().action_schema, alignment=alignment), Sampling(2, num_initial_latents=0)
    module, _ = ready(schema=schema, causality=BlockCausality(2, 4), sampling=sampling)
    with serving(stage(module)) as running, running.connect() as client:
        headers = [next_block(client)[0] for _ in range(2)]
    assert [(header["number"], header["frames"]) for header in headers] == [(1, 5), (2, 8)]


def test_a_world_can_go_on_for_ever() -> None:
    none = BlockCausality(1)
    assert with_window(none, None, data(), "test", 4) == BlockCausality(1, LATENTS, 1)
    assert with_window(none, 7, data(), "test", 4) == BlockCausality(1, 7, 1)
    given = BlockCausality(2, 6, 3)
    assert with_window(given, None, data(), "test", 4) == given
    assert with_window(given, 9, data(), "test", 4) == BlockCausality(2, 9, 3)
    message = r"a window of 4 .--window. cannot hold the sink .3 .* and one block .2.: use at least 5"
    with pytest.raises(ValueError, match=message):
        with_window(given, 4, data(), "test", 4)
    with pytest.raises(ValueError, match="window must be a whole number of at least 2"):
        PlaySettings(window=1)


def test_a_block_as_long_as_the_videos_has_room_for_the_sink() -> None:
    whole, first_alone = BlockCausality(LATENTS), BlockCausality(LATENTS - 1, independent_first_frame=True)
    assert with_window(whole, None, data(), "test", 4) == BlockCausality(LATENTS, LATENTS + 1, 1)
    assert with_window(first_alone, None, data(), "test", 4) == replace(first_alone, local_attn_size=5, sink_size=1)
    module, _ = ready(causality=whole)
    assert len(play(stage(module), 0, torch.zeros(36, 2), blocks=[16, 20])) == 37


def test_a_stage_says_what_its_bits_depend_on() -> None:
    module, _ = ready()
    found = stage(module, fps=20.0, title="mine")
    assert (found.fps, found.title, found.schema) == (20.0, "mine", module.schema)
    assert found.provenance["ckpt_path"] == "somewhere" and found.provenance["model.causality.local_attn_size"] == "4"
    assert found.provenance["model.sampling.relative_positions"] == "True", "as it is played"
    assert stage(module).fps == 16.0
    before = fingerprints(module)
    with torch.no_grad():
        module.generator.head.head.bias[0] += 1e-6
    after = fingerprints(module)
    assert [name for name in before if before[name] != after[name]] == ["generator"]
    assert {"action_projection", "vae", "text_encoder", "dtype", "device", "threads"} < before.keys()
    with torch.no_grad():
        module.frozen.vae.fitted_tensors()["first.scale"][0] *= 1 + 2**-20  # type: ignore[attr-defined]
    found = fingerprints(module)
    assert [name for name in after if after[name] != found[name]] == ["weights of the VAE"], "in less than bfloat16"


def test_the_first_blocks_are_made_of_rows_within_bounds() -> None:
    schema = ActionSchema([ActionPart("speed", low=0.5, high=2.0)])
    rows: list[Tensor] = []

    class Kept(SimulatedSession):
        def step_block(self, actions: Tensor) -> Tensor:
            rows.append(actions)
            return torch.zeros(1, 4, 3, 20, 28)

    kept = simulated_stage(Kept, schema=schema)
    warm_up(replace(kept, start=lambda seed: replace(kept.start(seed), truth=None), num_warm_up_blocks=3))
    assert len(rows) == 3 and min(float(row.min()) for row in rows) >= 0.5


def test_the_first_blocks_are_made_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    module, _ = ready()
    made: list[Any] = []
    found = stage(module)

    def opened() -> Any:
        made.append(found.open_session())
        monkeypatch.setattr(made[0], "close", lambda: None)
        return made[0]

    warm_up(replace(found, open_session=opened))
    (session,) = made
    # Behind a window that has filled a block is made as the one before.
    assert session.latent_frames - session.causality.num_frame_per_block >= session.causality.local_attn_size
