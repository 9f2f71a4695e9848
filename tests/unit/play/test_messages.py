"""What a page may say, and how blocks are packed."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from benchmarks._live_player import unpack_block
from lightning_action.play.messages import (
    Hold,
    Message,
    Pause,
    Prompt,
    RefusedMessageError,
    Reset,
    Shown,
    Step,
    pack_block,
    read_message,
)

# A space that does not break, and a letter of three code points.
LETTERS = "a\u00a0b \U0001f469\u200d\U0001f52c"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"type": "hold", "held": [[2, 0.5], [0, 1]], "change": 7}', Hold(((2, 0.5), (0, 1.0)), 7)),
        ('{"type": "hold", "held": [], "change": 0}', Hold((), 0)),
        ('{"type": "reset", "seed": 5, "prompt": null}', Reset(5, None)),
        ('{"type": "reset", "seed": 0, "prompt": "a disc"}', Reset(0, "a disc")),
        ('{"type": "prompt", "text": "дом"}', Prompt("дом")),
        (json.dumps({"type": "prompt", "text": LETTERS}), Prompt(LETTERS)),
        ('{"type": "pause", "on": true}', Pause(True)),
        ('{"type": "step"}', Step()),
        ('{"type": "shown", "serial": 3, "key_ms": null}', Shown(3, None)),
        ('{"type": "shown", "serial": 3, "key_ms": 62.5}', Shown(3, 0.0625)),
    ],
)
def test_messages_are_read(text: str, expected: Message) -> None:
    assert read_message(text, 3) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a message is JSON"),
        ("[" * 4000, "a message is JSON"),
        ('"hold"', "a message is an object with a type"),
        ("{}", "a type is one of hold, reset, prompt, pause, step, shown"),
        ('{"type": ["hold"]}', "a type is one of"),
        ('{"type": "run"}', "a type is one of"),
        ('{"type": "step", "much": 1}', "step has nothing beside its type"),
        ('{"type": "hold", "held": []}', "hold has change, held beside its type"),
        ('{"type": "hold", "held": {}, "change": 1}', "held is a list of at most 32 pairs"),
        ('{"type": "hold", "held": [[1]], "change": 1}', "held has pairs"),
        ('{"type": "hold", "held": [[3, 1]], "change": 1}', "the number of a control is a whole number from 0 to 2"),
        ('{"type": "hold", "held": [[true, 1]], "change": 1}', "the number of a control is a whole number"),
        ('{"type": "hold", "held": [[1, 1.5]], "change": 1}', "how far is a number from 0 to 1"),
        ('{"type": "hold", "held": [[1, NaN]], "change": 1}', "NaN is no number"),
        ('{"type": "hold", "held": [[1, 1e999]], "change": 1}', "how far is a number from 0 to 1"),
        ('{"type": "hold", "held": [], "change": 1.5}', "change is a whole number"),
        ('{"type": "reset", "seed": -1, "prompt": null}', "seed is a whole number from 0 to 2147483647"),
        ('{"type": "reset", "seed": 1, "prompt": 2}', "a prompt is a line of at most 500 letters"),
        ('{"type": "prompt", "text": "a\\nb"}', "a prompt is a line"),
        ('{"type": "prompt", "text": "\\ud83d"}', "without control characters"),
        ('{"type": "prompt", "text": "a\u2028b"}', "without control characters"),
        (json.dumps({"type": "prompt", "text": "a" * 501}), "a prompt is a line of at most 500 letters"),
        ('{"type": "pause", "on": 1}', "on is true or false"),
        ('{"type": "shown", "serial": 1, "key_ms": -1}', "key_ms is a number from 0 to 60000"),
        ("x" * 4097, "a message has at most 4096 letters, this one has 4097"),
    ],
)
def test_others_are_refused(text: str, message: str) -> None:
    with pytest.raises(RefusedMessageError, match=message):
        read_message(text, 3)


def test_anything_is_read_or_refused() -> None:
    """Nothing else is raised, whatever comes."""
    source = random.Random(4)
    values: list[Any] = [None, True, -1, 0, 2, 0.5, 1e300, "", "a", "\ud800", [], [[0, 1]], {}, [[]], 2**70]
    kinds = ["hold", "reset", "prompt", "pause", "step", "shown", "other"]
    names = ["held", "change", "seed", "prompt", "text", "on", "serial", "key_ms"]
    read = 0
    for _ in range(3000):
        given = {"type": source.choice(kinds)} | {
            name: source.choice(values) for name in source.sample(names, source.randrange(4))
        }
        text = json.dumps(given)
        if source.random() < 0.3:
            text = text[: source.randrange(len(text))]
        try:
            read_message(text, 2)
            read += 1
        except RefusedMessageError:
            pass
    assert 50 < read < 1500


def test_a_block_is_unpacked_as_it_was_packed() -> None:
    header = {"serial": 300, "prompt": "ü", "distance": None}
    assert unpack_block(pack_block(header, b"\x00picture")) == (header, b"\x00picture")
