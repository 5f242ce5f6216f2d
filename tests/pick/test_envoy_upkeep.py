"""What clients notice of a host that freezes, and of an Envoy that is replaced: with a real Envoy."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from tests.pick.stage import (
    Fleet,
    ask,
    free_port,
    needs_envoy,
    running_envoy,
    running_fleet,
    until_answered,
)
from tests.pick.supervisor import supervising
from tests.pick.test_envoy_faults import until_heard
from tests.servers import chat

pytestmark = [pytest.mark.slow, needs_envoy]


@asynccontextmanager
async def load(
    client: httpx.AsyncClient, models: str, every_s: float
) -> AsyncIterator[list[httpx.Response]]:
    """Send requests for each model in turn; at the end, waits until all are answered."""
    answers: list[httpx.Response] = []
    is_over = False

    async def send(model: str) -> None:
        answers.append(await ask(client, model))

    async def send_all(nursery: trio.Nursery) -> None:
        while not is_over:
            for model in models:
                nursery.start_soon(send, model)
                await trio.sleep(every_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all, nursery)
        yield answers
        is_over = True


async def test_a_frozen_host_is_ended_and_what_waited_there_is_served_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        supervising(tmp_path, monkeypatch, within_s=6) as supervisor,
        running_fleet(
            tmp_path,
            options={"rate": 20, "tokens": 10},
            ends_with=((-signal.SIGABRT, 0), 0, 0),
            homes="abc",
        ) as fleet,
        fleet.client(timeout=60) as client,
    ):
        frozen = fleet.hosts[0]
        process = frozen.llmux.process
        async with load(client, "abc", 0.05) as answers:
            with trio.fail_after(30):
                while not frozen.in_flight:
                    await trio.sleep(0.01)
            process.send_signal(signal.SIGSTOP)
            with trio.fail_after(60):
                await process.wait()
            assert supervisor.ended == [process.pid]
            await frozen.restart()
            await until_heard(fleet, frozen)
        assert len(answers) > 20
        assert {answer.status_code for answer in answers} == {200}


async def test_streams_go_on_while_envoy_is_restarted(tmp_path: Path) -> None:
    """A hot restart: the new process takes over the sockets, and the old one ends its streams."""
    async with running_fleet(tmp_path, options={"rate": 20, "tokens": 160}) as fleet:
        hot = Hot(fleet)
        with hot.running(0) as old:
            async with httpx.AsyncClient(base_url=hot.url, timeout=60, verify=False) as client:
                await hot.until_live(0)
                url, body = "/v1/chat/completions", chat("a", stream=True)
                async with client.stream("POST", url, json=body) as answer:
                    pieces = answer.aiter_raw()
                    text = await anext(pieces)
                    with hot.running(1):
                        await hot.until_live(1)
                        async with load(client, "bc", 0.1) as answers:
                            async for piece in pieces:
                                text += piece
                            assert old.poll() is None, "the old process was to carry the stream"
                        with trio.fail_after(60):
                            while old.poll() is None:
                                await trio.sleep(0.1)
                        assert (await ask(client, "a")).status_code == 200
        assert text.endswith(b"data: [DONE]\n\n")
        assert text.count(b'"content"') >= 160
        assert len(answers) > 20
        assert {answer.status_code for answer in answers} == {200}


class Hot:
    """An Envoy that can be restarted, in front of a fleet's hosts, beside the fleet's own."""

    DRAIN_S, PARENT_S = 2, 25
    """When the old process closes idle connections, and when it ends."""

    def __init__(self, fleet: Fleet) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._admin = f"127.0.0.1:{free_port()}"
        self._folder = fleet.folder
        self._config = fleet.folder / "hot.yaml"
        text = (fleet.folder / "envoy.yaml").read_text()
        front, new = (url.rpartition(":")[2] for url in (fleet.url, self.url))
        assert text.count(f"port_value: {front}\n") == 1
        host, _, port = self._admin.partition(":")
        admin = f"admin: {{address: {{socket_address: {{address: {host}, port_value: {port}}}}}}}\n"
        self._config.write_text(
            admin + text.replace(f"port_value: {front}\n", f"port_value: {new}\n")
        )

    def running(self, epoch: int) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Start the process of an epoch: 0 for the first one."""
        base = self._folder / "base-id"
        if epoch:
            which = ["--base-id", base.read_text().strip()]
        else:
            which = ["--use-dynamic-base-id", "--base-id-path", str(base)]
        times = [
            "--drain-time-s",
            str(self.DRAIN_S),
            "--parent-shutdown-time-s",
            str(self.PARENT_S),
        ]
        log = self._folder / f"hot{epoch}.log"
        return running_envoy(self._config, log, [*which, "--restart-epoch", str(epoch), *times])

    async def until_live(self, epoch: int) -> None:
        """Wait until the process of an epoch takes requests."""
        with trio.fail_after(60):
            while not await self._is_live(epoch):
                await trio.sleep(0.05)
        await until_answered(f"{self.url}/health")

    async def _is_live(self, epoch: int) -> bool:
        async with httpx.AsyncClient(
            verify=False
        ) as client:  # an old connection stays with the old one
            try:
                found = (await client.get(f"http://{self._admin}/server_info")).json()
            except httpx.HTTPError:
                return False
        is_it = found["command_line_options"]["restart_epoch"] == epoch
        return bool(is_it and found["state"] == "LIVE")
