"""What axe-core finds on the page, in both themes and on a phone, and what it does not look at."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[ui-test]'")
pytest.importorskip("axe_playwright_python", reason="needs axe: pip install -e '.[ui-test]'")

from playwright.sync_api import Browser, Page, expect

from tests.ui.browser import Watched
from tests.ui.stage import Stage, staged

pytestmark = pytest.mark.slow

LONG = "mistralai/Mistral-Small-24B-Instruct-2501"

VIEWS = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 375, "height": 800}, "color_scheme": "light"},
    "phone-dark": {"viewport": {"width": 375, "height": 800}, "color_scheme": "dark"},
}


def serious(page: Page) -> list[str]:
    """Return axe's serious and critical findings, with the elements."""
    axe = (files("axe_playwright_python") / "axe.min.js").read_text()
    page.evaluate(axe)  # not as a script tag, which the page's policy forbids
    found: list[dict[str, Any]] = page.evaluate(
        "async () => (await axe.run({resultTypes: ['violations']})).violations"
    )
    return [
        f"{each['impact']} {each['id']}: {node['target']} {node.get('failureSummary', '')}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def fill(stage: Stage, page: Page) -> None:
    """Have every kind of thing on the page: costs, ended and running requests, a chat, an error."""
    for name in ("a", LONG, "a"):
        stage.ask(name).wait()
    stage.ask("broken").wait()
    stage.ask("a", stream=True, chunks=10_000, interval=0.02)
    page.check("#requests-ended")
    page.locator(".system summary").click()
    page.fill("#chat-system", "Be brief.")
    page.fill("#chat-text", "Hello")
    page.click("#chat-send")
    expect(page.locator(".bubble.model")).to_be_visible()
    expect(page.locator("#requests-table tbody tr").nth(3)).to_be_visible()


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(tmp_path: Path, browser: Browser, view: str) -> None:
    failing = {"wake": "echo out of memory >&2; exit 1"}
    with staged(tmp_path, "a", LONG, "broken", models={"broken": failing}) as stage:
        watched = Watched(browser, **VIEWS[view])
        page = watched.open(stage.url)
        fill(stage, page)
        assert serious(page) == []
        page.locator("#requests-table tbody tr.ended button").first.click()
        expect(page.locator("#detail")).to_be_visible()
        assert serious(page) == []
        page.keyboard.press("Escape")
        page.click("#key")
        assert serious(page) == []
        page.keyboard.press("Escape")
        watched.close()


CONTRASTS = """() => {
  const ink = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const light = (colour) => {
    ink.fillStyle = colour;
    ink.fillRect(0, 0, 1, 1);
    const part = (c) => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4;
    const [r, g, b] = ink.getImageData(0, 0, 1, 1).data;
    return .2126 * part(r) + .7152 * part(g) + .0722 * part(b);
  };
  return [...document.querySelectorAll(".heat")].filter((cell) => /\\d/.test(cell.textContent)).map((cell) => {
    const style = getComputedStyle(cell);
    const [dark, bright] = [light(style.color), light(style.backgroundColor)].sort((a, b) => a - b);
    return (bright + .05) / (dark + .05);
  });
}"""
"""The contrast of each cell of the map by WCAG 2.2; `color-mix` comes out in any colour space."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_heat_can_be_read(tmp_path: Path, browser: Browser, scheme: str) -> None:
    names = ["a", "b"]
    with staged(tmp_path, *names) as stage:
        watched = Watched(browser, color_scheme=scheme)
        page = watched.page

        def answer(route: Any) -> None:
            status = route.fetch().json()
            # The event stream gives costs, too; only the polled status has these.
            status["estimated_costs"] = {"idle": {"a": 1, "b": 10}, "a": {"b": 5}, "b": {"a": 7.5}}
            route.fulfill(json=status)

        page.route("**/control/status", answer)
        watched.open(stage.url)
        stage.post("/control/switch", {"model": "a"})  # has the page read the status
        expect(page.locator(".heat", has_text="10 s")).to_be_visible()
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) == 4
        assert min(contrasts) >= 4.5
        watched.close()


def test_names_give_up_their_organisation_first(tmp_path: Path, browser: Browser) -> None:
    with staged(tmp_path, LONG, "b") as stage:
        watched = Watched(browser, viewport={"width": 375, "height": 800})
        page = watched.open(stage.url)
        name = page.locator(".lane-name .name").first
        expect(name).to_have_text(LONG)
        expect(name).to_have_attribute("title", LONG)
        own, owner = name.locator(".name-own"), name.locator(".name-owner")
        expect(own).to_have_text("Mistral-Small-24B-Instruct-2501")
        shown = own.bounding_box()
        cut = owner.bounding_box()
        assert shown
        assert cut
        assert shown["width"] > 2 * cut["width"] > 0
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        watched.close()


def test_a_phone_has_a_way_around(tmp_path: Path, browser: Browser) -> None:
    with staged(tmp_path, "a", "b") as stage:
        watched = Watched(browser, viewport={"width": 375, "height": 700})
        page = watched.open(stage.url)
        links = page.locator("#sections a")
        expect(links).to_have_count(6)
        for name in ("Requests", "Logs", "Timeline", "Models"):
            link = links.get_by_text(name)
            link.click()
            expect(link).to_have_attribute("aria-current", "true")
            expect(link).to_be_in_viewport()  # it stays where it is, at the top
            title = page.locator(link.get_attribute("href") or "")
            box, bar = title.bounding_box(), page.locator("#sections").bounding_box()
            assert box
            assert bar
            assert bar["y"] + bar["height"] <= box["y"] + 1 < 400, name
        watched.close()


def test_requests_move_nothing_below_them(tmp_path: Path, watched: Watched) -> None:
    with staged(tmp_path, "a") as stage:
        page = watched.open(stage.url)
        tops = set()
        for count in range(4):
            expect(page.locator("#requests-table tbody tr")).to_have_count(4 * count)
            tops.add(
                page.evaluate(
                    "document.querySelector('#playground').getBoundingClientRect().top + scrollY"
                )
            )
            for _ in range(4):
                stage.ask("a", stream=True, chunks=10_000, interval=0.05)
        assert len(tops) == 1
