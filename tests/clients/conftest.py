"""What the tests of clients share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.clients.site import LANE_FORMS, Site, running_site


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients heed the environment, whose proxies are not for the loopback interface."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


@pytest.fixture(params=LANE_FORMS)
def form(request: pytest.FixtureRequest) -> str:
    """The command that serves, one for each lane."""
    return str(request.param)


@pytest.fixture
async def site(form: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with running_site(tmp_path, form) as site:
        yield site
