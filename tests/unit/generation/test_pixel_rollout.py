"""Known and predicted blocks of one batch, under the session that steps them."""

from __future__ import annotations

import pytest
import torch

from lightning_action import BlockCausality
from lightning_action.generation.pixel_rollout import Held, PixelRollout
from tests.support.remembering_codec import RememberingCodec
from tests.support.sprite_module import ready

CAUSALITY = BlockCausality(3, 7, 1)


@torch.no_grad()
def test_a_block_that_is_known_in_part_holds_it_and_wants_the_rest() -> None:
    module, batch = ready(causality=CAUSALITY, vae=lambda: RememberingCodec(7, patch_size=4))
    rows, latents = batch["action"], module.frozen.encode_video(batch["video"])
    text = module.frozen.encode_text(batch["prompt"])
    session = module.open_session(2)
    session.reset((batch["video"] * 0.5 + 0.5).clamp(0, 1)[:, :13], batch["prompt"])
    rollout = session._rollout
    assert isinstance(rollout, PixelRollout)
    assert (rollout.block, rollout.wanted, rollout.uncertain) == (range(3, 6), range(4, 6), range(4, 6))
    rollout.predict(torch.zeros(2, 8, 2))
    assert (rollout.block, rollout.wanted, rollout.uncertain) == (range(6, 9), range(6, 9), range(4, 6))
    frames = rollout.replace(latents[:, :2], torch.zeros(2, 8, 2), rollout.encoder)
    assert frames.shape[1] == 8 and rollout.uncertain == range(6, 9)
    # The decoder remembers what was known before them, and nothing of what was predicted.
    seen = module.frozen.vae.decode(torch.cat([latents[:, :4], latents[:, :2]], dim=1))[:, 13:] * 0.5 + 0.5
    torch.testing.assert_close(frames, seen, atol=1e-5, rtol=0)
    rollout.predict(torch.zeros(2, 12, 2))
    rollout.switch_prompt(text)
    with pytest.raises(ValueError, match="predict in a fork"):
        _ = rollout.uncertain
    assert rows.shape[1] == 16


def test_what_is_held_is_chosen_with_its_rows() -> None:
    held = Held(torch.arange(6.0).reshape(2, 3, 1, 1, 1), torch.arange(10.0).reshape(2, 5, 1))
    both = held.select([1, 1, 0])
    assert both.latents[:, 0].flatten().tolist() == [3, 3, 0]
    assert both.rows is not None and both.rows[:, 0].flatten().tolist() == [5, 5, 0]
    assert Held(held.latents).select([0]).rows is None
