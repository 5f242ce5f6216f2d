"""The state that all parts of a run share: stage, llmux, clock, and access to the control API."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import h11
import trio

from bench.soak.process import Llmux
from bench.soak.record import Record
from bench.soak.settings import EVERY_S, KEY
from bench.soak.stage import Stage

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError)
"""The errors of a connection whose llmux was killed."""


@dataclass
class Run:
    """One run.

    Attributes:
        began_at: Start of the run, on Trio's clock.
        lost: Requests without a response for no reason; known at the end.
        idle_descriptors: Number of descriptors that an idle llmux has open.
        file_is_bad: Lock held while the config file is invalid: llmux must not start with it.
    """

    stage: Stage
    llmux: Llmux
    record: Record
    seconds: float
    seed: int
    began_at: float = 0.0
    idle_descriptors: int = 0
    lost: int = 0
    file_is_bad: trio.Lock = field(default_factory=trio.Lock)

    def rng(self, name: str) -> random.Random:
        """Return a random generator for one part of the run."""
        return random.Random(f"{self.seed} {name}")

    @property
    def is_over(self) -> bool:
        """True once nothing new may start."""
        return trio.current_time() >= self.began_at + self.seconds

    async def now_and_then(
        self, what: str, act: Callable[[random.Random], Awaitable[None]]
    ) -> None:
        """Act for ever, at random moments."""
        rng = self.rng(what)
        while True:
            await trio.sleep(rng.expovariate(1 / EVERY_S[what]))
            await act(rng)

    async def fetch(self, method: str, target: str, body: str = "") -> tuple[int, bytes]:
        """Request one of llmux's own paths, on a new connection; raises one of BROKEN."""
        http = h11.Connection(h11.CLIENT)
        async with await trio.open_tcp_stream("127.0.0.1", self.stage.port) as stream:
            headers = [
                ("Host", "localhost"),
                ("Connection", "close"),
                ("Authorization", f"Bearer {KEY}"),
                ("Content-Length", str(len(body))),
            ]
            request = h11.Request(method=method, target=target, headers=headers)
            head = http.send(request) or b""
            await stream.send_all(head + (http.send(h11.Data(data=body.encode())) or b""))
            http.send(h11.EndOfMessage())
            status, data = 0, b""
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    http.receive_data(await stream.receive_some())
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    data += event.data
                elif isinstance(event, h11.EndOfMessage):
                    return status, data

    async def status(self) -> Mapping[str, Any]:
        """Return /control/status; raises one of BROKEN, or ValueError."""
        _, body = await self.fetch("GET", "/control/status")
        status: dict[str, Any] = json.loads(body)
        return status

    async def requests(self) -> list[dict[str, Any]]:
        """Return the requests that llmux serves; none if it does not answer."""
        with suppress(*BROKEN, ValueError, KeyError):
            _, body = await self.fetch("GET", "/control/requests")
            listed: list[dict[str, Any]] = json.loads(body)["requests"]
            return listed
        return []
