"""Close Hypercorn's connections in time when their clients read nothing.

Hypercorn itself waits for ever for a client to take what it sends, and in asyncio also for what is
left of it when it closes a connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import Any

import trio
from hypercorn.asyncio.tcp_server import TCPServer as AsyncioServer
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import h2 as h2_protocol
from hypercorn.trio.tcp_server import TCPServer as TrioServer

from llmux.server.hypercorn_side.rules import RULES
from llmux.server.hypercorn_side.sockets import notice_death

SENT_BYTES = 65536
"""Bytes for which a client has one stall limit."""


class EndingTrioServer(TrioServer):
    """Closes a connection whose client reads nothing, whatever protocol it carries."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_over = False
        self._unsent: deque[bytes] = deque()
        notice_death(self)

    async def protocol_send(self, event: Event) -> None:
        """Send, and close the connection if the client reads nothing for the stall limit."""
        if isinstance(event, RawData):
            await self._send_in_turn(event.data)
        elif not isinstance(event, Updated):
            await super().protocol_send(event)
        elif not self._is_over:
            with suppress(RuntimeError):  # it takes no more tasks: it has ended, and is not idle
                await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        # The client has left. Hypercorn would keep the connection for the rest of its idle time.
        self._is_over = True
        await self.idle_task.stop()

    async def _send_in_turn(self, data: bytes) -> None:
        """Send it behind what others send.

        On a connection of HTTP/2, frames that were made must be sent: the client could read no
        headers behind ones that were left out. So a task that is cancelled while it waits for its
        turn leaves them to the task whose turn it is.
        """
        self._unsent.append(data)
        try:
            self.send_lock.acquire_nowait()  # no checkpoint: here, too, nothing may be left behind
        except trio.WouldBlock:
            await self.send_lock.acquire()
        try:
            while self._unsent:
                await self._send(self._unsent.popleft())
        finally:
            self.send_lock.release()

    async def _send(self, data: bytes) -> None:
        try:
            for start in range(0, len(data), SENT_BYTES):
                # Shielded as in Hypercorn: what was cancelled half-way would break the framing.
                with trio.fail_after(RULES.stall_s) as sending:
                    sending.shield = True
                    await self.stream.send_all(data[start : start + SENT_BYTES])
        except trio.TooSlowError:
            await trio.aclose_forcefully(self.stream)
            await self._tell_closed()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._tell_closed()

    async def _tell_closed(self) -> None:
        """Tell the protocol, also for a task that is cancelled: half of that is a wrong state."""
        with trio.CancelScope(shield=True):  # in which nothing waits for the client
            await self.protocol.handle(Closed())


class EndingAsyncioServer(AsyncioServer):
    """The same in asyncio, where a closed connection stays until its client has read the rest."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_over = False
        self._written_bytes = 0
        notice_death(self)

    async def run(self) -> None:
        """Serve the connection to its end."""
        # A task that ends as cancelled is a traceback in Python 3.11 (`StreamReaderProtocol`).
        with suppress(asyncio.CancelledError):
            await super().run()

    async def protocol_send(self, event: Event) -> None:
        """Send, and close the connection if the client reads nothing for the stall limit."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif not isinstance(event, Updated):
            await super().protocol_send(event)
        elif not self._is_over:
            with suppress(RuntimeError):  # it takes no more tasks: it has ended, and is not idle
                await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        # The client has left. Hypercorn would keep the connection for the rest of its idle time.
        self._is_over = True
        await self.idle_task.stop()

    async def _send(self, data: bytes) -> None:
        """Send at once, in the order of calls; then wait until the client has taken enough."""
        try:
            self.writer.write(data)
            self._written_bytes += len(data)
            await self._drain()
        except TimeoutError:
            self.writer.transport.abort()
            await self.protocol.handle(Closed())
        except (ConnectionError, RuntimeError):
            await self.protocol.handle(Closed())

    async def _drain(self) -> None:
        """Wait for room; raises TimeoutError if the client takes nothing for the stall limit."""
        while True:
            taken_bytes = self._taken_bytes
            try:
                async with asyncio.timeout(RULES.stall_s):
                    await self.writer.drain()
                    return
            except TimeoutError:
                if self._taken_bytes == taken_bytes:
                    raise

    @property
    def _taken_bytes(self) -> int:
        return self._written_bytes - self.writer.transport.get_write_buffer_size()

    async def _close(self) -> None:
        self._look_after(self.writer.transport.get_write_buffer_size())
        await super()._close()

    def _look_after(self, left_bytes: int) -> None:
        """Drop what is left of a connection that is closed once its client takes none of it."""
        if left_bytes:
            self.loop.call_later(RULES.stall_s, self._look_again, left_bytes)

    def _look_again(self, before_bytes: int) -> None:
        left_bytes = self.writer.transport.get_write_buffer_size()
        if left_bytes >= before_bytes:
            self.writer.transport.abort()
        else:
            self._look_after(left_bytes)


class BoundedBuffer(h2_protocol.StreamBuffer):
    """The bytes of a stream that its client has no window for yet.

    Hypercorn's own goes on taking more as soon as little of it could be sent, so that all of an
    answer was kept for a client that opens no window, and no stall was seen.
    """

    async def push(self, data: bytes) -> None:
        """Take more; returns when there is room for more."""
        if self._complete:
            raise h2_protocol.BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= h2_protocol.BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        """Take out up to `max_length` bytes."""
        length = min(len(self.buffer), max_length)
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        if len(self.buffer) < h2_protocol.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data
