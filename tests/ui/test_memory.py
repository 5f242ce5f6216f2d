"""The page where models share memory: who holds what, who is promised what, several awake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright", reason="needs playwright: pip install -e '.[ui-test]'")
pytest.importorskip("axe_playwright_python", reason="needs axe: pip install -e '.[ui-test]'")

from playwright.sync_api import Browser, Page, expect

from tests.ui.browser import Watched
from tests.ui.stage import Stage, staged
from tests.ui.test_accessibility import VIEWS, serious
from tests.ui.test_page import confirm, toast

pytestmark = pytest.mark.slow

LONG = "mistralai/Mistral-Small-24B-Instruct-2501"

NEEDS = {"embed": 10, "chat": 40, LONG: 60}
"""Gibibytes of gpu0, of which there are 80."""


def models(folder: Path) -> dict[str, Any]:
    """Models that are awake while a file is there, and asleep until one is."""
    (folder / "go").touch()
    marks = {name: f"{number}.up" for number, name in enumerate(NEEDS)}
    return {
        name: {
            "wake": f": > {marks[name]}",
            "sleep": f"until [ -e go ]; do sleep .05; done; rm -f {marks[name]}",
            "alive": f"test -e {marks[name]}",
            "needs": {"gpu0": f"{gib}GiB"},
            "needs_asleep": {"ram": "2GiB"} if name != "embed" else {},
            "keep": name == "embed",
        }
        for name, gib in NEEDS.items()
    }


@contextmanager
def sharing(folder: Path, **settings: Any) -> Iterator[Stage]:
    settings = {"models": models(folder), "resources": {"gpu0": "80GiB", "ram": "64GiB"}} | settings
    with staged(folder, *NEEDS, **settings) as stage:
        for backend in stage.rack.backends.values():  # they expect to be awake alone
            backend.awake, backend.inside = folder / "go", lambda: None
        try:
            yield stage
        finally:
            (folder / "go").touch()


def in_the_midst(stage: Stage, folder: Path, page: Page) -> None:
    """Two are awake, and one of them is being put to sleep for a third."""
    for name in ("embed", "chat"):
        assert stage.post("/control/wake", {"model": name}).status_code == 200
    expect(page.locator(".active")).to_have_text("embed, chat")
    (folder / "go").unlink()
    stage.ask(LONG)
    expect(page.locator(".memory-bar .memory-part.falling")).to_have_count(2)  # gpu0 and ram


def parts(page: Page, resource: int, kind: str = ":not(.promises)") -> list[str]:
    bar = page.locator(".memory-row").nth(resource).locator(f".memory-bar{kind} .memory-part")
    return [each.get_attribute("title") or "" for each in bar.all()]


def test_a_bar_shows_who_holds_what_and_who_is_promised_what(
    tmp_path: Path, watched: Watched
) -> None:
    with sharing(tmp_path) as stage:
        page = watched.open(stage.url)
        gpu = page.locator(".memory-row").first
        expect(gpu.locator(".memory-head")).to_have_text("gpu080 GiB of 80 GiB free")
        assert parts(page, 1) == ["chat: 2 GiB, asleep", f"{LONG}: 2 GiB, asleep"]
        expect(page.locator("tr:has(th[title=embed]) .badge")).to_have_text("kept")
        in_the_midst(stage, tmp_path, page)
        assert parts(page, 0) == ["embed: 10 GiB", "chat: 40 GiB, falling asleep"]
        assert parts(page, 0, ".promises") == [f"{LONG}: 60 GiB, promised once chat sleeps"]
        said = "gpu0: embed 10 GiB, chat 40 GiB, falling asleep; 30 GiB of 80 GiB free"
        expect(gpu.locator(".memory-bar").first).to_have_attribute("aria-label", said)
        widths = [each.bounding_box() for each in gpu.locator(".memory-bar .memory-part").all()]
        whole = gpu.locator(".memory-bar").first.bounding_box()
        assert whole
        shares = [round(80 * each["width"] / whole["width"]) for each in widths if each]
        assert shares == [10, 40, 60]
        expect(page.locator(".active")).to_have_text("embed")
        expect(page.locator(".phase").first).to_contain_text("chat: falling asleep")
        assert page.title() == f"embed + {LONG} · llmux"
        (tmp_path / "go").touch()
        expect(page.locator(".active")).to_have_text(f"embed, {LONG}")
        expect(gpu.locator(".memory-head")).to_contain_text("10 GiB of 80 GiB free")
        expect(gpu.locator(".promises")).to_be_hidden()


def test_pins_are_taken_back_one_by_one(tmp_path: Path, watched: Watched) -> None:
    with sharing(tmp_path) as stage:
        page = watched.open(stage.url)
        for name in ("embed", "chat"):
            page.click(f"button[aria-label='Pin {name}']")
            expect(page.locator("#confirm-text")).to_contain_text("cannot be awake beside it")
            confirm(page)
            toast(page, f"Pinned to model: {name}")
        expect(page.locator(".badge.pin")).to_have_count(2)
        for name in ("embed", "chat"):
            expect(page.locator(f"button[aria-label='Pin {name}']")).to_be_disabled()
        page.click(".badge.pin:has-text('embed')")
        toast(page, "Unpinned model: embed")
        expect(page.locator(".badge.pin")).to_have_count(1)
        assert [each["model"] for each in stage.status()["groups"]["default"]["pins"]] == ["chat"]
        page.click(".badge.pin")
        toast(page, "Unpinned group: default")


def test_running_switches_have_a_line_each(tmp_path: Path, watched: Watched) -> None:
    with sharing(tmp_path, overlapping_hooks=True) as stage:
        page = watched.open(stage.url)
        assert stage.post("/control/wake", {"model": "chat"}).status_code == 200
        (tmp_path / "go").unlink()
        stage.ask(LONG)
        expect(page.locator(".group-now .phase")).to_contain_text("falling asleep")
        assert stage.post("/control/wake", {"model": "embed"}).status_code == 200
        expect(page.locator(".active")).to_have_text("embed")
        (tmp_path / "go").touch()
        expect(page.locator(".active")).to_have_text(f"embed, {LONG}")
        expect(page.locator(".switches")).to_be_hidden()
        records = stage.get("/control/history")["switches"]
        assert [each["to"] for each in records] == ["chat", LONG, "embed"]


def test_a_request_is_told_whose_memory_it_waited_for(tmp_path: Path, watched: Watched) -> None:
    with sharing(tmp_path) as stage:
        page = watched.open(stage.url)
        in_the_midst(stage, tmp_path, page)
        page.locator("#requests-table tbody tr button").first.click()
        expect(page.locator("#detail")).to_contain_text("chat was put to sleep")
        expect(page.locator("#detail")).to_contain_text(f"chat → {LONG}")
        (tmp_path / "go").touch()


@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_serious(tmp_path: Path, browser: Browser, view: str) -> None:
    with sharing(tmp_path) as stage:
        watched = Watched(browser, **VIEWS[view])
        page = watched.open(stage.url)
        in_the_midst(stage, tmp_path, page)
        assert serious(page) == []
        width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(width) <= 0
        (tmp_path / "go").touch()
        watched.close()
