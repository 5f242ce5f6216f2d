"""A real llmux process with two stand-ins behind it, and the real packages in front of it."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import httpx
import openai
import pytest
import trio

from llmux.standin.options import Options
from llmux.standin.server import Standin, serve
from tests.lanes import ScriptedBackend
from tests.servers import LlmuxProcess, running_llmux, standin_model

T = TypeVar("T")

LANE_FORMS = ["llmux", "hypercorn -k trio"]
"""One command for each lane; see `tests.servers.FORMS`."""

PATIENCE_S = 60
"""How long a client may take; it is the tests' bound, no client is told of it."""

WORDS = "is a stand-in and makes these words up."
"""What a stand-in says behind its name, in nine tokens."""

QUESTION = [{"role": "user", "content": "Who are you?"}]


# Marks, since a skip within a Trio test loses its reason.


def needs_package(name: str) -> pytest.MarkDecorator:
    """Skip the test where a client's package is not installed."""
    reason = f"{name} is not installed (extra `clients`)"
    return pytest.mark.skipif(find_spec(name) is None, reason=reason)


def needs_tool(name: str) -> pytest.MarkDecorator:
    """Skip the test where there is no such program."""
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def package(name: str) -> ModuleType:
    """A client's package; see `needs_package`. Its types are unknown where it is not installed."""
    return importlib.import_module(name)


@dataclass
class Site:
    """What a test talks to.

    Attributes:
        url: llmux's, without a slash at the end.
        standins: The backends of `a` and `b`.
        scripted: The backend of `scripted`, which keeps every byte that it gets.
        llmux: The process.
        folder: Where its hooks run.
    """

    url: str
    standins: Mapping[str, Standin]
    scripted: ScriptedBackend
    llmux: LlmuxProcess
    folder: Path

    @property
    def api(self) -> str:
        """Where OpenAI's clients look."""
        return f"{self.url}/v1"

    def go(self) -> None:
        """Let held wake hooks end; see `HELD`."""
        (self.folder / "go").touch()

    async def until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        with trio.fail_after(seconds):
            while not condition():
                await trio.sleep(0.01)

    async def until_queued(self, model: str, count: int) -> None:
        """Wait until so many requests wait for the model."""
        async with self.llmux.client() as client:
            with trio.fail_after(10):
                while (await client.get(f"/v1/models/{model}")).json()["llmux"]["queued"] < count:
                    await trio.sleep(0.01)

    async def post(self, path: str, **options: Any) -> httpx.Response:
        async with self.llmux.client() as client:
            return await client.post(path, **options)

    def bodies(self) -> list[bytes]:
        """The bodies that the scripted backend has got."""
        return [request.partition(b"\r\n\r\n")[2] for request in self.scripted.received]


HELD = " && while [ ! -e go ]; do sleep 0.02; done"
"""Ends a wake hook that waits for `Site.go`."""


@asynccontextmanager
async def running_site(
    folder: Path, form: str = "llmux", models: Mapping[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Site]:
    """Start everything; at the end no stand-in may have been asked while asleep, or be busy.

    Args:
        folder: Where hooks run.
        form: Which command serves; see `tests.servers.FORMS`.
        models: What single models have beside; `held: True` for a wake hook that waits.
        **settings: The rest of the config.
    """
    async with trio.open_nursery() as nursery:
        standins: dict[str, Standin] = {}
        for name in "ab":
            options = Options(model=name, tokens=9, asleep=True)
            standins[name] = await nursery.start(serve, options)
        scripted = ScriptedBackend()
        await nursery.start(scripted.serve)
        own = {name: standin_model(standin) for name, standin in standins.items()}
        own["scripted"] = {
            "port": scripted.port, "wake": "true", "sleep": "true", "alive": "true",
            "group": "scripted",
        }  # fmt: skip
        for name, more in (models or {}).items():
            extra = dict(more)
            if extra.pop("held", False):
                own[name]["wake"] += HELD
            own[name] |= extra
        config = folder / "llmux.json"
        config.write_text(json.dumps({"port": 0, "state_dir": "state", "models": own, **settings}))
        async with running_llmux(config, form) as llmux:
            site = Site(llmux.url, standins, scripted, llmux, folder)
            try:
                yield site
            finally:
                site.go()
            await site.until(lambda: not any(each.engine.in_flight for each in standins.values()))
        assert {name: each.engine.mistakes for name, each in standins.items()} == {"a": 0, "b": 0}
        nursery.cancel_scope.cancel()


def openai_client(site: Site, **options: Any) -> openai.OpenAI:
    """The package's own client, which tries once."""
    settings: dict[str, Any] = {"api_key": "unused", "max_retries": 0, "timeout": PATIENCE_S}
    return openai.OpenAI(base_url=site.api, **settings | options)


async def in_thread(work: Callable[[], T]) -> T:
    """Let a client that blocks do its work beside the stand-ins."""
    with trio.fail_after(PATIENCE_S):
        return await trio.to_thread.run_sync(work, abandon_on_cancel=True)
