"""Keys, pad, mouse, fingers and gamepads on the page in a headless browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from lightning_action.play.action_map import ActionMap, Control, default_map
from lightning_action.play.server import Playground
from tests.support.browser import LivePage
from tests.support.live_server import serving, wait_until
from tests.support.played_page import held, paused_step, place, played
from tests.support.simulated_session import simulated_stage

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SPEED = 0.5
"""Pixels a frame of a key: half of `max_speed`, which is 1."""


FINGER = """([name, pointerId, x]) => {
    const canvas = document.getElementById("world"), box = canvas.getBoundingClientRect();
    canvas.setPointerCapture = () => {}; // of a finger that is none
    const place = {clientX: box.x + x * box.width, clientY: box.y + box.height / 2};
    canvas.dispatchEvent(new PointerEvent(name, {pointerId, ...place, button: 0, buttons: 1}));
}"""


GAMEPAD = """
window.fake = {axes: [0, 0], buttons: [{pressed: false}]};
navigator.getGamepads = () => [null, window.fake];
"""


def test_holding_right_moves_the_sprite_by_what_the_simulator_says(browser: Browser) -> None:
    with played(browser) as (live, _):
        live.page.keyboard.press("Space")
        live.page.wait_for_timeout(350)
        live.page.keyboard.down("ArrowRight")
        before = place(live.frame())
        for number in range(1, 4):
            paused_step(live)
            x, y = place(live.frame())
            assert x == pytest.approx(before[0] + 4 * SPEED * number, abs=0.1)
            assert y == pytest.approx(before[1], abs=0.1)
            assert np.array_equal(live.frame("truth"), live.frame())
        live.page.keyboard.up("ArrowRight")
        paused_step(live)
        assert place(live.frame())[0] == pytest.approx(before[0] + 12 * SPEED, abs=0.1)
        figures = live.page.inner_text("#figures")
        assert "px from the simulator" in figures and "key to pixels" not in figures  # it stood still meanwhile


def test_two_keys_at_once_and_keys_of_a_text(browser: Browser) -> None:
    with played(browser) as (live, _):
        live.page.keyboard.press("Space")
        live.page.wait_for_timeout(350)
        before = place(live.frame())
        live.page.keyboard.down("d")
        live.page.keyboard.down("s")
        paused_step(live)
        x, y = place(live.frame())
        assert (x - before[0], y - before[1]) == (pytest.approx(2, abs=0.1), pytest.approx(2, abs=0.1))
        live.page.keyboard.up("d")
        live.page.keyboard.up("s")
        live.page.fill("#prompt", "")
        live.page.focus("#prompt")
        live.page.keyboard.down("d")
        paused_step(live)
        assert place(live.frame()) == (pytest.approx(x, abs=0.1), pytest.approx(y, abs=0.1))


def test_all_is_let_go_with_the_focus(browser: Browser) -> None:
    with played(browser) as (live, running):
        live.page.keyboard.down("ArrowLeft")
        wait_until(lambda: len(held(running)) == 1)
        live.page.evaluate("window.dispatchEvent(new Event('blur'))")
        wait_until(lambda: held(running) == ())
        # The browser repeats a key that is held: nobody took hold of it again.
        live.page.keyboard.down("ArrowLeft")
        live.page.wait_for_timeout(100)
        assert held(running) == ()


def test_keys_that_were_let_go_under_command_are_not_held(browser: Browser) -> None:
    with played(browser) as (live, running):
        live.page.keyboard.down("d")
        wait_until(lambda: len(held(running)) == 1)
        live.page.keyboard.press("Meta")
        wait_until(lambda: held(running) == ())


def test_the_pad_the_mouse_and_a_finger(browser: Browser) -> None:
    with played(browser, has_touch=True, viewport={"width": 390, "height": 844}) as (live, running):
        right = live.page.locator("#pad button").first
        box = right.bounding_box()
        assert box is not None and box["width"] >= 44 and box["height"] >= 44
        live.page.mouse.move(box["x"] + 20, box["y"] + 20)
        live.page.mouse.down()
        wait_until(lambda: held(running) == ((0, 1.0),))
        assert "held" in (right.get_attribute("class") or "")
        live.page.mouse.move(5, 5)
        live.page.mouse.up()
        wait_until(lambda: held(running) == ())
        canvas = live.page.locator("#world").bounding_box()
        assert canvas is not None
        middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
        live.page.mouse.move(*middle)
        live.page.mouse.down()
        live.page.mouse.move(middle[0] + 0.15 * canvas["width"], middle[1])
        wait_until(lambda: [round(share, 2) for _, share in held(running)] == [0.5])
        live.page.mouse.up()
        wait_until(lambda: held(running) == ())
        live.page.touchscreen.tap(box["x"] + 20, box["y"] + 20)
        live.wait_for_blocks()
        assert held(running) == ()
        overflow = live.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert overflow <= 0 and live.page.evaluate("document.documentElement.scrollHeight") <= 844


@pytest.mark.parametrize("width", [360, 641, 1240])
def test_buttons_stay_where_they_are_when_figures_come(width: int, browser: Browser) -> None:
    with played(browser, viewport={"width": width, "height": 844}) as (live, _):
        button = live.page.locator("#pad button").first
        assert live.page.locator("#fps").is_hidden()
        before = button.bounding_box()
        for figure in ("fps", "latency", "distance"):
            live.page.locator(f"#{figure}").wait_for()
        assert button.bounding_box() == before


def test_the_first_finger_and_the_main_button_pull(browser: Browser) -> None:
    with played(browser) as (live, running):
        canvas = live.page.locator("#world").bounding_box()
        assert canvas is not None
        middle = canvas["x"] + canvas["width"] / 2, canvas["y"] + canvas["height"] / 2
        live.page.mouse.move(*middle)
        live.page.mouse.down(button="right")
        live.page.mouse.move(middle[0] + 0.15 * canvas["width"], middle[1])
        live.page.wait_for_timeout(100)
        assert held(running) == ()
        live.page.mouse.up(button="right")
        live.page.mouse.move(*middle)
        live.page.mouse.down()
        live.page.mouse.move(middle[0] + 0.15 * canvas["width"], middle[1])
        wait_until(lambda: len(held(running)) == 1)
        # A pull ends with the focus: moving on does not take hold again.
        live.page.evaluate("window.dispatchEvent(new Event('blur'))")
        wait_until(lambda: held(running) == ())
        live.page.mouse.move(middle[0] + 0.25 * canvas["width"], middle[1])
        live.page.wait_for_timeout(100)
        assert held(running) == ()
        live.page.mouse.up()
        # The second finger changes nothing of the first one's pull, neither where it comes nor where it goes.
        for name, finger, x in (("down", 8, 0.5), ("move", 8, 0.65), ("down", 9, 0.5), ("move", 9, 0.1)):
            live.page.evaluate(FINGER, [f"pointer{name}", finger, x])
        live.page.evaluate(FINGER, ["lostpointercapture", 9, 0.1])
        wait_until(lambda: [round(share, 2) for _, share in held(running)] == [0.5])
        live.page.evaluate(FINGER, ["lostpointercapture", 8, 0.65])
        wait_until(lambda: held(running) == ())


def test_space_on_a_button_of_the_pad_is_let_go_with_the_focus(browser: Browser) -> None:
    with played(browser) as (live, running):
        right, left = (live.page.locator("#pad button").nth(number) for number in (0, 1))
        right.focus()
        live.page.keyboard.down("Space")
        wait_until(lambda: held(running) == ((0, 1.0),))
        live.page.keyboard.press("Tab")
        wait_until(lambda: held(running) == ())
        assert left.evaluate("button => button === document.activeElement")
        # The mouse holds a button whatever has the focus.
        live.page.keyboard.up("Space")
        box = right.bounding_box()
        assert box is not None
        live.page.mouse.move(box["x"] + 20, box["y"] + 20)
        live.page.mouse.down()
        left.focus()
        live.page.keyboard.down("Space")
        wait_until(lambda: held(running) == ((0, 1.0), (2, 1.0)))
        live.page.keyboard.up("Space")
        live.page.mouse.up()
        wait_until(lambda: held(running) == ())


def test_a_gamepad(browser: Browser) -> None:
    stage = simulated_stage()
    with serving(stage) as running:
        controls = [*default_map(stage.schema).controls, Control("jump", {"move_1": -1.0}, ["button:0"])]
        running.server.playground = Playground(stage, ActionMap(stage.schema, controls))
        live = LivePage(browser, running.address)
        live.wait(lambda: live.block >= 1)
        live.page.evaluate(GAMEPAD)
        live.page.evaluate("window.dispatchEvent(new Event('gamepadconnected'))")
        live.page.evaluate("window.fake.axes = [-0.6, 0.1]")
        live.wait(lambda: [(number, round(share, 2)) for number, share in held(running)] == [(3, 0.6)])
        live.page.evaluate("window.fake.axes = [0, 0]; window.fake.buttons = [{pressed: true}]")
        live.wait(lambda: held(running) == ((8, 1.0),))
        live.page.evaluate("navigator.getGamepads = () => []")
        live.wait(lambda: held(running) == ())
        live.close()
        assert live.said == []


def test_a_gamepad_that_is_there_already_plays_on_after_connecting_again(browser: Browser) -> None:
    with played(browser) as (live, running):
        (player,) = running.server._players
        player._stepping.stop()
        live.wait(lambda: live.page.locator("#again").is_visible())
        live.page.evaluate(GAMEPAD)
        live.page.evaluate("window.fake.axes = [0.75, 0]")
        live.page.click("#again")
        live.wait(lambda: len(running.server._players) == 1 and held(running) == ((1, 0.75),))
