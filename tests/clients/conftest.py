"""What the tests of clients share."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.clients.site import LANE_FORMS, Site, running_site

PACKAGES = (
    "openai", "anthropic", "ollama", "litellm", "langchain-openai", "langchain-ollama", "websockets", "brotli",
)  # fmt: skip
TOOLS = ("curl", "chromium", "node")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in one line what the tests that have run here ran with."""
    passed = terminalreporter.getreports("passed")
    if any(report.nodeid.startswith("tests/clients/") for report in passed):
        found = [f"{name} {_version(name)}" for name in PACKAGES]
        found += [f"{name} {'found' if shutil.which(name) else 'missing'}" for name in TOOLS]
        terminalreporter.write_line(f"real clients: {', '.join(found)}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients read proxies from the environment, which must not apply to the loopback interface."""
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
