"""A page of a live server in a headless browser."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = "no chromium" if BROWSER is None else "no playwright" if find_spec("playwright") is None else None


@contextmanager
def started_browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Of a test, in a container, as root: the sandbox has no place there.
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


class LivePage:
    """A tab, with what its console said."""

    def __init__(self, browser: Browser, address: str, **options: Any) -> None:
        self.page: Page = browser.new_page(**options)
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.goto(address)

    def wait(self, condition: Callable[[], bool], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"it does not come true; the console says {self.said}"
            self.page.wait_for_timeout(10)

    @property
    def block(self) -> int:
        return int(self.page.evaluate("Number(document.body.dataset.block ?? -1)"))

    def wait_for_blocks(self, count: int = 1) -> None:
        """Until so many more are drawn, whatever comes between."""
        before = self.block
        self.wait(lambda: self.block >= before + count)

    def frame(self, canvas: str = "world") -> np.ndarray:
        """What is drawn on a canvas, uint8 `[H, W, 3]`."""
        script = """(name) => {
            const canvas = document.getElementById(name);
            const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d", {willReadFrequently: true});
            copy.drawImage(canvas, 0, 0);
            return [canvas.height, canvas.width, ...copy.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
        height, width, *values = self.page.evaluate(script, canvas)
        return np.array(values, np.uint8).reshape(height, width, 4)[..., :3]

    def screenshot(self) -> np.ndarray:
        return np.asarray(Image.open(BytesIO(self.page.screenshot())).convert("RGB"))

    def close(self) -> None:
        self.page.close()
