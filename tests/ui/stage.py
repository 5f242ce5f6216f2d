"""A real llmux with backends in a thread of its own, for tests that drive a browser meanwhile."""

from __future__ import annotations

import gc
import queue
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import trio
import trio.testing

from bench.processes import free_port
from tests.servers import LlmuxProcess, Rack, chat, running_backends, running_llmux

T = TypeVar("T")

DEMO_HOOKS = Path(__file__).resolve().parents[2] / "hooks" / "demo"
PATIENCE_S = 20


@dataclass
class Asked:
    """A request that was sent, and what has come of it; `ended` is set at its end."""

    ended: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    body: bytes = b""
    request_id: str = ""
    error: str = ""

    def wait(self) -> Asked:
        assert self.ended.wait(PATIENCE_S), "the request did not end"
        return self


@dataclass
class Stage:
    """What is on: llmux, its backends, and how to talk to both."""

    llmux: LlmuxProcess
    rack: Rack
    token: trio.lowlevel.TrioToken
    nursery: trio.Nursery
    headers: dict[str, str]

    @property
    def url(self) -> str:
        return self.llmux.url

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """Run something in the thread of the servers."""
        return trio.from_thread.run(function, *arguments, trio_token=self.token)

    def get(self, path: str) -> Any:
        """JSON of the control API."""
        return httpx.get(self.url + path, headers=self.headers, timeout=PATIENCE_S).json()

    def status(self) -> Any:
        return self.get("/control/status")

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.headers, timeout=PATIENCE_S)

    def ask(self, model: str, **fields: Any) -> Asked:
        """Send a request; it goes on while the test does."""
        asked = Asked()
        self.run(self._start, model, fields, asked)
        return asked

    async def _start(self, model: str, fields: dict[str, Any], asked: Asked) -> None:
        self.nursery.start_soon(self._ask, model, fields, asked)

    async def _ask(self, model: str, fields: dict[str, Any], asked: Asked) -> None:
        try:
            async with self.llmux.client() as client:
                client.timeout = httpx.Timeout(None)
                body = chat(model, **fields)
                async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
                    asked.status = answer.status_code
                    asked.request_id = answer.headers.get("x-llmux-request-id", "")
                    async for piece in answer.aiter_bytes():
                        asked.body += piece
        except httpx.HTTPError as error:
            asked.error = repr(error)
        finally:
            asked.ended.set()


@contextmanager
def in_thread(live: Callable[[queue.Queue[Any], trio.Event], Awaitable[None]]) -> Iterator[Any]:
    """Run something of Trio in a thread, from when it says what it has until the block ends."""
    said: queue.Queue[Any] = queue.Queue()
    stop: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []

    async def main() -> None:
        over = trio.Event()
        stop.append((trio.lowlevel.current_trio_token(), over))
        try:
            await live(said, over)
        finally:
            said.put(None)

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(trio.run, main)
        try:
            first = said.get(timeout=60)
            if first is not None:
                yield first
        finally:
            token, over = stop[0]
            if not done.done():
                token.run_sync_soon(over.set)
            done.result()  # what broke there breaks the test


@contextmanager
def staged(
    folder: Path, *names: str, keys: tuple[str, ...] = (), **settings: Any
) -> Iterator[Stage]:
    """llmux with a CheckingBackend for each name; `settings` go into its config."""

    async def live(said: queue.Queue[Any], over: trio.Event) -> None:
        async with running_backends(folder, *names) as rack:
            if keys:
                settings.setdefault("control_keys", list(keys))
            config = rack.write_config(**settings)
            async with running_llmux(config) as llmux:
                async with trio.open_nursery() as nursery:
                    headers = {"authorization": f"Bearer {keys[0]}"} if keys else {}
                    token = trio.lowlevel.current_trio_token()
                    said.put(Stage(llmux, rack, token, nursery, headers))
                    await over.wait()
                    nursery.cancel_scope.cancel()
                # httpx leaves the connection of a stream that was cancelled to the garbage
                # collector; as long as it is open, llmux takes its grace.
                gc.collect()
                await trio.testing.wait_all_tasks_blocked(0.01)

    with in_thread(live) as stage:
        yield stage


def standin(name: str, *, rate: float = 40, wake_s: float = 0) -> dict[str, Any]:
    """A model of the config whose server is llmux's stand-in, started by the demo's hooks."""
    hook = partial("PYTHON={} {}/{}.sh".format, sys.executable, DEMO_HOOKS)
    wait = f"sleep {wake_s}; " if wake_s else ""
    return {
        "port": free_port(),
        "wake": f"echo loading {name}; {wait}{hook('wake')} --rate {rate}; echo {name} is ready",
        "sleep": f"echo stopping {name}; {hook('sleep')}",
        "alive": hook("alive"),
    }
