"""What operators see and do on the page, with a real llmux behind it."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[ui-test]'")

from playwright.sync_api import Page, expect

from bench.processes import free_port
from tests.ui.browser import Watched
from tests.ui.stage import staged, standin

pytestmark = pytest.mark.slow

expect.set_options(timeout=20_000)  # of a busy machine; 5 s by default

GROUP = "#groups article"

RECORD_ACTIVE = """
window.seen = [];
const note = () => {
  const text = document.querySelector("#groups .active")?.textContent ?? "";
  if (text && window.seen.at(-1)?.[1] !== text) window.seen.push([Date.now() / 1000, text]);
};
new MutationObserver(note).observe(document.querySelector("main"), {subtree: true, childList: true, characterData: true});
note();
"""


def confirm(page: Page) -> None:
    page.click("#confirm-yes")
    page.wait_for_selector("#confirm", state="hidden")


def toast(page: Page, text: str) -> None:
    expect(page.locator(".toast").last).to_contain_text(text)


def test_the_page_follows_a_real_switch_within_a_second(tmp_path: Path, watched: Watched) -> None:
    lags = []
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)
        page.evaluate(RECORD_ACTIVE)
        for name in ("a", "b", "a", "b"):
            assert stage.ask(name).wait().status == 200
            expect(page.locator(f"{GROUP} .active")).to_have_text(name)
            expect(page.locator(f"{GROUP} tr:has(th[title={name}]) .chip")).to_have_text("serving")
            (awake,) = [
                one["at"] for one in stage.get("/control/history")["phases"][-2:]
                if one["model"] == name and one["state"] == "awake"
            ]  # fmt: skip
            lags.append(page.evaluate("window.seen.at(-1)[0]") - awake)
        assert page.evaluate("window.seen.map((one) => one[1])")[-4:] == ["a", "b", "a", "b"]
    print(f"\nfollows a switch after {', '.join(f'{1000 * lag:.0f}' for lag in lags)} ms")
    assert sorted(lags)[1] < 1, "a stalled machine delays one or two, polling would delay most"


def test_orders_do_what_they_say(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)

        page.click("button[aria-label='Switch a']")
        toast(page, "Switched to model: a")
        assert stage.status()["active_model"] == "a"

        page.click("button[aria-label='Pin b']")
        page.check("#confirm-option input")
        confirm(page)
        toast(page, "Pinned to model: b")
        expect(page.locator(".badge.pin")).to_contain_text("pinned to b, others wait")
        assert stage.status()["groups"]["default"]["pinned"] == {"model": "b", "wait": True}
        page.click(".badge.pin")
        expect(page.locator(".badge.pin")).to_be_hidden()
        assert stage.status()["groups"]["default"]["pinned"] is None

        page.click("button[aria-label='Sleep b']")
        toast(page, "Model b sleeping")
        expect(page.locator(f"{GROUP} .active")).to_have_text("nothing awake")
        assert stage.status()["active_model"] is None

        page.click("#mode-manual")
        confirm(page)
        expect(page.locator("#mode-manual")).to_have_attribute("aria-pressed", "true")
        assert stage.status()["mode"] == "manual"
        page.click("#mode-auto")
        expect(page.locator("#mode-auto")).to_have_attribute("aria-pressed", "true")
        assert stage.status()["mode"] == "auto"

        page.click("#cordon")
        confirm(page)
        expect(page.locator("#cordoned")).to_contain_text("Cordoned: new requests get 503")
        expect(page.locator("#cordon")).to_have_attribute("aria-pressed", "true")
        watched.expected.append("503")
        assert stage.ask("a").wait().status == 503
        assert stage.status()["cordoned"] is True
        page.click("#cordon")
        expect(page.locator("#cordoned")).to_be_hidden()
        assert stage.status()["cordoned"] is False

        stage.rack.write_config(models={"a": {"aliases": ["alpha"]}})
        page.click("#reload")
        confirm(page)
        toast(page, "Reloaded")
        assert stage.status()["models"]["a"]["aliases"] == ["alpha"]
        (tmp_path / "llmux.json").write_text("{}")
        watched.expected.append("400")
        page.click("#reload")
        confirm(page)
        expect(page.locator(".toast.bad")).to_have_count(1)
        assert stage.rack.hook_log == ["a wake", "a sleep", "b wake", "b sleep"]


def test_back_does_nothing(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)
        for opener in ("button[aria-label='Pin b']", "#mode-manual", "#reload"):
            page.click(opener)
            page.keyboard.press("Escape")
            page.click(opener)
            page.click("#confirm button[value=no]")
        assert stage.status()["mode"] == "auto"
        assert stage.rack.hook_log == []


def test_what_hurts_others_is_asked_first(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)
        stage.ask("a", stream=True, chunks=10_000, interval=0.02)
        row = page.locator(f"{GROUP} tr:has(th[title=a])")
        expect(row).to_contain_text("1 in flight")
        for opener in ("Switch b", "Sleep a"):
            page.click(f"button[aria-label='{opener}']")
            expect(page.locator("#confirm-text")).to_contain_text("1 request in flight")
            page.click("#confirm button[value=no]")
        assert stage.status()["active_model"] == "a"


def test_a_cancelled_request_ends_at_both_ends(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)
        running = stage.ask("a", stream=True, chunks=10_000, interval=0.02)
        expect(page.locator("#requests-table tbody tr")).to_have_count(1)
        expect(page.locator("#requests-table .chip")).to_have_text("answering")
        waiting = stage.ask("b")
        expect(page.locator("#requests-table tbody tr")).to_have_count(2)
        cancel(page, "b")
        assert waiting.wait().status == 499 or waiting.error or waiting.status == 503
        expect(page.locator("#requests-table tbody tr")).to_have_count(1)
        assert not running.ended.is_set()
        cancel(page, "a")
        running.wait()
        assert b"9999" not in running.body
        expect(page.locator("#requests-table tbody tr")).to_have_count(0)
        assert stage.rack.backends["a"].aborted == 1
        assert stage.rack.backends["b"].received == []
        page.check("#requests-ended")
        expect(page.locator("#requests-table tbody tr")).to_have_count(2)


def test_a_row_keeps_its_focus_when_others_go(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a") as stage:
        page = watched.open(stage.url)
        stage.ask("a", stream=True, chunks=10_000, interval=0.02)
        rows = page.locator("#requests-table tbody tr")
        expect(rows).to_have_count(1)
        (first,) = httpx.get(f"{stage.url}/control/requests").json()["requests"]
        stage.ask("a", stream=True, chunks=10_000, interval=0.02)
        expect(rows).to_have_count(2)
        button = rows.nth(1).locator(".danger-text")
        button.focus()
        httpx.delete(f"{stage.url}/control/requests/{first['id']}")
        expect(rows).to_have_count(1)
        expect(rows.locator(".danger-text")).to_be_focused()


def cancel(page: Page, model: str) -> None:
    page.locator("#requests-table tr", has=page.locator(f"td:text-is('{model}')")).get_by_text(
        "Cancel"
    ).click()
    expect(page.locator("#confirm-title")).to_contain_text("Cancel request")
    confirm(page)


def test_a_switch_and_a_wait_are_explained(tmp_path: Path, watched: Watched) -> None:
    slow = {"wake": "echo loading weights; sleep 0.6; : > b.awake"}
    with staged(tmp_path, "a", "b", models={"b": slow}) as stage:
        page = watched.open(stage.url)
        stage.ask("a").wait()
        blocker = stage.ask("a", stream=True, chunks=10_000, interval=0.02)
        expect(page.locator(f"{GROUP} tr:has(th[title=a])")).to_contain_text("1 in flight")
        asked = stage.ask("b")
        expect(page.locator(f"{GROUP} tr:has(th[title=a])")).to_contain_text("draining")
        (drained,) = [
            one for one in stage.get("/control/requests")["requests"] if one["model"] == "a"
        ]
        httpx.delete(f"{stage.url}/control/requests/{drained['id']}")
        blocker.wait()
        asked.wait()
        page.check("#requests-ended")
        page.fill("#requests-search", asked.request_id)
        page.click("#requests-table tbody th button")
        detail = page.locator("#detail")
        expect(detail).to_contain_text("Why it waited")
        expect(detail).to_contain_text("a was draining: its last requests had to end")
        expect(detail).to_contain_text("b was waking")
        detail.get_by_text("a → b").click()
        (record,) = [one for one in stage.get("/control/history")["switches"] if one["to"] == "b"]
        for text in (
            "success",
            "a draining",
            "b waking",
            record["rule"],
            record["reason"],
            asked.request_id,
        ):
            expect(detail).to_contain_text(text)
        detail.locator("summary", has_text="wake b").click()
        expect(detail.locator("pre", has_text="loading weights")).to_be_visible()
        page.keyboard.press("Escape")
        expect(detail).to_be_hidden()


def test_trouble_is_told_as_it_happens(tmp_path: Path, watched: Watched) -> None:
    """A model that keeps failing to wake, checks that fail, and why the other one stays."""
    models = {
        "a": {"alive": "test -e a.awake && ! test -e a.deaf"},
        "b": {"wake": "exit 7"},
    }
    policy = {
        "alive_interval_secs": 0.5,
        "alive_failures": 100,
        "wake_failures": 1,
        "min_active_secs": 600,
    }
    with staged(tmp_path, "a", "b", "c", models=models, policy=policy) as stage:
        page = watched.open(stage.url)
        assert stage.ask("b").wait().status == 500
        row = page.locator("tr", has=page.get_by_role("button", name="Switch b"))
        expect(row).to_contain_text("Failing (1 wake in a row): tried only while no other model")
        assert stage.ask("a").wait().status == 200
        (tmp_path / "a.deaf").touch()
        row = page.locator("tr", has=page.get_by_role("button", name="Switch a"))
        expect(row).to_contain_text(re.compile(r"alive failed \d+ of 100: exited with 1"))
        (tmp_path / "a.deaf").unlink()
        expect(row).not_to_contain_text("alive failed")
        waits = stage.ask("c")
        expect(page.locator(GROUP)).to_contain_text("stays with a: it has been awake for less than")
        page.click("button[aria-label='Switch c']")
        assert waits.wait().status == 200
        expect(page.locator(GROUP)).not_to_contain_text("stays with")


def test_a_click_on_a_switch_opens_it(tmp_path: Path, watched: Watched) -> None:
    slow = {"wake": "sleep 0.5; : > a.awake"}
    with staged(tmp_path, "a", "b", models={"a": slow}) as stage:
        page = watched.open(stage.url)
        stage.ask("a").wait()
        page.select_option("#span", "60")
        expect(page.locator(f"{GROUP} .chip").first).to_have_text("serving")
        (record,) = stage.get("/control/history")["switches"]
        canvas = page.locator("canvas.lanes")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box
        middle = (record["started"] + record["ended"]) / 2
        ago = page.evaluate(f"Date.now() / 1000 - {middle}") + 60 * 0.015
        x, y = box["x"] + box["width"] * (1 - ago / 60), box["y"] + 22 + 13
        page.mouse.move(x, y)
        expect(page.locator("#tooltip")).to_contain_text("nothing → a")
        page.mouse.click(x, y)
        expect(page.locator("#detail")).to_contain_text("nothing → a")


def test_the_timeline_zooms_pans_and_goes_live(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)
        canvas = page.locator("canvas.lanes")
        live = page.locator("#live")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box
        x, y = box["x"] + box["width"] / 2, box["y"] + 60
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 150, y, steps=5)
        page.mouse.up()
        expect(live).to_have_attribute("aria-pressed", "false")
        live.click()
        expect(live).to_have_attribute("aria-pressed", "true")
        page.click("#zoom-in")
        expect(page.locator("#span")).to_have_value("")
        canvas.focus()
        page.mouse.move(x, y)
        page.mouse.wheel(0, 2000)
        page.mouse.wheel(-200, 0)
        expect(live).to_have_attribute("aria-pressed", "false")
        page.keyboard.press("End")
        expect(live).to_have_attribute("aria-pressed", "true")


def test_logs_follow_and_are_searched(tmp_path: Path, watched: Watched) -> None:
    chatty = {"wake": "for i in $(seq 1 400); do echo shard $i of 400; done; : > a.awake"}
    with staged(tmp_path, "a", "b", models={"a": chatty}) as stage:
        page = watched.open(stage.url)
        page.select_option("#logs-model", "a")
        stage.ask("a").wait()
        expect(page.locator("#logs-lines .line", has_text="shard 400 of 400")).to_have_count(1)
        page.fill("#logs-search", "shard 17 ")
        expect(page.locator("#logs-lines .line")).to_have_count(1)
        expect(page.locator("#logs-lines mark")).to_have_text("shard 17 ")
        page.fill("#logs-search", "")
        page.evaluate("document.querySelector('#logs-lines').scrollTop = 1e9")
        for _ in range(6):
            stage.ask("b").wait()
            stage.ask("a").wait()
        expect(page.locator("#logs-count")).to_have_text("2000 lines")
        expect(page.locator("#logs-lines .line")).to_have_count(2000)


def test_the_playground_streams_and_measures(tmp_path: Path, watched: Watched) -> None:
    models = {"a": standin("a", wake_s=0.5), "b": standin("b")}
    with staged(tmp_path, "a", "b", models=models, on_shutdown="sleep") as stage:
        page = watched.open(stage.url)
        page.select_option("#chat-model", "a")
        page.fill("#chat-tokens", "20")
        page.fill("#chat-text", "Who are you?")
        page.press("#chat-text", "Enter")
        answer = page.locator(".bubble.model").last
        expect(page.locator("#chat-stop")).to_be_visible()
        expect(answer.locator(".figures")).to_have_text(
            re.compile(r"^wait \d.* · first token \d.* · [\d.]+ tokens/s · 20 tokens$")
        )
        assert rate(answer.locator(".figures").inner_text()) == pytest.approx(40, rel=0.4)
        expect(page.locator("#chat-send")).to_be_visible()
        answer.get_by_text("why?").click()
        expect(page.locator("#detail")).to_contain_text("a was waking")
        page.keyboard.press("Escape")

        page.fill("#chat-tokens", "5000")
        page.fill("#chat-text", "Tell me more.")
        page.click("#chat-send")
        answer = page.locator(".bubble.model").last
        expect(answer.locator(".words")).not_to_be_empty()
        page.click("#chat-stop")
        expect(answer.locator(".words em")).to_have_text("[stopped]")
        expect(page.locator(f"{GROUP} .facts-grid dd").first).to_have_text("0")
        assert stage.status()["models"]["a"]["in_flight"] == 0


def rate(figures: str) -> float:
    found = re.search(r"([\d.]+) tokens/s", figures)
    assert found
    return float(found[1])


def test_keys_are_asked_for_and_kept_in_the_tab(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a", keys=("steer-1234567890",), api_keys=["talk-1234567890"]) as stage:
        watched.expected.append("401")
        page = watched.page
        page.goto(f"{stage.url}/ui")
        page.wait_for_selector("#keys[open]")
        expect(page.locator("#link")).to_have_attribute("data-state", "locked")
        expect(page.locator("#keys-wrong")).to_be_hidden()
        page.fill("#keys-control", "wrong")
        page.click("#keys .primary")
        page.wait_for_selector("#keys[open]")
        expect(page.locator("#keys-wrong")).to_contain_text("Wrong control key")
        expect(page.locator("#keys-control")).to_have_attribute("aria-invalid", "true")
        page.fill("#keys-control", "steer-1234567890")
        page.press("#keys-control", "Enter")
        page.wait_for_selector("#link[data-state=live]")
        page.click("button[aria-label='Switch a']")
        toast(page, "Switched to model: a")

        page.fill("#chat-text", "Hi")
        page.click("#chat-send")
        page.wait_for_selector("#keys[open]")
        expect(page.locator("#keys-wrong")).to_be_hidden()
        page.fill("#keys-model", "wrong")
        page.click("#keys .primary")
        expect(page.locator("#keys-wrong")).to_contain_text("Wrong key for the playground")
        page.fill("#keys-model", "talk-1234567890")
        page.click("#keys .primary")
        expect(page.locator(".bubble-foot").last).to_contain_text("wait")
        assert "1234567890" not in page.evaluate("JSON.stringify(localStorage) + document.cookie")
        page.reload()
        page.wait_for_selector("#link[data-state=live]")


def test_with_a_read_key_the_page_shows_all_and_steers_nothing(
    tmp_path: Path, watched: Watched
) -> None:
    reader, steerer = "look-1234567890", "steer-1234567890"
    with staged(tmp_path, "a", "b", keys=(steerer,), read_keys=[reader]) as stage:
        watched.expected.append("401")
        page = watched.page
        page.goto(f"{stage.url}/ui")
        page.wait_for_selector("#keys[open]")
        page.fill("#keys-control", reader)
        page.click("#keys .primary")
        page.wait_for_selector("#link[data-state=live]")
        expect(page.locator("#facts")).to_contain_text("read only")
        expect(page.locator("#groups tr:has(th[title=a])")).to_be_visible()
        for button in ("button[aria-label='Switch a']", "button[aria-label='Pin b']", "#reload"):
            page.click(button)
            expect(page.locator(".toast")).to_have_count(1)
            toast(page, "This is a read key")
            expect(page.locator("#confirm")).to_be_hidden()
        assert stage.status()["active_model"] is None
        page.click("#key")
        page.fill("#keys-control", steerer)
        page.click("#keys .primary")
        page.click("button[aria-label='Switch a']")
        toast(page, "Switched to model: a")
        expect(page.locator("#facts")).not_to_contain_text("read only")


def test_markup_from_the_server_stays_text(tmp_path: Path, watched: Watched) -> None:
    evil = "<img src=x onerror=window.pwned=1>"
    hook = f"echo '<script>window.pwned=1</script>{evil}'; : > b.awake; exit 1"
    with staged(
        tmp_path, "a", "b", models={"b": {"wake": hook, "group": evil, "aliases": [evil]}}
    ) as stage:
        page = watched.open(stage.url)
        asked = stage.ask("b").wait()
        assert asked.status == 500
        page.select_option("#logs-model", "b")
        expect(page.locator("#logs-lines")).to_contain_text(evil)
        expect(page.locator("#groups .error-text", has_text=evil)).to_be_visible()
        expect(page.locator("#groups .group-name").last).to_have_text(evil)
        page.check("#requests-ended")
        page.locator("#requests-table tbody th button").first.click()
        page.locator("#detail .plain-list button").first.click()
        expect(page.get_by_label("Output of wake b")).to_contain_text(evil)
        page.fill("#logs-search", evil)
        expect(page.locator("#logs-lines mark").first).to_have_text(evil)
        assert page.locator("img[onerror], script:not([src])").count() == 0
        assert page.evaluate("window.pwned") is None


def test_it_says_so_when_llmux_is_gone_and_starts_afresh(tmp_path: Path, watched: Watched) -> None:
    port = free_port()
    with staged(tmp_path, "a", "b", port=port) as stage:
        page = watched.open(stage.url)
        stage.ask("a").wait()
        page.check("#requests-ended")
        expect(page.locator("#requests-table tbody tr")).to_have_count(1)
        first_boot = stage.status()["boot"]
    expect(page.locator("#link")).to_have_attribute("data-state", "down")
    expect(page.locator("#offline")).to_contain_text("Disconnected")
    (tmp_path / "a.awake").unlink()
    with staged(tmp_path, "a", "b", port=port) as stage:
        page.wait_for_selector("#link[data-state=live]")
        expect(page.locator("#offline")).to_be_hidden()
        expect(page.locator("#requests-table tbody tr")).to_have_count(0)
        expect(page.locator(f"{GROUP} .active")).to_have_text("nothing awake")
        assert stage.status()["boot"] != first_boot
        stage.ask("b").wait()
        expect(page.locator(f"{GROUP} .active")).to_have_text("b")


def test_a_broken_connection_is_resumed(tmp_path: Path, watched: Watched) -> None:
    watched.expected.append("ERR_FAILED")
    with staged(tmp_path, "a", "b") as stage:
        asked: list[str | None] = []
        page = watched.page
        page.on(
            "request",
            lambda one: (
                asked.append(one.headers.get("last-event-id"))
                if one.url.endswith("/events")
                else None
            ),
        )
        page.add_init_script(
            "const real = window.fetch; window.aborters = [];"
            "window.fetch = (url, options = {}) => {"
            " if (!String(url).endsWith('/events')) return real(url, options);"
            " const aborter = new AbortController(); window.aborters.push(aborter);"
            " return real(url, {...options, signal: aborter.signal}); };"
        )
        watched.open(stage.url)
        stage.ask("a").wait()
        expect(page.locator(f"{GROUP} .active")).to_have_text("a")
        page.evaluate("window.aborters.at(-1).abort()")
        expect(page.locator("#link")).to_have_attribute("data-state", "down")
        stage.ask("b").wait()
        expect(page.locator("#link")).to_have_attribute("data-state", "live")
        expect(page.locator(f"{GROUP} .active")).to_have_text("b")
        boot = stage.status()["boot"]
        assert asked[0] is None
        assert asked[1] is not None
        assert asked[1].startswith(f"{boot}-")


def test_keyboard_only(tmp_path: Path, watched: Watched) -> None:
    models = {"a": standin("a", wake_s=0.3), "b": standin("b")}
    with staged(tmp_path, "a", "b", models=models, on_shutdown="sleep") as stage:
        page = watched.open(stage.url)
        keys = page.keyboard
        keys.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        tab_to(page, "button[aria-label='Switch a']")
        keys.press("Enter")
        toast(page, "Switched to model: a")
        tab_to(page, "button[aria-label='Pin b']")
        keys.press("Space")
        expect(page.locator("#confirm-yes")).to_be_focused()
        keys.press("Escape")
        expect(page.locator("button[aria-label='Pin b']")).to_be_focused()
        tab_to(page, "canvas.lanes")
        keys.press("ArrowDown")
        expect(page.locator(".lane-label[aria-selected=true]")).to_contain_text("a")
        keys.press("ArrowLeft")
        expect(page.locator("#live")).to_have_attribute("aria-pressed", "false")
        keys.press("+")
        keys.press("End")
        expect(page.locator("#live")).to_have_attribute("aria-pressed", "true")
        keys.press("]")
        keys.press("Enter")
        expect(page.locator("#detail")).to_contain_text("nothing → a")
        expect(page.locator("#detail .close")).to_be_focused()
        keys.press("Escape")
        expect(page.locator("canvas.lanes")).to_be_focused()
        tab_to(page, "#chat-tokens")
        keys.press("Control+A")
        keys.type("3")
        tab_to(page, "#chat-text")
        keys.type("Hello")
        keys.press("Enter")
        expect(page.locator(".figures").last).to_contain_text("3 tokens")
        tab_to(page, "#logs-search")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        assert stage.status()["active_model"] == "a"


def tab_to(page: Page, selector: str) -> None:
    """Press Tab until something has the focus; fails if it never has."""
    for _ in range(80):
        if page.evaluate("(selector) => document.activeElement?.matches(selector)", selector):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} cannot be reached with Tab")


@pytest.mark.parametrize("width", [375, 768, 1440])
def test_nothing_sticks_out(tmp_path: Path, watched: Watched, width: int) -> None:
    long = "a-model-with-quite-a-long-name"
    with staged(tmp_path, long, "b") as stage:
        watched.page.set_viewport_size({"width": width, "height": 800})
        page = watched.open(stage.url)
        stage.ask("b").wait()
        stage.ask(long, stream=True, chunks=10_000, interval=0.02)
        expect(page.locator("#requests-table tbody tr")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width == 768:
            return  # the table scrolls in its frame
        button = page.locator("#requests-table .danger-text").bounding_box()
        assert button
        assert button["x"] + button["width"] <= width


def test_controls_have_names(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, textarea")]
              .filter((one) => one.offsetParent && !(one.textContent.trim() || one.getAttribute("aria-label") || one.labels?.length))
              .map((one) => one.outerHTML)"""
        )
        assert nameless == []
        ids: list[Any] = page.evaluate(
            "[...document.querySelectorAll('[id]')].map((one) => one.id)"
        )
        assert len(ids) == len(set(ids))


def test_the_theme_is_kept(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a") as stage:
        page = watched.open(stage.url)
        colours = set()
        for theme in ("light", "dark"):
            page.click("#theme")
            assert page.evaluate("document.documentElement.dataset.theme") == theme
            colours.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(colours) == 2
        page.reload()
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        page.wait_for_selector("#link[data-state=live]")


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGP4z8DwHwAFAAH/iZk9HQAAAABJRU5ErkJggg=="
)


def test_the_playground_sends_a_system_prompt_and_an_image(
    tmp_path: Path, watched: Watched
) -> None:
    with staged(tmp_path, "a") as stage:
        page = watched.open(stage.url)
        page.locator(".system summary").click()
        page.fill("#chat-system", "Answer in French.")
        page.set_input_files(
            "#chat-file", {"name": "cat.png", "mimeType": "image/png", "buffer": PIXEL}
        )
        expect(page.locator("#chat-picture")).to_contain_text("cat.png")
        page.fill("#chat-text", "What is this?")
        page.press("#chat-text", "Enter")
        expect(page.locator(".bubble.user .sent")).to_be_visible()
        expect(page.locator("#chat-picture")).to_be_hidden()
        expect(page.locator("#chat-send")).to_be_visible()
        page.fill("#chat-text", "Sure?")
        page.press("#chat-text", "Enter")
        expect(page.locator(".bubble.user")).to_have_count(2)
        expect(page.locator("#chat-send")).to_be_visible()
        first, second = [json.loads(body) for _, body in stage.rack.backends["a"].received][-2:]
        system, user = first["messages"]
        assert system == {"role": "system", "content": "Answer in French."}
        text, image = user["content"]
        assert text == {"type": "text", "text": "What is this?"}
        url = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
        assert image == {"type": "image_url", "image_url": {"url": url}}
        assert second["messages"][:2] == first["messages"]
        assert second["messages"][-1] == {"role": "user", "content": "Sure?"}

        page.set_input_files(
            "#chat-file", {"name": "no.png", "mimeType": "image/png", "buffer": b"no"}
        )
        toast(page, "no.png is no image")


def test_llmuxs_own_log_is_shown(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a") as stage:
        page = watched.open(stage.url)
        page.select_option("#logs-model", label="llmux itself")
        expect(page.locator("#logs-lines")).to_contain_text("listening")
        stage.ask("a").wait()
        expect(page.locator("#logs-lines .line", has_text="model_activated")).to_have_count(1)


def test_gpus_are_shown_where_nvidia_smi_is(
    tmp_path: Path, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho '0, NVIDIA H200, 40960, 143360, 37'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with staged(tmp_path, "a") as stage:
        page = watched.open(stage.url)
        expect(page.locator("#gpus")).to_have_text("GPU 0 NVIDIA H20040.0 of 140 GiB · 37 % busy")
        value = page.get_by_label("Memory in use on GPU 0").get_attribute("value")
        assert float(value or 0) == pytest.approx(40960 / 143360)


def test_the_hour_before_a_restart_is_drawn_and_the_gap_left_open(
    tmp_path: Path, watched: Watched
) -> None:
    with staged(tmp_path, "a", "b", on_shutdown="sleep") as stage:
        stage.ask("a").wait()
        first = stage.status()["started"]
    with staged(tmp_path, "a", "b") as stage:
        page = watched.open(stage.url)
        store = "(await import('./app.js')).store"
        runs = page.evaluate(f"async () => {store}.runs")
        assert runs[0]["started"] == pytest.approx(first, abs=2)
        assert runs[0]["ended"] <= runs[1]["started"]
        assert runs[1]["ended"] is None
        drawn = page.evaluate(
            f"async () => {{ const store = {store}; const now = store.now();"
            " return store.recorded(now - 3600, now).flatMap(({from, to}) => store.states.get('a').within(from, to)); }"
        )
        assert drawn[0]["from"] >= runs[0]["started"]  # not asleep before the first start
        assert [each["state"] for each in drawn][:3] == ["asleep", "waking", "awake"]
        assert drawn[-1]["state"] == "asleep"
        assert not any(each["from"] < runs[1]["started"] < each["to"] for each in drawn)
        page.locator("canvas.lanes").focus()
        page.keyboard.press("[")
        page.keyboard.press("Enter")
        expect(page.locator("#detail")).to_contain_text("before the restart")
        expect(page.locator("#detail")).not_to_contain_text("nobody waited")


def test_waiting_requests_say_how_much_longer(tmp_path: Path, watched: Watched) -> None:
    slow = {"wake": "sleep 3; : > b.awake"}
    with staged(tmp_path, "a", "b", models={"b": slow}) as stage:
        page = watched.open(stage.url)
        stage.ask("b").wait()
        stage.ask("a").wait()
        asked = stage.ask("b")
        waited = page.locator("#requests-table tbody tr td:nth-child(5)")
        expect(waited).to_have_text(re.compile(r"^[\d.]+ m?s \+ ≈ [123](\.\d)? s$"))
        expect(page.locator(f"{GROUP} tr:has(th[title=b])")).to_contain_text("away")
        asked.wait()


def test_ended_requests_show_their_rate(tmp_path: Path, watched: Watched) -> None:
    models = {"a": standin("a", rate=50)}
    with staged(tmp_path, "a", models=models, on_shutdown="sleep") as stage:
        page = watched.open(stage.url)
        page.check("#requests-ended")
        stage.ask("a", stream=True, max_tokens=40, stream_options={"include_usage": True}).wait()
        row = page.locator("#requests-table tr.ended")
        expect(row.locator("td").nth(9)).to_have_text(re.compile(r"→ 40$"))
        assert float(row.locator("td").nth(10).inner_text()) == pytest.approx(50, rel=0.5)
        row.locator("button").first.click()
        expect(page.locator("#detail")).to_contain_text("a second")
