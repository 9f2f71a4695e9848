from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from lightning_action.module.batch_checks import BatchChecks, latent_frames
from tests.support.small_generator import small_generator
from tests.support.small_module import batch_of, small_module

CHECKS = small_module().batch_checks


def ask(checks: BatchChecks, batch: dict[str, Any], trains: bool) -> None:
    for check in checks.of(batch, trains):
        check()


@pytest.mark.parametrize("trains", [True, False])
def test_a_batch_that_fits_is_asked_everything(trains: bool) -> None:
    """Of 13 frames, which are 4 latent ones in blocks of 2."""
    ask(CHECKS, batch_of(), trains)
    assert len(CHECKS.of(batch_of(), trains)) == 5
    assert latent_frames(CHECKS.schema, batch_of(), trains) == 4


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (batch_of(prompt=...), "the batch has no prompt"),
        (batch_of(video=torch.full((3, 13, 3, 16, 24), 3.0)), r"pixels are in \[-1, 1\]"),
        (batch_of(17), "5 latent frames from frame 0 on are not a whole number of blocks"),
        (batch_of(video=torch.zeros(3, 13, 3, 16, 20)), "16 x 20"),
        (batch_of(video=torch.zeros(3, 13, 3, 8, 24)), r"patch"),
        (batch_of(action=torch.zeros(3, 12, 2)), r"must be \[B, 12, 3\]"),
        (batch_of(action=...), "the batch has no `action`"),
        (batch_of(video=..., latents=torch.zeros(3, 4, 5, 2, 2), frame_size=torch.tensor([[16, 24]] * 3)), "5, 2, 3"),
    ],
)
@pytest.mark.parametrize("trains", [True, False])
def test_what_does_not_fit_is_refused(batch: dict[str, Any], message: str, trains: bool) -> None:
    with pytest.raises(ValueError, match=message):
        ask(CHECKS, batch, trains)


def test_only_training_needs_the_whole_video() -> None:
    start = batch_of(video=batch_of(1)["video"])
    ask(CHECKS, start, False)
    with pytest.raises(ValueError, match="1 latent frames from frame 0 on are not a whole number of blocks"):
        ask(CHECKS, start, True)
    assert latent_frames(CHECKS.schema, start, False) == 4 and latent_frames(CHECKS.schema, start, True) == 1
    with pytest.raises(ValueError, match="the batch has no `video`"):
        latent_frames(CHECKS.schema, batch_of(video=...), True)


def test_a_start_is_asked_for_where_something_is_generated_from_it() -> None:
    checks, batch = replace(CHECKS, num_initial_latents=4), batch_of()
    for trains in (True, False):
        with pytest.raises(ValueError, match="num_initial_latents 4 leaves nothing to generate"):
            ask(checks, batch, trains)
    ask(checks, {**batch, "action": None}, True)


def test_a_backbone_is_not_asked_about_actions() -> None:
    backbone = small_module(action_projection=None).batch_checks
    ask(backbone, batch_of(action=...), True)
    infers = replace(CHECKS.conditioning, action_module=nn.Identity())
    ask(replace(CHECKS, conditioning=infers), batch_of(action=...), True)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"in_dim": 11}, r"wants an image condition, which no batch carries \(in_dim 11, out_dim 5, image_dim None\)"),
        ({"image_dim": 8}, r"wants an image condition, .* \(in_dim 5, out_dim 5, image_dim 8\)"),
        ({"in_dim": 4}, "the generator takes in_dim = 4 channels, the VAE's latents have 5"),
        ({"out_dim": 4}, "the generator gives out_dim = 4 channels, the VAE's latents have 5"),
    ],
)
def test_a_generator_of_other_channels_is_refused(sizes: dict[str, int], message: str) -> None:
    checks = replace(CHECKS, generator=small_generator(**sizes).to("meta"))
    with pytest.raises(ValueError, match=message):
        ask(checks, batch_of(), True)
