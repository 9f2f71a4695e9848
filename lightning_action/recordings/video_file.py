"""Frames of a video file by their times, exact whatever the codec, through one open container."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# Open files of one process. Each keeps a decoder, which holds some frames.
_MAX_OPEN = 16
# Key frames from which a frame is looked for, the nearest first.
_SEEKS = 4


class VideoFile:
    """A video file that is kept open.

    Args:
        path: File of any container and codec that FFmpeg reads.

    Raises:
        ValueError: The file is no video, or cut off; the message names it.
    """

    def __init__(self, path: Path) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self.path = path
        with _blaming(path):
            self._container = av.open(str(path))
            if not self._container.streams.video:
                raise ValueError(f"{path} holds no video stream")
            self._stream = self._container.streams.video[0]
            # Workers of a DataLoader are the parallelism; threads beside them only wait for each other.
            self._stream.codec_context.thread_count = 1
            packets = [
                (packet.pts, packet.is_keyframe)
                for packet in self._container.demux(self._stream)
                if packet.pts is not None and not packet.is_discard
            ]
        announced = self._stream.frames
        if not packets or len(packets) < announced:
            raise ValueError(f"{path} is cut off: it announces {announced} frames and holds {len(packets)}")
        self._pts = np.array(sorted(pts for pts, _ in packets))
        self._key_pts = np.array(sorted(pts for pts, is_key in packets if is_key))
        self._time_base = float(self._stream.time_base or 1)
        # One converter for all frames: a new one for each costs up to thirty times more on small frames.
        self._reformatter = VideoReformatter()
        self._decoded: Any = iter(())
        self._next_pts: int | None = None

    @property
    def num_frames(self) -> int:
        """Number of frames of the file."""
        return len(self._pts)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame."""
        return self._stream.height, self._stream.width

    @property
    def fps(self) -> float:
        """Average number of frames of a second."""
        return float(self._stream.average_rate or 0)

    def frames_at(self, times: Sequence[float], tolerance: float) -> np.ndarray:
        """Decode the frames nearest to some times.

        Args:
            times: Times from the start of the file in seconds, in any order.
            tolerance: Largest distance in seconds of a frame from the time it is asked for.

        Returns:
            Frames `[len(times), H, W, 3]`, uint8 RGB.

        Raises:
            ValueError: There is no frame at one of the times, or the file cannot be decoded.
        """
        wanted = np.asarray(times, np.float64)
        held = self._pts * self._time_base
        right = np.searchsorted(held, wanted).clip(1, len(held) - 1) if len(held) > 1 else np.zeros(len(wanted), int)
        left = (right - 1).clip(0)
        nearest = np.where(wanted - held[left] <= held[right] - wanted, left, right)
        far = np.abs(held[nearest] - wanted)
        if len(far) and far.max() > tolerance:
            worst = int(far.argmax())
            raise ValueError(
                f"{self.path} has no frame at {wanted[worst]:.4f} s: nearest is {held[nearest[worst]]:.4f} s, of "
                f"{self.num_frames} frames from {held[0]:.4f} to {held[-1]:.4f} s"
            )
        return self.frames(nearest.tolist())

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Decode frames by their numbers from 0 on, in any order: `[len(indices), H, W, 3]`, uint8 RGB.

        Raises:
            IndexError: The file has no such frame.
            ValueError: The file cannot be decoded.
        """
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise IndexError(f"{self.path} has frames 0 to {self.num_frames - 1}, not {index}")
        with _blaming(self.path):
            found = {index: self._frame(int(self._pts[index])) for index in sorted(set(indices))}
        return np.stack([found[index] for index in indices])

    def _frame(self, pts: int) -> np.ndarray:
        keys = self._key_pts[: np.searchsorted(self._key_pts, pts, side="right")]
        goes_on = self._next_pts is not None and (keys[-1:].sum() <= self._next_pts <= pts)
        if goes_on:
            found = self._decode_until(pts)
        else:
            # Containers seek by decoding time, which may lead to a later key frame: then from the one before.
            starts = [*keys[::-1][:_SEEKS].tolist(), int(self._pts[0])]
            found = next((frame for frame in (self._decode_until(pts, start) for start in starts) if frame), None)
        if found is None:
            self._next_pts = None
            raise ValueError(f"{self.path} cannot be decoded at {pts * self._time_base:.4f} s: it is cut off or broken")
        following = np.searchsorted(self._pts, pts, side="right")
        self._next_pts = int(self._pts[following]) if following < self.num_frames else None
        rgb: np.ndarray = self._reformatter.reformat(found, format="rgb24", threads=1).to_ndarray()
        return rgb

    def _decode_until(self, pts: int, start: int | None = None) -> Any:
        """Decode up to a frame, from where the decoder is or from a key frame; None where it is not met."""
        if start is not None:
            self._container.seek(start, stream=self._stream, backward=True)
            self._decoded = self._container.decode(self._stream)
        for frame in self._decoded:
            if frame.pts is not None and frame.pts >= pts:
                return frame if frame.pts == pts else None
        return None


@dataclass(frozen=True)
class VideoFacts:
    """What a container says of its video, without decoding or reading it.

    Args:
        num_frames: Number of frames.
        frame_size: Height and width.
        fps: Average number of frames of a second.
    """

    num_frames: int
    frame_size: tuple[int, int]
    fps: float


def probe_video(path: Path) -> VideoFacts:
    """Read the head of a video file, and see that the file is as long as that says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no video, or cut off.
    """
    return _probed(path, _written(path))


@cache
def _probed(path: Path, written: int) -> VideoFacts:
    import av

    with _blaming(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = container.streams.video[0]
        entries = stream.index_entries
        if stream.frames and len(entries) == stream.frames:
            last = max(entries[index].pos + entries[index].size for index in (0, len(entries) - 1))
            if last > path.stat().st_size:
                raise ValueError(f"{path} is cut off: it announces {last} bytes and has {path.stat().st_size}")
            return VideoFacts(stream.frames, (stream.height, stream.width), float(stream.average_rate or 0))
    # A container without an index, such as WebM.
    video = VideoFile(path)
    return VideoFacts(video.num_frames, video.frame_size, video.fps)


def open_video(path: Path) -> VideoFile:
    """Open a video file, or take the one that this process has open already."""
    return _opened(path, _written(path), os.getpid())


@lru_cache(maxsize=_MAX_OPEN)
def _opened(path: Path, written: int, process_id: int) -> VideoFile:
    # A forked process must not read through the file handles of the one it came from.
    return VideoFile(path)


def _written(path: Path) -> int:
    """Time at which a file was written, so that nothing is remembered of one that was replaced."""
    with _blaming(path):
        return path.stat().st_mtime_ns


class _blaming:
    """Names the file in what FFmpeg raises, which are errors of many kinds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        import av

        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"no video at {self.path}") from error
        if isinstance(error, av.FFmpegError):
            raise ValueError(f"{self.path} cannot be read as a video ({error}): it is cut off or broken") from error
