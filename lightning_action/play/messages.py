"""Messages between a page and the server: the page in JSON, the server in JSON and in blocks of pictures."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from unicodedata import category

MAX_MESSAGE, MAX_PROMPT, MAX_HELD = 4096, 500, 32
MAX_SEED = 2**31 - 1
_MAX_NUMBER = 2**53
_MAX_MILLISECONDS = 60_000
# Categories of Unicode: control characters, halves of a letter, and ends of lines and paragraphs.
_NO_LETTERS = {"Cc", "Cs", "Zl", "Zp"}


class RefusedMessageError(ValueError):
    """A message is none of those that a page sends."""


@dataclass(frozen=True)
class Hold:
    """Controls held from now on, by number and how far, and the number that the page gave this change."""

    held: tuple[tuple[int, float], ...]
    change: int


@dataclass(frozen=True)
class Reset:
    """Begin where a seed says; a prompt of None is the world's own."""

    seed: int
    prompt: str | None


@dataclass(frozen=True)
class Prompt:
    """Prompt from the next block on."""

    text: str


@dataclass(frozen=True)
class Pause:
    """Stand still, or go on."""

    on: bool


@dataclass(frozen=True)
class Step:
    """Make one block while the world stands still."""


@dataclass(frozen=True)
class Shown:
    """The first frame of a block is on the screen; `key_seconds` after the change that it answers, if it does."""

    serial: int
    key_seconds: float | None


Message = Hold | Reset | Prompt | Pause | Step | Shown


def read_message(text: str, num_controls: int) -> Message:
    """Read what a page has sent.

    Args:
        text: JSON, an object with `type` and what belongs to it, and nothing else.
        num_controls: Number of controls that can be held.

    Raises:
        RefusedMessageError: The text is no message of a page; the error says what was expected.
    """
    if len(text) > MAX_MESSAGE:
        raise RefusedMessageError(f"a message has at most {MAX_MESSAGE} letters, this one has {len(text)}")
    try:
        given = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise RefusedMessageError(f"a message is JSON: {error}") from error
    if not isinstance(given, dict):
        raise RefusedMessageError("a message is an object with a type")
    kind = given.pop("type", None)
    if not isinstance(kind, str) or kind not in _READERS:
        raise RefusedMessageError(f"a type is one of {', '.join(_READERS)}")
    names, read = _READERS[kind]
    if given.keys() != names:
        raise RefusedMessageError(f"{kind} has {', '.join(sorted(names)) or 'nothing'} beside its type")
    return read(given, num_controls)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _hold(given: Mapping[str, Any], num_controls: int) -> Hold:
    held = given["held"]
    if not isinstance(held, list) or len(held) > MAX_HELD:
        raise RefusedMessageError(f"held is a list of at most {MAX_HELD} pairs")
    pairs: dict[int, float] = {}
    for pair in held:
        if not isinstance(pair, list) or len(pair) != 2:
            raise RefusedMessageError("held has pairs of the number of a control, and how far it is held")
        pairs[_whole("the number of a control", pair[0], num_controls - 1)] = _number("how far", pair[1], 1)
    return Hold(tuple(pairs.items()), _whole("change", given["change"], _MAX_NUMBER))


def _reset(given: Mapping[str, Any], _: int) -> Reset:
    prompt = given["prompt"]
    return Reset(_whole("seed", given["seed"], MAX_SEED), None if prompt is None else _text(prompt))


def _pause(given: Mapping[str, Any], _: int) -> Pause:
    if not isinstance(given["on"], bool):
        raise RefusedMessageError("on is true or false")
    return Pause(given["on"])


def _shown(given: Mapping[str, Any], _: int) -> Shown:
    milliseconds = given["key_ms"]
    seconds = None if milliseconds is None else _number("key_ms", milliseconds, _MAX_MILLISECONDS) / 1000
    return Shown(_whole("serial", given["serial"], _MAX_NUMBER), seconds)


def _whole(name: str, value: Any, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= high:
        raise RefusedMessageError(f"{name} is a whole number from 0 to {high}")
    return value


def _number(name: str, value: Any, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        raise RefusedMessageError(f"{name} is a number from 0 to {high}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_PROMPT or any(category(each) in _NO_LETTERS for each in value):
        raise RefusedMessageError(f"a prompt is a line of at most {MAX_PROMPT} letters, without control characters")
    return value


_READERS: dict[str, tuple[set[str], Callable[[Mapping[str, Any], int], Message]]] = {
    "hold": ({"held", "change"}, _hold),
    "reset": ({"seed", "prompt"}, _reset),
    "prompt": ({"text"}, lambda given, _: Prompt(_text(given["text"]))),
    "pause": ({"on"}, _pause),
    "step": (set(), lambda given, _: Step()),
    "shown": ({"serial", "key_ms"}, _shown),
}


def pack_block(header: Mapping[str, Any], picture: bytes) -> bytes:
    """Put a block into one binary message: the length of the header (4 bytes, big endian), the header, the picture."""
    head = json.dumps(header).encode()
    return struct.pack(">I", len(head)) + head + picture
