"""The pump: one task and one epoll that relay the bodies of all answers on the fast lane.

A stream of tokens is many small pieces, each of which is received, checked, sent and counted. A
task that waits for its own socket adds to that an epoll_ctl, a reschedule and a turn of Trio's loop
for each piece, which cost more than all the rest. Here a piece costs its two system calls, and
some plain Python.

It stays structured: the request's own task waits in `Pump.leftover` meanwhile, and can be cancelled
there. It is woken once there is something to do that takes time or decides something: the end of
the body, an error, or a client whose socket is full. While that client is waited for, by its own
task, nothing of its answer is received.
"""

from __future__ import annotations

import math
import os
import select
from typing import ClassVar

import outcome
import trio

from llmux.downstream.fast_connection import ClientConnection
from llmux.downstream.pulse import Pulse
from llmux.proxy.lane import ClientLeft
from llmux.upstream.answers import WireBody

PIECES_A_TURN = 64
"""Pieces relayed until other tasks get a turn: about a millisecond. The kernel hands out ready
sockets in turn, so that one that is always ready delays the others by a piece a round."""

BUSY_S = 0.002
REST_S = 0.001
"""Rounds that follow each other within the first are put apart by the second, as network cards
moderate their interrupts: a round costs as much as five pieces, and without a pause most rounds of
256 streams would find one or two. At fewer than about 500 pieces a second there is no pause, and
none after a piece of `BULK_BYTES`."""

BULK_BYTES = 8192
"""More than tokens come to: a pause would slow such a download down, since a Unix socket's buffer
may hold less than a pause's worth (92 small writes)."""


class Relay:
    """One body on its way, while its task waits in the pump."""

    __slots__ = ("_body", "_client", "_source", "_target", "is_bulk", "task")

    def __init__(self, body: WireBody, client: ClientConnection) -> None:
        self._source = body.connection
        self._body = body
        self._client = client
        self._target = client.fileno
        self.is_bulk = False  # true if the last piece was large
        self.task = trio.lowlevel.current_task()

    def step(self) -> outcome.Maybe[bytes] | None:
        """Relay one piece; returns what the task is to be woken with, or None."""
        try:
            data = self._source.receive_now()
            if data is None:
                return None
            self.is_bulk = len(data) >= BULK_BYTES
            data = self._body.take(data)
        except Exception as error:
            return outcome.Error(error)
        try:
            sent = os.write(self._target, data)
        except BlockingIOError:
            sent = 0
        except OSError:
            return outcome.Error(ClientLeft())
        self._client.sent_bytes += sent
        if sent < len(data):
            return outcome.Value(data[sent:])
        return outcome.Value(b"") if self._source.has_ended else None


class Pump:
    """Relays bodies for tasks that wait in `leftover`, while `run` runs.

    Attributes:
        pulse: Shows that it runs.
    """

    def __init__(self) -> None:
        self.pulse = Pulse()
        self._epoll = select.epoll()
        self._relays: dict[int, Relay] = {}

    async def run(self) -> None:
        """Relay; never returns."""
        last = -math.inf
        try:
            with self.pulse.beating(self._epoll):
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    before, last = last, trio.current_time()
                    may_rest = self._relay_round()
                    if may_rest and last - before < BUSY_S:
                        await trio.sleep(REST_S)
        finally:
            self._epoll.close()

    def _relay_round(self) -> bool:
        """Relay a piece of each body that has one; returns False if more is likely waiting."""
        relays = self._relays
        ready = self._epoll.poll(0, PIECES_A_TURN)
        may_rest = len(ready) < PIECES_A_TURN
        for fileno, _ in ready:
            relay = relays.get(fileno)
            if relay is None:
                if fileno == self.pulse.fileno:
                    self.pulse.answer()
                continue
            if (ended := relay.step()) is not None:
                self._remove(fileno)
                trio.lowlevel.reschedule(relay.task, ended)
            elif relay.is_bulk:
                may_rest = False
        return may_rest

    def pieces(self, body: WireBody, client: ClientConnection) -> Pieces:
        """Relay a body; iterate over the result for the pieces that are left to the caller."""
        return Pieces(self, body, client)

    async def leftover(
        self,
        body: WireBody,
        client: ClientConnection,
        kind: type[Relay] = Relay,
    ) -> bytes:
        """Relay a body until its end, or until its client's socket is full.

        Args:
            body: The body.
            client: Gets it.
            kind: What relays a piece to this kind of client.

        Returns:
            What the client's socket did not take; empty at the end of the body.

        Raises:
            BackendBroke: The body broke off, or is framed wrongly.
            ClientLeft: The client's connection broke.
        """
        fileno = body.connection.fileno
        # At a shutdown the pump may end first: then this only waits to be cancelled, too.
        if not self._epoll.closed:
            self._epoll.register(fileno, select.EPOLLIN)
        self._relays[fileno] = kind(body, client)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._remove(fileno)
            return trio.lowlevel.Abort.SUCCEEDED

        data: bytes = await trio.lowlevel.wait_task_rescheduled(abort)
        return data

    def _remove(self, fileno: int) -> None:
        del self._relays[fileno]
        # The socket is open as long as its task waits here; only the pump itself may have ended.
        if not self._epoll.closed:
            self._epoll.unregister(fileno)


class Pieces:
    """The pieces of a body that a task has to send itself: the rest goes through the pump.

    A short body, which mostly comes in one piece, does not go through it, nor do bodies over TLS,
    which has buffers of its own: there may be something to read while the socket is silent.
    """

    __slots__ = ("_body", "_client", "_pump")
    _kind: ClassVar[type[Relay]] = Relay

    def __init__(self, pump: Pump, body: WireBody, client: ClientConnection) -> None:
        self._pump = pump
        self._body = body
        self._client = client

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        source = self._body.connection
        if source.pending or source.is_tls or self._body.is_short:
            return await anext(self._body)
        if self._body.is_over:
            raise StopAsyncIteration
        data = await self._pump.leftover(self._body, self._client, self._kind)
        if not data:
            raise StopAsyncIteration
        return data
