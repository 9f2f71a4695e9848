"""Clips are encoded in parts, and say what is wrong with them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_action import WanVideoVAE
from lightning_action.data.clip_encoding import ClipData, cut_clip, encode_clip, encode_prompt
from lightning_action.frozen.hashing_text import HashingTextEncoder
from lightning_action.frozen.holder import FrozenParts
from tests.support.latent_stores import HEIGHT, RATIO, WIDTH, NoiseClip, frozen_parts
from tests.support.sprite_module import data
from tests.support.wan_parts import small_vae


def encoded(frozen: FrozenParts, clip: NoiseClip) -> dict[str, Tensor]:
    return encode_clip(frozen, clip, (HEIGHT, WIDTH), torch.float32)


@pytest.mark.parametrize("num_frames", [1, 4, 5, 64, 65, 66, 137])
def test_a_long_clip_is_encoded_in_parts_as_the_whole(num_frames: int) -> None:
    frozen, clip = frozen_parts(), NoiseClip("a", num_frames, 1)
    told: list[int] = []
    tensors = encode_clip(frozen, clip, (HEIGHT, WIDTH), torch.float32, progress=told.append)
    kept = num_frames - (num_frames - 1) % RATIO
    video = clip.video(0, kept)
    torch.testing.assert_close(tensors["latents"], frozen.encode_video(video[None])[0], atol=1e-6, rtol=0)
    alone = frozen.encode_video(video[::RATIO, None])[:, 0]
    torch.testing.assert_close(tensors["first"], alone, atol=1e-6, rtol=0)
    assert torch.equal(tensors["action"], clip.action(0, kept)) and tensors["action"].dtype == torch.float32
    assert sum(told) == kept


def test_no_more_than_a_part_of_the_video_is_read_at_a_time() -> None:
    clip, asked = NoiseClip("a", 400, 1), []

    class Watched(NoiseClip):
        def video(self, start: int, num_frames: int) -> Tensor:
            asked.append((start, num_frames))
            return clip.video(start, num_frames)

    encoded(frozen_parts(), Watched("a", 400, 1))
    assert max(count for _, count in asked) <= 16 * RATIO
    assert [start for start, _ in asked] == [sum(count for _, count in asked[:i]) for i in range(len(asked))]


def test_later_latents_of_a_vae_with_memory_have_seen_frames_before_the_window(tmp_path: Path) -> None:
    """How much that changes is measured in docs/encoding.md; the first latent, of one frame alone, is exact."""
    torch.manual_seed(0)
    small_vae("2.1").save_pretrained(tmp_path)
    frozen = FrozenParts(HashingTextEncoder(6, 4), WanVideoVAE(str(tmp_path)))

    class Wide(NoiseClip):
        def video(self, start: int, num_frames: int) -> Tensor:
            random = torch.Generator().manual_seed(1)
            return torch.rand(21, 3, 16, 24, generator=random)[start : start + num_frames] * 2 - 1

    clip = Wide("a", 21, 1)
    tensors = encode_clip(frozen, clip, (16, 24), torch.float32)
    window = frozen.encode_video(clip.video(8, 13)[None])[0]
    torch.testing.assert_close(tensors["first"][2], window[0], atol=1e-5, rtol=0)
    whole = frozen.encode_video(clip.video(0, 21)[None])[0]
    torch.testing.assert_close(tensors["latents"], whole, atol=1e-5, rtol=0)
    assert (tensors["latents"][3:] - window[1:]).abs().max() > 1e-3


def test_a_clip_that_does_not_fit_is_named() -> None:
    frozen = frozen_parts()
    with pytest.raises(ValueError, match=r"a: expected frames 0 to 20 of 8 x 12, got \[21, 3, 4, 12\]"):
        encoded(frozen, NoiseClip("a", 21, 1, height=4))

    class Broken(NoiseClip):
        def video(self, start: int, num_frames: int) -> Tensor:
            raise ValueError("the file ends at frame 7")

    with pytest.raises(ValueError, match="a, frames 0 to 20: the file ends at frame 7"):
        encoded(frozen, Broken("a", 21, 1))

    class Infinite(NoiseClip):
        def video(self, start: int, num_frames: int) -> Tensor:
            return super().video(start, num_frames) / 0

    with pytest.raises(ValueError, match="NaN or infinity"):
        encoded(frozen, Infinite("a", 21, 1))
    assert "action" not in encoded(frozen, replace(NoiseClip("a", 21, 1), has_actions=False))


def test_pieces_have_no_past_and_leave_no_frame_out() -> None:
    clip = NoiseClip("a", 42, 1)
    pieces = cut_clip(clip, 3, RATIO)
    assert [piece.name for piece in pieces] == [f"a from frame {start}" for start in (0, 9, 18, 27, 36)]
    assert [piece.num_frames for piece in pieces] == [9, 9, 9, 9, 6]
    assert torch.equal(torch.cat([piece.video(0, piece.num_frames) for piece in pieces]), clip.video(0, 42))
    assert torch.equal(pieces[2].action(4, 5), clip.action(22, 5))
    assert (pieces[2].fps, pieces[2].prompt, pieces[2].has_actions) == (clip.fps, clip.prompt, True)
    frozen = frozen_parts()
    latents = encode_clip(frozen, pieces[1], (HEIGHT, WIDTH), torch.float32)["latents"]
    torch.testing.assert_close(latents, frozen.encode_video(clip.video(9, 9)[None])[0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(("prompt", "length"), [("", 1), ("a", 1), ("a red disc moves", 4)])
def test_prompts_are_as_long_as_they_are(prompt: str, length: int) -> None:
    frozen = frozen_parts()
    text = encode_prompt(frozen, prompt)
    assert text.shape == (length, 6) and torch.equal(text, frozen.encode_text([prompt])[0, :length])


def test_the_sprite_world_offers_its_videos_as_clips() -> None:
    source = data()
    assert isinstance(source, ClipData)
    clips, batch = source.clips("validation"), source.dataset("validation").batch(range(4))
    assert len({clip.name for split in ("train", "validation") for clip in source.clips(split)}) == 15 + 4
    for index, clip in enumerate(clips):
        assert (clip.num_frames, clip.prompt) == (17, batch["prompt"][index])
        assert torch.equal(clip.video(0, 17), batch["video"][index])
        assert torch.equal(clip.action(0, 17), batch["action"][index])
        assert torch.equal(clip.video(4, 5), batch["video"][index, 4:9])
        assert torch.equal(clip.action(4, 5), batch["action"][index, 4:8])
