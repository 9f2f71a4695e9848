from __future__ import annotations

import pytest
import torch

from lightning_action.action.schema import ActionSchema
from lightning_action.batch import (
    bytes_of_unit_range,
    check_batch,
    choose_samples,
    first_frames,
    first_samples,
    frame_size,
    from_unit_range,
    has_actions,
    num_latent_frames,
    num_latents,
    num_pixel_frames,
    pixel_frames_of,
    shuffled_actions,
    to_bytes,
    to_unit_range,
    without_actions,
)
from lightning_action.callbacks.support.pictures import to_uint8

SCHEMA = ActionSchema(temporal_compression_ratio=3)


def test_null_and_missing_actions_are_no_actions() -> None:
    assert has_actions({"action": torch.zeros(2, 3, 1)})
    assert not has_actions({}) and not has_actions(without_actions({"action": torch.zeros(2, 3, 1)}))


def test_length_follows_from_actions_then_video_then_number() -> None:
    video = torch.zeros(2, 4, 3, 5, 7)
    assert num_latents({"action": torch.zeros(2, 9, 2), "video": video, "num_latents": 7}, SCHEMA) == 4
    assert num_latents({"action": None, "video": video, "num_latents": 7}, SCHEMA) == 2
    assert num_latents({"num_latents": 7}, SCHEMA) == 7
    with pytest.raises(ValueError, match="needs `num_latents`"):
        num_latents({}, SCHEMA)


def test_the_first_samples_leave_alone_what_is_no_row_of_values_for_each() -> None:
    others = {"rate": 4, "note": "abc", "none": None, "one": torch.tensor(2.0), "names": ["a", "b"]}
    batch = {"sample_id": torch.arange(3), "prompt": ("a", "b", "c"), "more": {"x": torch.zeros(3, 5)}, **others}
    few = first_samples(batch, 2)
    assert few["sample_id"].tolist() == [0, 1] and few["prompt"] == ("a", "b") and few["more"]["x"].shape == (2, 5)
    assert {key: few[key] for key in others} == others


def test_samples_are_chosen_by_their_places_again_and_again() -> None:
    batch = {"sample_id": torch.tensor([7, 8, 9]), "prompt": ["a", "b", "c"], "action": torch.arange(6).reshape(3, 2)}
    chosen = choose_samples(batch, [2, 0, 2, 2])
    assert chosen["sample_id"].tolist() == [9, 7, 9, 9] and chosen["prompt"] == ["c", "a", "c", "c"]
    assert chosen["action"][:, 0].tolist() == [4, 0, 4, 4] and len(batch["prompt"]) == 3
    assert first_samples(batch, 5)["prompt"] == ["a", "b", "c"]


def test_shuffled_actions_are_a_samples_own_rows_in_another_order() -> None:
    action = torch.arange(3 * 7 * 2).reshape(3, 7, 2)
    seeds = [torch.Generator().manual_seed(seed) for seed in (0, 1, 0)]
    shuffled = shuffled_actions({"action": action, "prompt": "abc"}, seeds)
    assert shuffled["prompt"] == "abc" and not torch.equal(shuffled["action"], action)
    assert torch.equal(shuffled["action"].sort(dim=1).values, action)
    first, second, third = (rows - own for rows, own in zip(shuffled["action"], action, strict=True))
    assert torch.equal(first, third) and not torch.equal(first, second), "by the sample's own random generator"


@pytest.mark.parametrize("samples", [["a", "b"], torch.zeros(2), torch.tensor(1), torch.zeros(2, 1).long()])
def test_sample_ids_are_whole_numbers(samples: object) -> None:
    with pytest.raises(ValueError, match="`sample_id` must be a tensor .* of whole numbers"):
        check_batch({"prompt": ["a", "b"], "sample_id": samples})


def test_frame_size() -> None:
    assert frame_size({"video": torch.zeros(2, 4, 3, 5, 7)}) == (5, 7)
    assert frame_size({"frame_size": torch.tensor([[8, 6]])}) == (8, 6)
    with pytest.raises(ValueError, match="needs `frame_size`"):
        frame_size({})


@pytest.mark.parametrize(("count", "frames"), [(1, 1), (2, 4), (3, 7)])
def test_first_frames(count: int, frames: int) -> None:
    video = torch.rand(2, 7, 3, 5, 4)
    first = first_frames({"video": video}, count, 4, 3)
    assert first is not None and first.keys() == {"video"} and torch.equal(first["video"], video[:, :frames])


def test_first_latents() -> None:
    latents = torch.rand(2, 3, 7, 5, 4)
    first = first_frames({"latents": latents}, 2, 4, 3)
    assert first is not None and first.keys() == {"latents"} and torch.equal(first["latents"], latents[:, :2])
    with pytest.raises(ValueError, match="num_initial_latents 4 needs 4 latent frames, got 3"):
        first_frames({"latents": latents}, 4, 5, 3)


def test_no_first_frames() -> None:
    assert first_frames({}, 2, 5, 3) is None and first_frames({"video": torch.rand(1, 1, 3, 5, 4)}, 0, 5, 3) is None
    with pytest.raises(ValueError, match="num_initial_latents 4 needs 10 frames, got 7"):
        first_frames({"video": torch.rand(2, 7, 3, 5, 4)}, 4, 5, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "a red disc"}, "list of 2 strings"),
        ({"prompt": ["a"]}, r"list of 2 strings, .* got \['a'\]"),
        ({"video": torch.zeros(2, 3, 5, 7)}, r"float32 of shape \[2, 3, 5, 7\]"),
        ({"video": torch.zeros(2, 1, 3, 5, 7, dtype=torch.uint8)}, "uint8"),
        ({"latents": torch.zeros(2, 3, 5, 7)}, r"`latents` .* \[2, F, C, h, w\], got torch.float32 \[2, 3, 5, 7\]"),
        ({"text": torch.zeros(1, 4, 6)}, r"`text` .* \[2, L, text_dim\], got torch.float32 \[1, 4, 6\]"),
        ({"text": ["a", "b"]}, "`text` must be a tensor of floats .* got list"),
    ],
)
def test_batches_that_nothing_can_be_generated_from(change: dict[str, object], message: str) -> None:
    whole = {"prompt": ["a", "b"], "sample_id": torch.arange(2), "video": torch.zeros(2, 1, 3, 5, 7)}
    check_batch(whole)
    with pytest.raises(ValueError, match=message):
        check_batch({**whole, **change})
    for key in ("prompt", "sample_id"):
        with pytest.raises(ValueError, match=f"the batch has no {key}"):
            check_batch({name: value for name, value in whole.items() if name != key})


def test_pixels_for_users_are_in_the_unit_range() -> None:
    assert to_unit_range(torch.tensor([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]
    shades = torch.tensor([0.0, 0.5, 1.0])
    assert from_unit_range(shades).tolist() == [-1.0, 0.0, 1.0] and torch.equal(
        to_unit_range(from_unit_range(shades)), shades
    )


def test_bytes_are_the_same_in_either_range() -> None:
    random = torch.Generator().manual_seed(0)
    near_black = -1 + torch.tensor([0.0, 2.0**-24, 2.0**-20, 1e-3])
    decoded = torch.cat([2 * torch.rand(100_001, generator=random) - 1, near_black])
    # What is decoded, and what files hold.
    for shown in (to_unit_range(decoded), torch.arange(256) / 255):
        assert torch.equal(bytes_of_unit_range(shown), to_bytes(from_unit_range(shown)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_that_callbacks_write(dtype: torch.dtype) -> None:
    video = torch.linspace(-1.2, 1.2, 3001).to(dtype)
    as_bytes = to_bytes(video)
    assert as_bytes.dtype == torch.uint8 and as_bytes.unique().numel() > 200
    assert torch.equal(as_bytes, to_uint8(to_unit_range(video)))
    # Handed over as floats, they are written as they are.
    assert torch.equal(to_uint8(as_bytes.float() / 255), as_bytes)


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (5, 2), (9, 3), (33, 9)])
def test_latent_frames_stand_for_pixel_frames(frames: int, latents: int) -> None:
    assert num_latent_frames(frames, 4) == latents and num_pixel_frames(latents, 4) == frames
    assert num_latent_frames(frames + 3, 4) == latents, "what does not fill one is none"


def test_each_latent_frame_but_the_first_stands_for_as_many_pixel_frames() -> None:
    assert [list(pixel_frames_of(latent, 3)) for latent in range(3)] == [[0], [1, 2, 3], [4, 5, 6]]
