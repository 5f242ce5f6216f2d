"""Debian's Chromium, and pages in it that notice what must not happen."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, ConsoleMessage, Error, Page, sync_playwright

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

PATIENCE_MS = 15_000

LLMUX_LEFT = [
    f"Failed to load resource: net::ERR_{why}"
    for why in ("CONNECTION_REFUSED", "CONNECTION_RESET", "EMPTY_RESPONSE", "INCOMPLETE_CHUNKED")
]
"""What the browser itself notes when llmux ends before the page does, as it does in all tests."""

WATCH_POLICY = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sample}`));
"""


def find_chromium() -> str | None:
    """The path of a Chromium, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser with a new profile."""
    path = find_chromium()
    assert path is not None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=FLAGS)
        yield browser
        browser.close()


class Watched:
    """A page of a context of its own. At the end, nothing may have gone wrong that was not meant to.

    Attributes:
        page: Playwright's page.
        expected: Parts of console messages that the test provokes.
    """

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.page.add_init_script(WATCH_POLICY)
        self.page.on("console", self._heard)
        self.page.on("pageerror", self._failed)
        self.page.on("request", lambda request: self._hosts.add(urlsplit(request.url).netloc))
        self.expected = list(LLMUX_LEFT)
        self._wrong: list[str] = []
        self._hosts: set[str] = set()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._wrong.append(f"{message.type}: {message.text}")

    def _failed(self, error: Error) -> None:
        self._wrong.append(str(error.stack or error))

    def open(self, url: str) -> Page:
        """Open llmux's page, and wait until it is live."""
        self.page.goto(f"{url}/ui")
        self.page.wait_for_selector('#link[data-state="live"]')
        return self.page

    def close(self) -> None:
        """Check and close."""
        violations = self.page.evaluate("window.violations")
        self.context.close()
        assert not violations, violations
        unexpected = [one for one in self._wrong if not any(part in one for part in self.expected)]
        assert not unexpected, unexpected
        assert len(self._hosts) <= 1, f"it asked other hosts: {self._hosts}"
