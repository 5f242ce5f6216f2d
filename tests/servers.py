"""Real servers on loopback for the tests: backends that check, and llmux in all its forms."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest
import trio

from llmux.standin.server import Standin
from tests.prefork import Forked, fork

Received = tuple[h11.Request, bytes]


@dataclass
class CheckingBackend:
    """A model server that knows whether its hooks woke it, and counts what it is asked.

    The wake hook makes the file `awake`, the sleep hook removes it; so a request that comes while
    the file is not there, or a file that goes while a request is inside, breaks an invariant.
    """

    name: str
    awake: Path
    port: int = 0
    served: int = 0
    in_flight: int = 0
    aborted: int = 0
    violations: list[str] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    inside: Callable[[], None] = lambda: None
    next_chunk: Callable[[int], Any] | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._connection, listeners, task_status=task_status)  # type: ignore[arg-type]

    async def _connection(self, stream: trio.SocketStream) -> None:
        parser = h11.Connection(h11.SERVER)
        try:
            while True:
                request, body = await _receive(stream, parser)
                self.received.append((request, body))
                self._check()
                self.in_flight += 1
                finished = False
                try:
                    await self._answer(stream, parser, body)
                    finished = True
                finally:
                    self.in_flight -= 1
                    self.aborted += not finished
                if parser.our_state is not h11.DONE or parser.their_state is not h11.DONE:
                    return
                parser.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, EOFError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    def _check(self) -> None:
        self.inside()
        if not self.awake.exists():
            self.violations.append(f"{self.name} was asked while asleep")

    def _finish(self) -> None:
        """Check and count before the last byte: after it, the model may be asleep and the test over."""
        self._check()
        self.served += 1

    async def _answer(self, stream: trio.SocketStream, parser: h11.Connection, body: bytes) -> None:
        asked = json.loads(body) if body.startswith(b"{") else {}
        if asked.get("stream"):
            head: Any = h11.Response(
                status_code=200,
                headers=[("content-type", "text/event-stream"), ("transfer-encoding", "chunked")],
            )
            await _send(stream, parser, head)
            for number in range(int(asked.get("chunks", 3))):
                if self.next_chunk is not None:
                    await self.next_chunk(number)
                await trio.sleep(asked.get("interval", 0))
                await _send(stream, parser, h11.Data(data=b"data: %d\n\n" % number))
            self._finish()
            await _send(stream, parser, h11.EndOfMessage())
            return
        await trio.sleep(asked.get("seconds", 0))
        answer = json.dumps({"served_by": self.name, "asked": asked}).encode()
        head = h11.Response(
            status_code=200,
            headers=[("content-type", "application/json"), ("content-length", str(len(answer)))],
        )
        await _send(stream, parser, head)
        self._finish()
        await _send(stream, parser, h11.Data(data=answer))
        await _send(stream, parser, h11.EndOfMessage())


async def _receive(stream: trio.SocketStream, parser: h11.Connection) -> Received:
    request: h11.Request | None = None
    body = bytearray()
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert request is not None
            return request, bytes(body)
        else:
            raise EOFError


async def _send(stream: trio.SocketStream, parser: h11.Connection, event: Any) -> None:
    data = parser.send(event)
    assert data is not None
    await stream.send_all(data)


@dataclass
class Rack:
    """Some backends, and a config with real `sh` hooks for them."""

    folder: Path
    backends: dict[str, CheckingBackend]

    @property
    def hook_log(self) -> list[str]:
        """Every hook that ran, as `model hook`, in order."""
        path = self.folder / "hooks.log"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def violations(self) -> list[str]:
        return [violation for backend in self.backends.values() for violation in backend.violations]

    def model(self, name: str, **overrides: Any) -> dict[str, Any]:
        log = 'echo "$LLMUX_MODEL $LLMUX_HOOK" >> hooks.log'
        return {
            "port": self.backends[name].port,
            "wake": f"{log}; : > {name}.awake",
            "sleep": f"{log}; rm -f {name}.awake",
            "alive": f"test -e {name}.awake",
            **overrides,
        }

    def write_config(self, **settings: Any) -> Path:
        """Write `llmux.json`; `models` may override what single models say."""
        overrides = settings.pop("models", {})
        models = {name: self.model(name, **overrides.get(name, {})) for name in self.backends}
        config = {"port": 0, "state_dir": "state", "models": models, **settings}
        path = self.folder / "llmux.json"
        path.write_text(json.dumps(config))
        return path


@asynccontextmanager
async def running_backends(folder: Path, *names: str) -> AsyncIterator[Rack]:
    """Start a backend for each name; at the end no invariant may have been broken."""
    rack = Rack(folder, {name: CheckingBackend(name, folder / f"{name}.awake") for name in names})

    def at_most_one_awake() -> None:
        awake = [name for name, backend in rack.backends.items() if backend.awake.exists()]
        if len(awake) > 1:
            rack.backends[awake[0]].violations.append(f"{awake} awake at once")

    async with trio.open_nursery() as nursery:
        for backend in rack.backends.values():
            backend.inside = at_most_one_awake
            await nursery.start(backend.serve)
        yield rack
        assert not rack.violations
        nursery.cancel_scope.cancel()


@dataclass
class LlmuxProcess:
    """A started llmux: its address, its process, what it has logged so far."""

    url: str
    process: trio.Process | Forked
    lines: list[str]

    def client(self, **options: Any) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        # To read the system's certificates would take 0.05 s, and there is no TLS.
        options = {"timeout": 30, "limits": limits, "verify": False, **options}
        return httpx.AsyncClient(base_url=self.url, **options)

    async def terminate(self, seconds: float = 15) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        with trio.fail_after(seconds):
            return await self.process.wait()


FORMS = {
    "llmux": [sys.executable, "-m", "llmux"],
    "hypercorn -k trio": [
        sys.executable, "-m", "hypercorn", "-k", "trio", "-b", "127.0.0.1:0", "llmux.app:app",
    ],
    "hypercorn": [sys.executable, "-m", "hypercorn", "-b", "127.0.0.1:0", "llmux.app:app"],
}  # fmt: skip
"""The commands that serve llmux; each takes its config from $LLMUX_CONFIG."""

ALL_FORMS = [
    form if form == "llmux" else pytest.param(form, marks=pytest.mark.slow) for form in FORMS
]
"""For tests that take seconds: every run starts `llmux`, and the slow run the others, too."""


@asynccontextmanager
async def running_llmux(
    config: Path, form: str = "llmux", *arguments: str, ends_with: int | None = 0
) -> AsyncIterator[LlmuxProcess]:
    """Start llmux as a process of its own; at the end it must stop cleanly on SIGTERM."""
    process = await _start(
        [*FORMS[form], *arguments],
        {**os.environ, "LLMUX_CONFIG": str(config), "PYTHONUNBUFFERED": "1"},
    )
    lines: list[str] = []
    async with trio.open_nursery() as nursery:
        try:
            url = await nursery.start(_read_log, process, lines)
            llmux = LlmuxProcess(url, process, lines)
            yield llmux
            if process.returncode is None:
                await llmux.terminate()
            assert process.returncode == ends_with, "\n".join(lines)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                with trio.CancelScope(shield=True):
                    await process.wait()
            nursery.cancel_scope.cancel()


async def _start(command: list[str], env: dict[str, str]) -> trio.Process | Forked:
    if command[:3] == [sys.executable, "-m", "llmux"]:
        return await fork(*command[3:], env=env)
    return await trio.lowlevel.open_process(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


async def _read_log(
    process: trio.Process | Forked, lines: list[str], *, task_status: trio.TaskStatus[str]
) -> None:
    assert process.stderr is not None
    rest = b""
    started = False
    with trio.fail_after(30) as until_started:
        async for data in process.stderr:
            *complete, rest = (rest + data).split(b"\n")
            for line in complete:
                lines.append(line.decode())
                if (
                    found := re.search(
                        r"(?:Running on |url=|\"url\":\")(https?://[^\s\"]+)", lines[-1]
                    )
                ) and not started:
                    started = True
                    until_started.deadline = float("inf")
                    task_status.started(found.group(1))
    if not started:
        raise DidNotStart(lines)


class DidNotStart(Exception):
    """llmux ended before it served; holds what it printed."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


async def start_in_vain(config: Path, form: str) -> tuple[int, list[str]]:
    """Start a llmux that cannot start; returns its exit code and what it printed."""
    with trio.fail_after(30):
        done = await trio.run_process(
            FORMS[form],
            env={**os.environ, "LLMUX_CONFIG": str(config)},
            capture_stderr=True,
            check=False,
        )
    return done.returncode, done.stderr.decode().splitlines()


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}


def tally(answers: list[httpx.Response]) -> Counter[int]:
    """Answers by status code."""
    return Counter(answer.status_code for answer in answers)


def standin_model(standin: Standin) -> dict[str, Any]:
    """The config of a model that a stand-in serves, which its hooks wake and put to sleep."""
    call = f"{shlex.quote(sys.executable)} -m llmux.standin call --port {standin.port}"
    return {
        "port": standin.port,
        "wake": f"{call} POST /wake_up",
        "sleep": f"{call} POST /sleep",
        "alive": f"{call} GET /health",
    }
