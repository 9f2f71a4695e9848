"""A page in a headless browser that plays the simulator, which does exactly what actions say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lightning_action.batch import from_unit_range
from tests.support.browser import LivePage
from tests.support.live_server import Running, serving, wait_until
from tests.support.simulated_session import data, simulated_stage

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@contextmanager
def played(browser: Browser, stage: Any = None, **options: Any) -> Iterator[tuple[LivePage, Running]]:
    """A page that shows a world, and said nothing wrong at the end."""
    settings = {name: options.pop(name) for name in ("token", "max_sessions") if name in options}
    with serving(stage or simulated_stage(), **settings) as running:
        query = f"/?token={settings['token']}" if "token" in settings else ""
        live = LivePage(browser, running.address + query, **options)
        live.wait(lambda: live.block >= 1)
        yield live, running
        live.close()
        wait_until(lambda: running.server.num_sessions == 0)
        assert live.said == []


def place(frame: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Where the sprite is on a frame, in pixels."""
    world = data().world
    start = world.start(data().dataset("test").seeds([seed]))
    video = from_unit_range(torch.from_numpy(frame.copy()).permute(2, 0, 1)[None, None].float() / 255)
    places, found = world.locate(start, video)
    assert bool(found)
    x, y = places[0, 0].tolist()
    return x, y


def paused_step(live: LivePage) -> None:
    """One block, of which the last frame stays."""
    before = live.block
    live.page.click("#step")
    live.wait(lambda: live.block > before)
    live.page.wait_for_timeout(350)


def held(running: Running) -> tuple[tuple[int, float], ...]:
    (player,) = running.server._players
    return player._stepping.held
