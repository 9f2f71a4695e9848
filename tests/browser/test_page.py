"""The page in a headless browser, played on the simulator, which does exactly what actions say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.batch import from_unit_range
from lightning_action.play.action_map import ActionMap, Control, default_map
from lightning_action.play.live_world import LiveWorld
from lightning_action.play.server import Playground
from tests.support.browser import LivePage, started_browser
from tests.support.live_server import Running, serving, wait_until
from tests.support.simulated_session import SimulatedSession, data, simulated_stage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

SPEED = 0.5
"""Pixels a frame of a key: half of `max_speed`, which is 1."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


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


def held(running: Running) -> tuple[tuple[int, float], ...]:
    (player,) = running.server._players
    return player._stepping.held


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


GAMEPAD = """
window.fake = {axes: [0, 0], buttons: [{pressed: false}]};
navigator.getGamepads = () => [null, window.fake];
"""


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


def test_reset_seed_prompt_and_pause(browser: Browser) -> None:
    with played(browser) as (live, running):
        live.page.click("#pause")
        live.page.wait_for_timeout(400)
        stopped = live.block
        live.page.wait_for_timeout(400)
        assert live.block == stopped and live.page.inner_text("#pause") == "Go on"
        live.page.fill("#seed", "5")
        live.page.click("#reset")
        live.wait(lambda: live.block == 0)
        expected = LiveWorld(simulated_stage())
        assert np.array_equal(live.frame(), expected.reset(5).frames[0])
        assert live.page.input_value("#prompt") == expected.text
        live.page.fill("#prompt", "somewhere dark")
        live.page.keyboard.press("Enter")
        paused_step(live)
        block = expected.step(default_map(expected.stage.schema).row())
        assert np.abs(live.frame().astype(int) - block.frames[-1] * 0.5).max() <= 1
        live.page.click("#pause")
        live.wait_for_blocks(2)
        # A reset keeps a prompt that somebody has set; another world has its own.
        live.page.click("#reset")
        live.wait(lambda: live.block <= 1)
        assert live.page.input_value("#prompt") == "somewhere dark"
        live.page.click("#another")
        live.wait(lambda: live.page.input_value("#prompt") != "somewhere dark")
        assert live.page.input_value("#seed") != "5"
        live.page.fill("#seed", "-3")
        live.page.click("#reset")
        live.wait(lambda: live.page.inner_text("#note") == "a seed is a whole number from 0 on")


def test_what_is_typed_is_kept_until_it_is_sent_with_the_button(browser: Browser) -> None:
    with played(browser) as (live, _):
        live.page.fill("#prompt", "somewhere dark")
        button = live.page.locator("#ask button").bounding_box()
        assert button is not None
        live.page.mouse.move(button["x"] + 10, button["y"] + 10)
        live.page.mouse.down()
        live.wait_for_blocks(2)
        live.page.mouse.up()
        live.wait_for_blocks(2)
        assert live.page.input_value("#prompt") == "somewhere dark"
        assert np.abs(live.frame()).max() < 140, "the prompt holds: the picture is half as bright"


def test_enter_in_the_seed_begins_that_world_and_gives_the_arrows_back(browser: Browser) -> None:
    with played(browser) as (live, running):
        live.page.click("#pause")
        live.page.fill("#seed", "5")
        live.page.keyboard.press("Enter")
        live.wait(lambda: live.block == 0)
        assert np.array_equal(live.frame(), LiveWorld(simulated_stage()).reset(5).frames[0])
        live.page.keyboard.down("ArrowRight")
        wait_until(lambda: len(held(running)) == 1)
        live.page.click("#pause")
        # What is typed counts with Enter or the button alone.
        live.page.fill("#seed", "6")
        live.page.click("#world")
        before = live.block
        live.wait_for_blocks(3)
        assert live.block > before and live.page.input_value("#seed") == "6"


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


def test_keys_that_were_let_go_under_command_are_not_held(browser: Browser) -> None:
    with played(browser) as (live, running):
        live.page.keyboard.down("d")
        wait_until(lambda: len(held(running)) == 1)
        live.page.keyboard.press("Meta")
        wait_until(lambda: held(running) == ())


def test_two_tabs_are_worlds_of_their_own_and_a_closed_one_is_freed(browser: Browser) -> None:
    with played(browser, max_sessions=2) as (one, running):
        other = LivePage(browser, running.address)
        other.wait(lambda: other.block >= 1)
        for live in (one, other):
            live.page.click("#pause")
            live.page.wait_for_timeout(350)
        before = place(other.frame())
        one.page.keyboard.down("ArrowRight")
        paused_step(one)
        one.page.keyboard.up("ArrowRight")
        paused_step(other)
        assert place(one.frame())[0] > before[0] + 1.5 and place(other.frame()) == pytest.approx(before, abs=0.1)
        assert running.server.num_sessions == 2
        third = LivePage(browser, running.address)
        third.wait(lambda: "all 2 worlds are being played" in third.page.inner_text("#doing"))
        other.close()
        wait_until(lambda: running.server.num_sessions == 1)
        third.page.click("#again")
        third.wait(lambda: third.block >= 1)
        third.close()
        assert other.said == third.said == []


def test_a_page_whose_server_is_gone_says_so(browser: Browser) -> None:
    with serving(simulated_stage()) as running:
        live = LivePage(browser, running.address)
        live.wait(lambda: live.block >= 1)
    live.wait(lambda: "the connection is lost" in live.page.inner_text("#doing"))
    assert live.page.locator("#again").is_visible()
    live.close()


def test_a_world_that_breaks_is_told(browser: Browser) -> None:
    class Breaking(SimulatedSession):
        def step_block(self, actions: Tensor) -> Tensor:
            raise RuntimeError("NaN")

    with serving(simulated_stage(Breaking)) as running:
        live = LivePage(browser, running.address)
        live.wait(lambda: "the world has stopped" in live.page.inner_text("#doing"))
        live.page.wait_for_timeout(200)
        assert live.page.locator("#curtain").is_visible() and live.page.locator("#again").is_visible()
        live.close()
        assert live.said == []


def test_loading_is_shown(browser: Browser) -> None:
    with serving(None) as running:
        running.server.progress.doing, running.server.progress.share = "loading the weights", 0.25
        live = LivePage(browser, running.address)
        live.wait(lambda: live.page.inner_text("#doing") == "loading the weights")
        assert live.page.evaluate("document.getElementById('progress').value") == 0.25
        stage = simulated_stage(title="a world of sprites")
        running.server.playground = Playground(stage, default_map(stage.schema))
        live.wait(lambda: live.block >= 0)
        assert live.page.title() == "a world of sprites" and not live.page.locator("#curtain").is_visible()
        live.close()
        assert live.said == []


def opened(page: Page, running: Running) -> str:
    """What becomes of a connection that a page tries, by itself, to the server."""
    script = """(address) => new Promise((done) => {
        const socket = new WebSocket(address);
        socket.onopen = () => { socket.close(); done("opened"); };
        socket.onerror = () => done("refused");
    })"""
    return str(page.evaluate(script, f"ws://127.0.0.1:{running.port}/live"))


def test_a_token_is_asked_for_once_and_leaves_the_address(browser: Browser) -> None:
    with played(browser, token="a-secret-of-mine") as (live, running):
        assert live.page.url == f"{running.address}/"
        for query in ("", "/?token=a-wrong-secret"):
            stranger = LivePage(browser, running.address + query)
            assert "Not for you" in stranger.page.inner_text("body")
            assert opened(stranger.page, running) == "refused" and running.server.num_sessions == 1
            stranger.close()
        # The same with the token, which the cookie has.
        assert opened(live.page, running) == "opened"


def test_a_page_of_elsewhere_gets_nothing(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    """A page of another server tries, whose policy of what it may load is out of the way: a stranger has his own."""
    with serving(simulated_stage()) as running, serving(simulated_stage()) as elsewhere:
        page = browser.new_page(bypass_csp=True)
        page.goto(elsewhere.address)
        assert opened(page, elsewhere) == "opened" and not caplog.records
        assert opened(page, running) == "refused" and running.server.num_sessions == 0
        assert [record.getMessage() for record in caplog.records] == ["refused /live from 127.0.0.1"]
        page.goto(running.address)
        assert opened(page, running) == "opened"
        page.close()


def test_figures_of_speed_are_shown(browser: Browser) -> None:
    with played(browser, simulated_stage(lambda: SimulatedSession(seconds=0.02))) as (live, _):
        for _ in range(3):
            live.page.keyboard.down("ArrowRight")
            live.page.wait_for_timeout(400)
            live.page.keyboard.up("ArrowRight")
            live.page.wait_for_timeout(400)
        live.wait(lambda: "key to pixels" in live.page.inner_text("#figures"))
        live.page.wait_for_timeout(3200)
        shown = live.page.inner_text("#figures")
        assert float(shown.split(" fps")[0]) > 12
        live.page.click("summary")
        parts = live.page.inner_text("#parts")
        assert all(name in parts for name in ("generate", "decode", "encode", "send and draw", "step to pixels"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_one_likes(browser: Browser, scheme: Any) -> None:
    with played(browser, color_scheme=scheme, viewport={"width": 1280, "height": 800}) as (live, _):
        corner = live.screenshot()[-1, 0]
        assert (corner.mean() > 200) if scheme == "light" else (corner.mean() < 60)


def test_many_classes_have_keys_and_buttons(browser: Browser) -> None:
    schema, start = ActionSchema([ActionPart("move", "discrete", 5)]), simulated_stage().start
    moves = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])

    class Discrete(SimulatedSession):
        def step_block(self, actions: Tensor) -> Tensor:
            return super().step_block(moves[actions[..., 0].long()])

    stage = simulated_stage(Discrete, schema=schema, start=lambda seed: replace(start(seed), truth=None))
    with played(browser, stage) as (live, running):
        assert live.page.locator("#pad button").count() == 4
        live.page.keyboard.down("2")
        wait_until(lambda: held(running) == ((1, 1.0),))
        before = place(live.frame())
        live.wait_for_blocks(2)
        assert place(live.frame())[0] < before[0] - 1
        live.page.keyboard.up("2")
        assert not live.page.locator("#beside").is_visible()


def test_a_page_that_was_busy_is_not_behind_afterwards(browser: Browser) -> None:
    session = SimulatedSession()
    with played(browser, simulated_stage(lambda: session, fps=60.0)) as (live, _):
        live.page.evaluate("const end = performance.now() + 1500; while (performance.now() < end);")
        made = session.calls.count("step")
        live.wait(lambda: live.block >= made, 1.0)
