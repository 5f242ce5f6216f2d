"""Fixtures: a browser for all tests, and a page for each.

Where Playwright is missing, the modules skip themselves; this one must load.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.ui.browser import Watched


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    from tests.ui.browser import find_chromium, running_browser

    if find_chromium() is None:
        pytest.skip("needs chromium, which is not on the PATH: apt-get install chromium")
    with running_browser() as one:
        yield one


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    from tests.ui.browser import Watched

    one = Watched(browser, viewport={"width": 1280, "height": 900})
    yield one
    one.close()
