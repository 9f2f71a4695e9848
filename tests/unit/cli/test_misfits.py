"""Batches that do not fit, and networks that do not belong together."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from lightning_action.action.projection import ActionModulationProjection
from lightning_action.cli.misfits import misfits
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.linear_codec import LinearVideoCodec
from lightning_action.frozen.umt5 import UMT5TextEncoder
from lightning_action.generation.sampling import Sampling
from lightning_action.module.action_video_module import ActionVideoModule
from tests.support.small_generator import small_generator
from tests.support.small_module import batch_of, small_module


@pytest.mark.parametrize("trains", [True, False])
def test_a_batch_that_fits(trains: bool) -> None:
    assert misfits(small_module(), batch_of(), trains) == []
    assert misfits(small_module(text_encoder=UMT5TextEncoder), batch_of(), trains) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": ...}, r"no `video` \[B, T, 3, H, W\], which training needs"),
        ({"prompt": ["a", "b"]}, "`prompt` must be a list of 3 strings"),
        ({"prompt": "a b"}, "`prompt` must be a list of 3 strings"),
        ({"prompt": ["a", None, "b"]}, "`prompt` must be a list of 3 strings"),
        ({"prompt": [b"a", b"b", b"c"]}, "`prompt` must be a list of 3 strings"),
        ({"prompt": [["a"], ["b"], ["c"]]}, "`prompt` must be a list of 3 strings"),
        ({"action": torch.zeros(3, 12, 3, dtype=torch.complex64)}, r"real numbers .* got torch.complex64 \[3, 12, 3\]"),
        ({"action": torch.zeros(3, 36)}, r"real numbers \[3, rows, columns\], got torch.float32 \[3, 36\]"),
        ({"action": torch.zeros(3, 12, 3).tolist()}, r"\[3, rows, columns\], got list"),
        ({"sample_id": ...}, "the batch has no sample_id"),
        ({"video": torch.zeros(3, 13, 3, 16, 24, dtype=torch.uint8)}, r"floats .* got torch.uint8"),
        ({"video": torch.zeros(3, 12, 3, 16, 24)}, r"12 frames is no whole number of latent frames: expected 1 \+ 4 n"),
        ({"video": torch.zeros(3, 9, 3, 16, 24)}, "3 latent frames .* not a whole number of blocks"),
        ({"video": torch.zeros(3, 13, 3, 20, 24)}, "20"),
        ({"video": torch.zeros(3, 13, 3, 24, 24)}, "not a whole number of patches of 2 x 1"),
        ({"video": torch.zeros(3, 13, 4, 16, 24)}, r"expected `video` \[3, T, 3, H, W\], got \[3, 13, 4, 16, 24\]"),
        ({"video": torch.full((3, 13, 3, 16, 24), 255.0)}, r"pixels are in \[-1, 1\], .* from 255 to 255"),
        ({"video": torch.full((3, 13, 3, 16, 24), torch.nan)}, r"pixels are in \[-1, 1\], .* nan"),
        ({"action": ...}, "no `action` .* no action_module infers one"),
        ({"action": ..., "actions": torch.zeros(3, 12, 3)}, "no `action` .* did you mean `actions`"),
        ({"video": ..., "videos": torch.zeros(3, 13, 3, 16, 24)}, "no `video` .* did you mean `videos`"),
        ({"prompt": ..., "prompts": ["a", "b", "c"]}, "no prompt; .* did you mean `prompts`"),
        ({"action": torch.zeros(3, 12, 2)}, r"must be \[B, 12, 3\] .* got \[3, 12, 2\]"),
        ({"action": torch.zeros(3, 13, 3)}, r"must be \[B, 12, 3\] .* got \[3, 13, 3\].*state 13"),
        ({"action": torch.zeros(2, 12, 3)}, r"real numbers \[3, rows, columns\], got torch.float32 \[2, 12, 3\]"),
        ({"action": torch.full((3, 12, 3), torch.inf)}, "not finite"),
        ({"prompt": ["a b c d e f g h", "a", "b"]}, "prompt has 8 words"),
    ],
)
def test_a_training_batch_that_does_not_fit(changes: dict[str, Any], message: str) -> None:
    batch = batch_of(**changes)
    told = misfits(small_module(), batch, trains=True)
    assert told
    with pytest.raises(AssertionError, match=message):
        raise AssertionError("\n".join(told))
    with pytest.raises((ValueError, RuntimeError)) as refusal:
        trainable().training_step(batch, 0)
    assert str(refusal.value) in told


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"video": torch.zeros(3, 13, 3, 16, 24, dtype=torch.float64)},
        {"video": torch.zeros(3, 13, 3, 16, 24, dtype=torch.float16)},
        {"action": None},
        {"action": torch.zeros(3, 12, 3, dtype=torch.float64)},
        {"action": torch.zeros(3, 12, 3, dtype=torch.int64)},
        {"prompt": ("a", "b", "")},
        {"sample_id": torch.arange(3, dtype=torch.int32)},
        {"sample_id": torch.tensor([1, 2, 65535], dtype=torch.uint16)},
        {"fps": 8, "task": None, "camera": {"name": ["a", "b"]}, "dt": torch.tensor(0.1)},
    ],
)
def test_what_fits_trains(changes: dict[str, Any]) -> None:
    batch = batch_of(**changes)
    assert misfits(small_module(), batch, trains=True) == []
    assert bool(trainable().training_step(batch, 0)["loss"].isfinite())


@pytest.mark.parametrize("batch", [[torch.zeros(3)], torch.zeros(3), None])
def test_what_is_no_dict_is_no_batch(batch: Any) -> None:
    (told,) = misfits(small_module(), batch, trains=True)
    assert told == f"a batch is a dict with `prompt` and `sample_id`, got a {type(batch).__name__}"
    for step in (trainable().training_step, trainable().predict_step):
        with pytest.raises(ValueError, match="a batch is a dict"):
            step(batch, 0)


@pytest.mark.parametrize("action", [torch.zeros(3, 12, 3).tolist(), torch.zeros(3, 12, 3, dtype=torch.complex64)])
def test_what_is_no_table_of_actions_is_not_predicted_from(action: Any) -> None:
    with pytest.raises(ValueError, match="must be a tensor of real numbers"):
        trainable().predict_step(batch_of(action=action), 0)


def trainable(**changes: Any) -> ActionVideoModule:
    module = small_module("cpu", **changes)
    codec = module.frozen.vae
    assert isinstance(codec, LinearVideoCodec)
    codec.fit(batch_of()["video"])
    return module


def test_several_problems_are_told_together_and_each_once() -> None:
    told = misfits(small_module(), batch_of(video=torch.zeros(3, 9, 3, 20, 24), action=torch.zeros(3, 5, 3)), True)
    assert len(told) == len(set(told)) == 3, told


def test_a_batch_to_predict_from_needs_its_first_frames_only() -> None:
    start = batch_of(video=torch.zeros(3, 1, 3, 16, 24))
    assert misfits(small_module(), start, trains=False) == []
    more = small_module(sampling=Sampling(num_initial_latents=2))
    (told,) = misfits(more, start, trains=False)
    assert "num_initial_latents 2 needs 5 frames, got 1" in told


def test_nothing_is_left_to_generate() -> None:
    module = small_module(sampling=Sampling(num_initial_latents=4))
    for trains in (True, False):
        (told,) = misfits(module, batch_of(), trains)
        assert "num_initial_latents 4 leaves nothing to generate of a video of 4 latent frames" in told


def test_pixels_that_look_like_those_of_another_range_are_told() -> None:
    with pytest.warns(UserWarning, match=r"those of `video` go from 0.5 to 1: if they are in \[0, 1\], give 2 x - 1"):
        assert misfits(small_module(), batch_of(video=torch.rand(3, 13, 3, 16, 24).round() / 2 + 0.5), True) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert misfits(small_module(), batch_of(video=torch.zeros(3, 13, 3, 16, 24)), True) == [], "a dark one"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vae": lambda: LinearVideoCodec(latent_dim=6, patch_size=8)}, "in_dim = 5 channels, .* have 6"),
        ({"generator": lambda: small_generator(out_dim=4)}, "out_dim = 4 channels, the VAE's latents have 5"),
        ({"text_encoder": lambda: HashingTextEncoder(text_dim=8, text_len=7)}, r"text must be .* got \[\d, 7, 8\]"),
        (
            {"action_projection": lambda a, d: ActionModulationProjection(a, d + 1, 10)},
            r"action_modulation must be .* got \[\d, \d, 6, 37\]",
        ),
    ],
)
def test_networks_that_do_not_belong_together(changes: dict[str, Any], message: str) -> None:
    (told,) = misfits(small_module(**changes), batch_of(), trains=True)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(told)
    with pytest.raises(ValueError, match=message):
        trainable(**changes).training_step(batch_of(), 0)


@pytest.mark.parametrize("sizes", [{"in_dim": 14, "image_dim": 10}, {"in_dim": 14}, {"image_dim": 10}])
def test_an_image_condition_that_no_batch_carries(sizes: dict[str, Any]) -> None:
    module = small_module(generator=lambda: small_generator(**sizes))
    (told,) = misfits(module, batch_of(), trains=True)
    assert "wants an image condition" in told and "ActionCausalInferencePipeline" in told
    with pytest.raises(ValueError, match="image (channels|embeds)"), torch.device("meta"):
        module.generator(torch.zeros(1, 1, 5, 2, 3), torch.zeros(1, 1), torch.zeros(1, 1, 9))
