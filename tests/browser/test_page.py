"""The page in a headless browser, played on the simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_action.action.schema import ActionPart, ActionSchema
from lightning_action.play.action_map import default_map
from lightning_action.play.live_world import LiveWorld
from lightning_action.play.server import Playground
from tests.support.browser import LivePage
from tests.support.live_server import Running, serving, wait_until
from tests.support.played_page import held, paused_step, place, played
from tests.support.simulated_session import SimulatedSession, simulated_stage

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


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
    session = SimulatedSession()
    with played(browser, simulated_stage(lambda: session)) as (live, running):
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
        live.wait_for_blocks(3)
        resets = [call.split()[1] for call in session.calls if call.startswith("reset")]
        assert resets == ["0", "5"] and live.page.input_value("#seed") == "6"


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
