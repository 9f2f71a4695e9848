from __future__ import annotations

import gc
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lightning_action.recordings.video_file import VideoFile, open_video, probe_video
from lightning_action.recordings.video_folder import file_frames
from tests.support.written_videos import numbered_frames, numbers_in, write_video

DATA = Path(__file__).parents[2] / "data"
KINDS = [
    ("mp4", "libx264", {"g": "2", "bf": "0"}),
    ("mp4", "libx264", {"g": "3", "bf": "2"}),
    ("mp4", "libx264", {"g": "50", "bf": "3"}),
    ("mp4", "libx264", {"g": "7", "bf": "2", "x264-params": "open-gop=1"}),
    ("webm", "libvpx-vp9", {"g": "10"}),
    ("mkv", "libx264", {"g": "7", "bf": "2"}),
    ("avi", "mpeg4", {"g": "7", "qmax": "2"}),
]


@pytest.mark.parametrize(("suffix", "codec", "options"), KINDS)
def test_any_frame_in_any_order_is_the_one_of_a_whole_pass(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str]
) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered_frames(30), codec=codec, **options)
    require_any_order(VideoFile(path))


def test_hevc_is_read_alike() -> None:
    """The file was written once, by libx265 with keyint=5: it corrupts memory here, one time in some hundred."""
    require_any_order(VideoFile(DATA / "numbered_hevc.mp4"))


def require_any_order(video: VideoFile) -> None:
    whole = video.frames(range(30))
    assert numbers_in(whole) == list(range(30))
    order = np.random.default_rng(0).integers(0, 30, 40).tolist()
    np.testing.assert_array_equal(np.concatenate([video.frames([index]) for index in order]), whole[order])
    np.testing.assert_array_equal(video.frames(order), whole[order])
    assert (video.facts.num_frames, video.facts.frame_size, video.facts.fps) == (30, (32, 48), 10.0)


def test_frames_are_found_by_their_times(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(12))
    video = VideoFile(tmp_path / "a.mp4")
    assert numbers_in(video.frames_at([0.3, 0.0, 1.1, 0.49], 0.02)) == [3, 0, 11, 5]
    with pytest.raises(ValueError, match=r"a.mp4 has no frame at 1.2000 s: nearest is 1.1000 s, of 12 frames"):
        video.frames_at([0.1, 1.2], 0.02)
    with pytest.raises(ValueError, match=r"no frame at 0.0500 s"):
        video.frames_at([0.05], 0.02)
    with pytest.raises(IndexError, match="has frames 0 to 11, not 12"):
        video.frames([12])


def test_one_frame_is_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", numbered_frames(1))
    assert VideoFile(tmp_path / "a.mp4").frames_at([0.0], 0.01).shape == (1, 32, 48, 3)


@pytest.mark.parametrize("movflags", ["", "+faststart"])
def test_a_file_that_is_cut_off_is_named(tmp_path: Path, movflags: str) -> None:
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    import av

    with av.open(str(whole), "w", options={"movflags": movflags} if movflags else {}) as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in np.random.default_rng(0).integers(0, 256, (30, 64, 64, 3), dtype=np.uint8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    content = whole.read_bytes()
    assert probe_video(whole).num_frames == 30
    cut.write_bytes(content[: len(content) * 2 // 3])
    for reads in (VideoFile, probe_video):
        with pytest.raises(ValueError, match=r"cut.mp4.*cut off"):
            reads(cut)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    for reads in (VideoFile, probe_video):
        with pytest.raises(ValueError, match=r"a.mp4 cannot be read as a video"):
            reads(tmp_path / "a.mp4")
        with pytest.raises(FileNotFoundError, match=r"no video at .*b.mp4"):
            reads(tmp_path / "b.mp4")


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_the_head_of_a_file_says_what_reading_finds(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write_video(path, numbered_frames(9), fps=5, codec=codec)
    facts = probe_video(path)
    assert (facts.num_frames, facts.frame_size, facts.fps) == (9, (32, 48), 5.0)
    np.testing.assert_allclose(facts.times, VideoFile(path).facts.times, atol=1e-9)


def write_at(path: Path, times: list[int], bf: int) -> None:
    """Write numbered frames at times in tenths of a second."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": str(bf)})
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for time, pixels in zip(times, numbered_frames(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize("bf", [0, 2])
@pytest.mark.parametrize(
    "times",
    [[0], list(range(12)), list(range(7, 19)), [*range(9), 14, 15, 16], [*range(11), 12], [0, *range(2, 13)]],
    ids=["one", "even", "late", "pause", "last", "first"],
)
def test_times_are_those_of_the_frames_that_are_decoded(tmp_path: Path, times: list[int], bf: int) -> None:
    path = tmp_path / "a.mp4"
    write_at(path, times, bf)
    found = probe_video(path).times
    np.testing.assert_allclose(found, np.array(times) / 10, atol=1e-9)
    assert numbers_in(VideoFile(path).frames_at(found.tolist(), 0.01)) == list(range(len(times)))


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_files_are_given_back_when_too_many_are_open(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.mp4" for number in range(24)]
    for path in paths:
        write_video(path, numbered_frames(4))
    gc.collect()
    before = open_files()
    gc.disable()
    try:
        for path in [*paths, paths[0]]:
            assert numbers_in(file_frames(path, [3, 1])) == [3, 1]
        assert open_files() <= before + 16
    finally:
        gc.enable()


def _numbers_in_child(path: Path) -> list[int]:
    return numbers_in(file_frames(path, [7, 2]))


def test_a_forked_process_opens_the_file_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, numbered_frames(10))
    with open_video(path) as mine:
        assert numbers_in(mine.frames([3])) == [3]
    with open_video(path) as again:
        assert again is mine
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_numbers_in_child, [path, path, path]) == [[7, 2]] * 3
    assert numbers_in(file_frames(path, [4, 9])) == [4, 9]


def test_a_file_that_is_being_read_is_nobody_elses(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.mp4" for number in range(18)]
    for path in paths:
        write_video(path, numbered_frames(4))
    with open_video(paths[0]) as mine:
        with open_video(paths[0]) as other:
            assert other is not mine
        for path in paths:
            file_frames(path, [0])
        assert numbers_in(mine.frames([3, 1])) == [3, 1]


def test_threads_read_what_one_reads_alone(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.mp4" for number in range(3)]
    for path in paths:
        write_video(path, numbered_frames(12))

    def read(seed: int) -> list[tuple[list[int], list[int]]]:
        source = np.random.default_rng(seed)
        wanted = [source.integers(0, 12, 3).tolist() for _ in range(60)]
        return [(order, numbers_in(file_frames(paths[source.integers(3)], order))) for order in wanted]

    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(read, range(4)):
            assert all(numbers == order for order, numbers in found)


@pytest.mark.parametrize(("suffix", "codec"), [("webm", "libvpx-vp9"), ("mkv", "libx264")])
def test_a_cut_file_without_an_index_is_named(tmp_path: Path, suffix: str, codec: str) -> None:
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    write_video(whole, np.random.default_rng(0).integers(0, 256, (40, 32, 48, 3), dtype=np.uint8), codec=codec)
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert probe_video(whole).num_frames == 40
    with pytest.raises(ValueError, match=rf"cut.{suffix} is cut off: it announces 4 s, and its frames end at 1"):
        probe_video(cut)
