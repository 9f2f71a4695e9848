"""Drawing on videos, and files that are whole or absent."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import av
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from lightning_action.callbacks.support import files
from lightning_action.callbacks.support.pictures import (
    CAPTION_HEIGHT,
    GAP,
    action_of_frame,
    beside_truth,
    draw_actions,
    encode_gif,
    enlarge,
    first_frames,
    from_image,
    in_grid,
    shrink,
    side_by_side,
    to_image,
    to_uint8,
    write_mp4,
    write_png,
)

T, H, W = 9, 12, 20


def grey(num_frames: int = T) -> Tensor:
    return torch.full((num_frames, 3, H, W), 0.5)


def read_mp4(path: Path) -> Tensor:
    with av.open(str(path)) as container:
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return torch.stack(frames).permute(0, 3, 1, 2)


def orange(frame: Tensor) -> Tensor:
    """Where the colour is that actions are drawn in, and nothing else here."""
    red, green, blue = frame.int().unbind(-3)
    return (red > 230) & (green > 110) & (green < 190) & (blue < 80)


def centre_of(mask: Tensor) -> tuple[float, float]:
    y, x = mask.nonzero().float().mean(0).tolist()
    return x, y


@pytest.mark.parametrize(
    ("num_rows", "num_frames", "expected"),
    [
        (8, 9, [None, 0, 1, 2, 3, 4, 5, 6, 7]),  # transition
        (9, 9, [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # state
        (3, 9, [0, 1, 1, 1, 1, 2, 2, 2, 2]),  # per latent frame, r = 4
        (4, 10, [0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),  # per latent frame, r = 3
        (8, 5, [None, 1, 3, 5, 7]),  # transition, two rows a frame
        (13, 5, [0, 3, 6, 9, 12]),  # state, three rows a frame
        (1, 5, [0, 0, 0, 0, 0]),
        (0, 3, [None, None, None]),
        (1, 1, [0]),
        (0, 1, [None]),
    ],
)
def test_every_frame_shows_the_action_that_led_to_it(
    num_rows: int, num_frames: int, expected: list[int | None]
) -> None:
    assert action_of_frame(num_rows, num_frames) == expected


def test_more_actions_than_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="got 10 rows for 9 frames"):
        action_of_frame(10, 9)


def test_enlarging_repeats_every_pixel() -> None:
    video = torch.rand(T, 3, H, W)
    large = enlarge(video, min_side=25)
    assert large.shape == (T, 3, 3 * H, 3 * W)
    assert all(torch.equal(large[..., dy::3, dx::3], video) for dy in range(3) for dx in range(3))
    assert torch.equal(enlarge(video, min_side=H), video)


def test_shrinking_averages_squares_of_pixels() -> None:
    video = torch.rand(T, 3, H, W)
    small = shrink(video, max_side=10)
    assert small.shape == (T, 3, H // 2, W // 2)
    assert small[3, 1, 2, 4] == pytest.approx(video[3, 1, 4:6, 8:10].mean().item(), abs=1e-6)
    assert shrink(video, max_side=W) is video
    assert shrink(to_uint8(grey()), max_side=7).sub(128 / 255).abs().max() < 1e-6


def test_pixels_are_rounded_and_cut_off_at_the_ends_of_the_range() -> None:
    assert to_uint8(torch.tensor([-0.5, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.5])).tolist() == [0, 0, 0, 1, 255, 255]
    assert to_uint8(torch.tensor([0.25], dtype=torch.bfloat16)).tolist() == [64]


def test_images_and_frames_are_converted_without_loss() -> None:
    frame = to_uint8(torch.rand(3, H, W))
    assert to_image(frame).size == (W, H)
    assert torch.equal(from_image(to_image(frame)), frame)


def test_videos_stand_side_by_side_under_their_captions() -> None:
    left, right = enlarge(torch.rand(T, 3, H, W)), enlarge(torch.rand(T, 3, H, W + 1))
    both = side_by_side([left, right], ["generated", "truth"])
    height, width, right_width = left.shape[-2], left.shape[-1], right.shape[-1]
    assert both.shape == (T, 3, CAPTION_HEIGHT + height, width + GAP + right_width)
    assert torch.equal(both[:, :, CAPTION_HEIGHT:, :width], to_uint8(left))
    assert torch.equal(both[:, :, CAPTION_HEIGHT:, width + GAP :], to_uint8(right))
    captions = both[0, :, :CAPTION_HEIGHT]
    assert (captions[..., :width] == 255).any() and (captions[..., width + GAP :] == 255).any()


def test_a_grid_has_rows_of_equal_width() -> None:
    videos = [torch.full((T, 3, H, W), level / 8) for level in range(1, 6)]
    grid = in_grid(videos, ["a"] * 5, num_columns=3)
    height = CAPTION_HEIGHT + H
    assert grid.shape == (T, 3, 2 * height, 3 * W + 2 * GAP)
    for index, video in enumerate(videos):
        top, left = index // 3 * height + CAPTION_HEIGHT, index % 3 * (W + GAP)
        assert torch.equal(grid[:, :, top : top + H, left : left + W], to_uint8(video))
    assert grid[:, :, height:, 2 * (W + GAP) :].float().std() == 0  # nothing is there
    assert in_grid(videos[:2], ["a", "b"], num_columns=3).shape == (T, 3, height, 2 * W + GAP)


def test_generated_stands_beside_truth_with_its_actions() -> None:
    generated, truth, action = torch.rand(T, 3, H, W), torch.rand(T, 3, H, W), torch.ones(T - 1, 2)
    width = 20 * W  # the shorter side has at least 240 pixels
    alone = beside_truth(generated, None, None)
    assert alone.shape == (T, 3, CAPTION_HEIGHT + 20 * H, width)
    assert torch.equal(alone[:, :, CAPTION_HEIGHT:], to_uint8(enlarge(generated)))
    both = beside_truth(generated, truth, action)
    assert torch.equal(both[:, :, CAPTION_HEIGHT:, width + GAP :], to_uint8(enlarge(truth)))
    assert torch.equal(both[:, :, CAPTION_HEIGHT:, :width], draw_actions(enlarge(generated), action))


@pytest.mark.parametrize(
    ("num_rows", "count", "expected"),
    [(8, 4, [0, 1, 2]), (9, 4, [0, 1, 2, 3]), (3, 6, [0, 1, 1, 1, 1, 2]), (8, 99, list(range(8))), (0, 4, [])],
)
def test_the_beginning_of_a_video_keeps_its_actions(num_rows: int, count: int, expected: list[int]) -> None:
    video, action = torch.rand(T, 3, H, W), torch.arange(2.0 * num_rows).reshape(num_rows, 2)
    frames, rows = first_frames(video, action, count)
    assert torch.equal(frames, video[:count]) and torch.equal(rows, action[expected])
    if num_rows:
        shown = [action_of_frame(len(rows), len(frames)), action_of_frame(num_rows, T)[:count]]
        values = [[None if i is None else r[i].tolist() for i in s] for s, r in zip(shown, (rows, action), strict=True)]
        assert values[0] == values[1]


def test_videos_that_do_not_fit_side_by_side_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        side_by_side([grey(), grey(T - 1)], ["generated", "truth"])
    with pytest.raises(ValueError, match="longer than"):
        side_by_side([grey()], ["generated", "truth"])


def test_the_joystick_points_where_the_action_does() -> None:
    directions = {"right": (1.0, 0.0), "left": (-1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0), "none": (0.0, 0.0)}
    video = enlarge(grey(len(directions)))
    drawn = dict(zip(directions, draw_actions(video, torch.tensor(list(directions.values()))), strict=True))
    places = {name: centre_of(orange(frame)) for name, frame in drawn.items()}
    x, y = places["none"]
    assert x < video.shape[-1] / 3 and y > video.shape[-2] / 2  # lower left
    assert places["right"][0] > x + 5 and places["left"][0] < x - 5
    assert places["down"][1] > y + 5 and places["up"][1] < y - 5
    assert abs(places["right"][1] - y) < 2 and abs(places["up"][0] - x) < 2


def test_a_frame_without_action_shows_no_stick() -> None:
    drawn = draw_actions(enlarge(grey()), torch.randn(T - 1, 2))
    assert not orange(drawn[0]).any()
    assert all(orange(frame).any() for frame in drawn[1:])
    assert (drawn[0] == 255).any()  # but where it would be


def test_bars_are_scaled_by_the_range_seen() -> None:
    action = torch.tensor([[0.5, 10.0, 0.0], [1.0, 0.0, 0.0]])
    first, second = (orange(frame) for frame in draw_actions(enlarge(grey(2)), action))
    columns_of_first = first.any(0).nonzero().flatten()
    columns_of_second = second.any(0).nonzero().flatten()
    half, whole = first[:, columns_of_second[2]].sum(), second[:, columns_of_second[2]].sum()
    assert whole > 20 and abs(2 * half - whole) <= 2
    assert columns_of_first.max() > columns_of_second.max()  # the second column's bar, next to the first one's
    assert abs(int(first[:, columns_of_first.max() - 2].sum()) - int(whole)) <= 2


@pytest.mark.parametrize(
    "action",
    [
        pytest.param(torch.randint(0, 5, (T, 1)), id="class"),
        pytest.param(torch.rand(T - 1, 1), id="one bar"),
        pytest.param(torch.randint(0, 2, (3, 2)), id="two switches"),
        pytest.param(torch.randn(T, 7), id="seven columns"),
        pytest.param(torch.randn(T - 1, 90), id="more columns than fit beside the text"),
        pytest.param(torch.zeros(T, 2), id="no motion"),
        pytest.param(torch.full((T, 2), float("nan")), id="nan"),
        pytest.param(torch.randn(T, 2, dtype=torch.bfloat16), id="bf16"),
        pytest.param(torch.zeros(0, 2), id="no rows"),
    ],
)
def test_every_kind_of_action_is_drawn_into_the_lower_part(action: Tensor) -> None:
    video = enlarge(grey())
    drawn = draw_actions(video, action)
    assert drawn.shape == video.shape and drawn.dtype == torch.uint8
    changed = (drawn != to_uint8(video)).any(1)
    assert changed.flatten(1).any(1).all()
    assert not changed[:, : video.shape[-2] // 2].any()


def test_the_given_video_is_left_alone() -> None:
    video = to_uint8(enlarge(grey()))
    draw_actions(video, torch.randn(T, 2))
    assert bool((video == 128).all())


def test_an_mp4_can_be_read_back(tmp_path: Path) -> None:
    video = enlarge(torch.rand(T, 3, H, W))
    write_mp4(tmp_path / "a.mp4", video, fps=5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.average_rate, stream.codec_context.name, stream.pix_fmt) == (5, "h264", "yuv420p")
    frames = read_mp4(tmp_path / "a.mp4")
    assert frames.shape == video.shape
    assert (frames.float() - to_uint8(video).float()).abs().mean() < 8
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # a browser can start before it has all of it


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 48), (32, 49), (33, 49)])
def test_odd_sizes_grow_by_their_last_pixel(tmp_path: Path, height: int, width: int) -> None:
    write_mp4(tmp_path / "a.mp4", torch.ones(2, 3, height, width), fps=8)
    frames = read_mp4(tmp_path / "a.mp4")
    assert frames.shape == (2, 3, height + height % 2, width + width % 2)
    assert frames.min() > 250


def test_a_png_is_exact(tmp_path: Path) -> None:
    frame = torch.rand(3, H, W)
    write_png(tmp_path / "a.png", frame)
    assert torch.equal(from_image(Image.open(tmp_path / "a.png")), to_uint8(frame))


def test_a_gif_is_small_and_plays_in_time() -> None:
    video = enlarge(grey())
    video[:, :, 40:80, 40:80] = torch.linspace(0, 1, T)[:, None, None, None]
    encoded = encode_gif(video, fps=5)
    gif = Image.open(BytesIO(encoded))
    frames = torch.stack([from_image(frame) for frame in ImageSequence.Iterator(gif)])
    assert frames.shape == video.shape
    assert (frames.float() - to_uint8(video).float()).abs().max() < 8
    assert len(encoded) < video[0].numel() / 8


WRITERS: dict[str, Callable[[Path], None]] = {
    "mp4": lambda path: write_mp4(path, grey(), fps=8),
    "png": lambda path: write_png(path, grey()[0]),
    "gif": lambda path: files.write_bytes(path, encode_gif(grey(), fps=8)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_writing_that_fails_leaves_what_was_there(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_text("before")

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(files.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        WRITERS[kind](path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(path.name, "before")]


def test_an_mp4_that_breaks_off_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    class FailingReformatter:
        def reformat(self, frame: av.VideoFrame, **_: object) -> av.VideoFrame:
            if len(encoded) == 3:
                raise RuntimeError("the encoder stopped")
            encoded.append(frame)
            return frame.reformat(format="yuv420p")

    monkeypatch.setattr("av.video.reformatter.VideoReformatter", FailingReformatter)
    with pytest.raises(RuntimeError, match="the encoder stopped"):
        write_mp4(tmp_path / "a.mp4", enlarge(grey()), fps=8)
    assert list(tmp_path.iterdir()) == []
