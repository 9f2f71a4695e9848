"""Reader of folders of videos, or of folders of pictures, with actions and captions beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lightning_action.batch import to_bytes
from lightning_action.recordings.faults import Faults, OnFault
from lightning_action.recordings.image_file import read_image
from lightning_action.recordings.local_folder import LocalFolder
from lightning_action.recordings.recording import Episode, Frames, Recording
from lightning_action.recordings.tables import TABLES, Table, read_records, read_table
from lightning_action.recordings.video_file import open_video, probe_video

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi")
# Seconds after which work is long enough for a progress bar.
_DELAY = 2.0
# Part of a frame's time by which a frame may be early or late.
_UNEVEN = 0.5
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Entry:
    """One video of a folder.

    Args:
        video: Video file, or folder of pictures, relative to the folder.
        actions: File of action rows; None for none.
        prompt: Description of what the video shows, if it is known.
        caption: File that holds the description; None for none.
    """

    video: str
    actions: str | None
    prompt: str
    caption: str | None = None


def file_frames(path: Path, indices: list[int]) -> np.ndarray:
    """Decode frames of a whole video file, `[len(indices), H, W, 3]`, uint8 RGB."""
    with open_video(path) as video:
        return video.frames(indices)


def picture_frames(paths: Sequence[Path], indices: list[int]) -> np.ndarray:
    """Decode frames that are picture files, all of one size, `[len(indices), H, W, 3]`, uint8 RGB."""
    _, height, width = read_image(paths[0], None).shape
    return np.stack([to_bytes(read_image(paths[i], (height, width)).permute(1, 2, 0)).numpy() for i in indices])


def read_video_folder(
    folder: LocalFolder, fps: float | None = None, manifest: str | None = None, bad_episodes: OnFault = "refuse"
) -> Recording:
    """Read a folder of videos; frames are decoded later.

    A video is a file, or a folder of pictures in the order of the numbers in their names. Beside it lie its action rows
    under the same name (`.npz`, `.npy`, `.json`, `.csv`, `.parquet`; a row for each frame, or for each but the last)
    and its caption (`.txt`). Where names do not say which belongs to which, a manifest does.

    Args:
        folder: Folder of the videos.
        fps: Number of frames of a second of picture folders; videos say their own.
        manifest: Table in the folder (`.csv`, `.json` or `.jsonl`) with a column `video` and, for those that have them,
            `actions` and `prompt`; None goes by the names.
        bad_episodes: Way to deal with broken videos, `refuse` or `skip`.

    Raises:
        FileNotFoundError: The folder or the manifest is not there.
        ValueError: The folder has no video, one is broken, or they have different frame rates or columns.
    """
    entries = list(_by_name(folder) if manifest is None else _by_manifest(folder, manifest))
    if not entries:
        raise ValueError(
            f"{folder.address} holds no videos ({', '.join(VIDEOS)}) and no folders of pictures ({', '.join(PICTURES)})"
        )
    faults = Faults(bad_episodes)
    found: list[Episode] = []
    columns: list[str] | None = None
    classes, rate = True, fps
    for index, entry in enumerate(tqdm(entries, "reading videos", unit="video", delay=_DELAY, leave=False)):
        with faults.of(f"{folder.address}, {entry.video}"):
            frames, count, size, own_fps = _frames_of(folder, entry.video, fps)
            table = None if entry.actions is None else _rows_of(folder, entry.actions, count)
            if rate is not None and abs(own_fps - rate) > 0.01 * rate:
                raise ValueError(f"it has {own_fps:g} frames a second, expected {rate:g} as in the videos before it")
            rate = own_fps if rate is None else rate
            if table is not None:
                names = table.names or [f"action_{column}" for column in range(table.rows.shape[1])]
                if columns is not None and names != columns:
                    raise ValueError(f"{entry.actions} has the columns {names}, expected {columns} as before it")
                columns, classes = names, classes and table.is_whole
            prompt = _caption(folder, entry)
            rows = None if table is None else table.rows
            found.append(Episode(index, entry.video, prompt, (frames,), count, (size,), rows))
    if not found or rate is None:
        raise ValueError(f"{folder.address} has no videos to read: {faults.summary(len(entries))}")
    remarks = [faults.summary(len(entries))] if faults.found else []
    tables = {name for name in _visible(folder) if name.lower().endswith(TABLES)}
    unread = sorted(tables - {entry.actions for entry in entries} - {manifest})
    if unread:
        remarks.append(f"not read, for they belong to no video: {', '.join(unread[:5])}{', ...' * (len(unread) > 5)}")
    return Recording(rate, columns or [], classes and columns is not None, found, "; ".join(remarks))


def _visible(folder: LocalFolder) -> list[str]:
    """List files, without those that systems hide beside others."""
    found = folder.list("**/*")
    return [name for name in found if not any(part[0] == "." or part == "__MACOSX" for part in name.split("/"))]


def _by_name(folder: LocalFolder) -> Iterator[Entry]:
    """Find videos and folders of pictures, in the order of their names, and what has the same name.

    Raises:
        ValueError: A video has several tables.
    """
    files = _visible(folder)
    videos = {name: name.rpartition(".")[0] for name in files if name.lower().endswith(VIDEOS)}
    parents = {name.rpartition("/")[0] for name in files if name.lower().endswith(PICTURES)} - {""}
    videos |= {parent: parent for parent in parents}
    beside: dict[str, list[str]] = {}
    for name in files:
        if name.lower().endswith((*TABLES, ".txt")) and name.rpartition("/")[0] not in parents:
            beside.setdefault(name.rpartition(".")[0], []).append(name)
    for video, stem in sorted(videos.items()):
        own = beside.get(stem, [])
        tables = [name for name in own if not name.lower().endswith(".txt")]
        if len(tables) > 1:
            raise ValueError(f"{folder.address} has several actions for {video}: {', '.join(tables)}; keep one of them")
        caption = next((name for name in own if name.lower().endswith(".txt")), None)
        yield Entry(video, tables[0] if tables else None, "", caption)


def _by_manifest(folder: LocalFolder, manifest: str) -> Iterator[Entry]:
    seen: set[str] = set()
    for number, record in enumerate(read_records(folder.path(manifest)), 1):
        unknown = sorted(set(record) - {"video", "actions", "prompt"})
        if not record.get("video") or unknown:
            raise ValueError(
                f"{manifest}, entry {number}: expected a video, and perhaps actions and prompt, got {dict(record)}"
            )
        if record["video"] in seen:
            raise ValueError(f"{manifest}, entry {number}: {record['video']} is there already")
        seen.add(record["video"])
        yield Entry(record["video"], record.get("actions") or None, record.get("prompt") or "")


def _caption(folder: LocalFolder, entry: Entry) -> str:
    if entry.caption is None:
        return entry.prompt
    try:
        return folder.path(entry.caption).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{entry.caption} is not text in UTF-8 ({error})") from error


def _frames_of(folder: LocalFolder, video: str, fps: float | None) -> tuple[Frames, int, tuple[int, int], float]:
    """Return frames, their number, height and width, and frame rate."""
    if video.lower().endswith(VIDEOS):
        path = folder.path(video)
        facts = probe_video(path)
        even = facts.times[0] + np.arange(facts.num_frames) / facts.fps
        late = np.abs(facts.times - even) > _UNEVEN / facts.fps
        if late.any():
            frame = int(late.argmax())
            raise ValueError(
                f"its frames are not at even times: frame {frame} is at {facts.times[frame]:g} s, not {even[frame]:g} "
                f"s at {facts.fps:g} frames a second; convert it to a constant rate"
            )
        return partial(file_frames, path), facts.num_frames, facts.frame_size, facts.fps
    names = [name for name in folder.list(f"{video}/*") if name.lower().endswith(PICTURES)]
    if not names:
        raise ValueError(f"it is no video ({', '.join(VIDEOS)}) and no folder of pictures ({', '.join(PICTURES)})")
    if fps is None:
        raise ValueError("it is a folder of pictures, which do not say how many make a second: give recorded_fps")
    frames = partial(picture_frames, [folder.path(name) for name in sorted(names, key=numbers_in)])
    height, width = frames([0]).shape[1:3]
    return frames, len(names), (height, width), fps


def _rows_of(folder: LocalFolder, actions: str, num_frames: int) -> Table:
    """Read a row for each frame. No window looks at the row behind the last frame, so it may be missing."""
    table = read_table(folder.path(actions))
    if len(table.rows) not in (num_frames, num_frames - 1):
        raise ValueError(
            f"{actions} has {len(table.rows)} rows for {num_frames} frames: expected a row for each, or for all but "
            "the last"
        )
    missing = num_frames - len(table.rows)
    return replace(table, rows=np.concatenate([table.rows, table.rows[-1:].repeat(missing, axis=0)]))


def numbers_in(name: str) -> list[tuple[int, str]]:
    """Order `frame_10` behind `frame_9`."""
    return [(int(part) if part.isdigit() else -1, part) for part in re.split(r"(\d+)", name)]
