"""Frames of a video file by their times, exact whatever the codec, through one open container."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

# Files of one process that are open and not read. Each keeps a decoder, which holds some frames.
_MAX_OPEN = 16
# Part of a frame's time by which frames may be away from even times.
_UNEVEN = 0.1
# Key frames from which a frame is looked for, the nearest first.
_SEEKS = 4


@dataclass(frozen=True)
class VideoFacts:
    """Facts that a container says of its video, without decoding.

    Args:
        times: Times of the frames in seconds, float64, in order.
        frame_size: Height and width.
        fps: Average number of frames of a second.
    """

    times: np.ndarray
    frame_size: tuple[int, int]
    fps: float

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.times)


class VideoFile:
    """A video file that is kept open, for one thread at a time.

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
        # One converter for all frames: a new one for each costs up to thirty times more on small frames.
        self._reformatter = VideoReformatter()
        self._decoded: Any = iter(())
        self._next_pts: int | None = None
        try:
            with _blaming(path):
                self._pts, self._key_pts = self._packets()
        except ValueError:
            self.close()
            raise
        self._time_base = float(self._stream.time_base or 1)
        self.facts = _facts(self._stream, self._pts * self._time_base)

    def _packets(self) -> tuple[np.ndarray, np.ndarray]:
        """Read the time stamps of all frames and of the key frames, in order."""
        if not self._container.streams.video:
            raise ValueError(f"{self.path} holds no video stream")
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
            raise ValueError(f"{self.path} is cut off: it announces {announced} frames and holds {len(packets)}")
        packets.sort()
        return np.array([pts for pts, _ in packets]), np.array([pts for pts, is_key in packets if is_key])

    def close(self) -> None:
        """Give back the file and its decoder, which are in a circle of references and would wait for its end."""
        self._decoded = iter(())
        self._container.close()

    def frames_at(self, times: Sequence[float], tolerance: float) -> np.ndarray:
        """Decode the frames nearest to some times.

        Args:
            times: Times from the start of the file in seconds, in any order.
            tolerance: Largest distance in seconds of a frame from the time it is asked for.

        Returns:
            Frames `[len(times), H, W, 3]`, uint8 RGB.

        Raises:
            ValueError: One of the times has no frame, or the file cannot be decoded.
        """
        wanted = np.asarray(times, np.float64)
        return self.frames(frames_nearest(self.path, self.facts.times, wanted, tolerance).tolist())

    def frames(self, indices: Sequence[int]) -> np.ndarray:
        """Decode frames by their numbers from 0 on, in any order: `[len(indices), H, W, 3]`, uint8 RGB.

        Raises:
            IndexError: The file has no such frame.
            ValueError: The file cannot be decoded.
        """
        for index in indices:
            if not 0 <= index < len(self._pts):
                raise IndexError(f"{self.path} has frames 0 to {len(self._pts) - 1}, not {index}")
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
        self._next_pts = int(self._pts[following]) if following < len(self._pts) else None
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


def frames_nearest(path: Path, held: np.ndarray, wanted: np.ndarray, tolerance: float) -> np.ndarray:
    """Find the numbers of the frames that are nearest to some times.

    Args:
        path: Video file, for messages.
        held: Times of its frames in seconds, in order, at least one.
        wanted: Times to look for.
        tolerance: Largest distance in seconds.

    Raises:
        ValueError: One of the times has no frame.
    """
    right = np.searchsorted(held, wanted).clip(0, len(held) - 1)
    left = (right - 1).clip(0)
    nearest: np.ndarray = np.where(wanted - held[left] <= held[right] - wanted, left, right)
    off = ~(np.abs(held[nearest] - wanted) <= tolerance)
    if off.any():
        first = int(off.argmax())
        raise ValueError(
            f"{path} has no frame at {wanted[first]:.4f} s: nearest is {held[nearest[first]]:.4f} s, of {len(held)} "
            f"frames from {held[0]:.4f} to {held[-1]:.4f} s"
        )
    return nearest


def probe_video(path: Path) -> VideoFacts:
    """Read the head of a video file, and see that the file is as long as that says.

    Raises:
        FileNotFoundError: The path names no file.
        ValueError: The file is no video, or cut off.
    """
    return _probed(path, _written(path))


@lru_cache(maxsize=_MAX_OPEN)
def _probed(path: Path, written: int) -> VideoFacts:
    import av

    with _blaming(path), av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = container.streams.video[0]
        times = _even_times(container, path)
        if times is not None:
            return _facts(stream, times)
        # In microseconds; sound beside it may last longer than the picture.
        announced = (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0
    # A container without an index, such as WebM, or of frames at uneven times.
    video = VideoFile(path)
    video.close()
    facts, end = video.facts, float(video.facts.times[-1])
    if announced > end + max(0.5, 2 / facts.fps if facts.fps else 0):
        raise ValueError(f"{path} is cut off: it announces {announced:g} s, and its frames end at {end:g} s")
    return facts


def _facts(stream: Any, times: np.ndarray) -> VideoFacts:
    return VideoFacts(times, (stream.height, stream.width), float(stream.average_rate or 0))


def _even_times(container: Any, path: Path) -> np.ndarray | None:
    """Compute times from the index and the last group of frames; None where they are uneven or there is no index.

    Raises:
        ValueError: The file is shorter than its index says.
    """
    stream = container.streams.video[0]
    entries = list(stream.index_entries)
    if not stream.frames or len(entries) != stream.frames:
        return None
    end = max(entry.pos + entry.size for entry in (entries[0], entries[-1]))
    if end > path.stat().st_size:
        raise ValueError(f"{path} is cut off: it announces {end} bytes and has {path.stat().st_size}")
    stamps = np.array([entry.timestamp for entry in entries])
    even = np.linspace(stamps[0], stamps[-1], len(stamps))
    allowed = _UNEVEN * (even[-1] - even[0]) / len(even)
    uneven = np.abs(stamps - even).max() > allowed
    if uneven or stream.start_time is None or any(entry.is_discard for entry in entries):
        return None
    # An index has times of decoding, which lag behind those of showing: what they have not reached yet is read.
    container.seek(entries[-1].timestamp, stream=stream, backward=True)
    shown = even - even[0] + stream.start_time
    last = max((packet.pts for packet in container.demux(stream) if packet.pts is not None), default=np.inf)
    times: np.ndarray = shown * float(stream.time_base)
    return times if abs(last - shown[-1]) <= allowed else None


# Open files that nobody reads, by path, time of writing and process, the one used last at the end. Each step on a
# dict is whole, whatever other threads do; a lock could be held by a thread that a forked process does not have.
_idle_videos: dict[tuple[str, int, int], VideoFile] = {}


@contextmanager
def open_video(path: Path) -> Iterator[VideoFile]:
    """Lend a video file to one reader: one that this process has open already, where nobody else is reading it."""
    # A forked process must not read through the file handles of the one it came from.
    key = str(path), _written(path), os.getpid()
    video = _idle_videos.pop(key, None) or VideoFile(path)
    try:
        yield video
    finally:
        if _idle_videos.setdefault(key, video) is not video:
            video.close()
        for oldest in list(_idle_videos)[:-_MAX_OPEN]:
            if evicted := _idle_videos.pop(oldest, None):
                evicted.close()


def _written(path: Path) -> int:
    """Time at which a file was written, so that nothing is remembered of one that was replaced."""
    with _blaming(path):
        return path.stat().st_mtime_ns


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Name the file in what FFmpeg raises, which are errors of many kinds."""
    import av

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no video at {path}") from error
    except av.FFmpegError as error:
        raise ValueError(f"{path} cannot be read as a video ({error}): it is cut off or broken") from error
