"""How Hypercorn's connections end when their clients take nothing: at all, and in time.

Hypercorn itself waits for ever for a client to take what it sends, and in asyncio also for what is
left of it when it closes a connection.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import h2.errors
import h2.exceptions
import hypercorn.asyncio.run
import hypercorn.protocol
import hypercorn.trio.run
import priority
import trio
from hypercorn.asyncio.tcp_server import TCPServer as AsyncioServer
from hypercorn.events import Closed, Event, RawData
from hypercorn.protocol import h2 as h2_protocol
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.events import StreamClosed
from hypercorn.protocol.h2 import H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.trio.tcp_server import TCPServer as TrioServer

SENT_BYTES = 65536
"""The client has the stall limit for each such part."""


class Stall:
    """For how long a client may take nothing; one for the process, as Hypercorn's classes are.

    Attributes:
        limit_s: That, in seconds.
    """

    limit_s = 60.0


class EndingTrioServer(TrioServer):
    """Closes a connection whose client takes nothing, whatever it is used for."""

    async def protocol_send(self, event: Event) -> None:
        """Send, and close the connection when that takes too long."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                for start in range(0, len(event.data), SENT_BYTES):
                    # Shielded as in Hypercorn: what was cancelled half-way would break the framing.
                    with trio.fail_after(Stall.limit_s) as sending:
                        sending.shield = True
                        await self.stream.send_all(event.data[start : start + SENT_BYTES])
            except trio.TooSlowError:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())


class EndingAsyncioServer(AsyncioServer):
    """The same in asyncio, where a closed connection stays until its client has taken the rest."""

    async def protocol_send(self, event: Event) -> None:
        """Send, and close the connection when that takes too long."""
        if not isinstance(event, RawData):
            await super().protocol_send(event)
            return
        async with self.send_lock:
            try:
                for start in range(0, len(event.data), SENT_BYTES):
                    self.writer.write(event.data[start : start + SENT_BYTES])
                    async with asyncio.timeout(Stall.limit_s):
                        await self.writer.drain()
            except TimeoutError:
                self.writer.transport.abort()
                await self.protocol.handle(Closed())
            except (ConnectionError, RuntimeError):
                await self.protocol.handle(Closed())

    async def _close(self) -> None:
        self._look_after(self.writer.transport.get_write_buffer_size())
        await super()._close()

    def _look_after(self, left_bytes: int) -> None:
        """Drop what is left of a connection that is closed once its client takes none of it."""
        if left_bytes:
            self.loop.call_later(Stall.limit_s, self._look_again, left_bytes)

    def _look_again(self, before_bytes: int) -> None:
        left_bytes = self.writer.transport.get_write_buffer_size()
        if left_bytes >= before_bytes:
            self.writer.transport.abort()
        else:
            self._look_after(left_bytes)


class BoundedBuffer(h2_protocol.StreamBuffer):
    """What a stream's client has no window for yet.

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
        """Give away some."""
        length = min(len(self.buffer), max_length)
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        if len(self.buffer) < h2_protocol.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class EndingH2Protocol(H2Protocol):
    """Resets a stream whose answer was given up, of which its client would hear nothing."""

    async def stream_send(self, event: StreamEvent) -> None:
        """Send; a stream that is closed before its end is reset (RFC 9113, section 5.4.2)."""
        if isinstance(event, StreamClosed) and isinstance(
            self.streams.get(event.stream_id), HTTPStream
        ):
            await self._give_up(event.stream_id)
        await super().stream_send(event)

    async def _give_up(self, stream_id: int) -> None:
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or buffer.complete:
            return
        await buffer.close()
        with suppress(h2.exceptions.ProtocolError, priority.MissingStreamError):  # type: ignore[attr-defined]
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            self.task_group.spawn(self._flush)  # not here: the client may take nothing
            self.priority.unblock(stream_id)  # `send_task` forgets the stream


def end_stalled(limit_s: float) -> None:
    """Have Hypercorn use these, in this whole process, with this limit in seconds."""
    Stall.limit_s = limit_s
    run: Any
    for run, server in (
        (hypercorn.trio.run, EndingTrioServer),
        (hypercorn.asyncio.run, EndingAsyncioServer),
    ):
        run.TCPServer = server
    hypercorn.protocol.H2Protocol = EndingH2Protocol  # type: ignore[attr-defined]
    h2_protocol.StreamBuffer = BoundedBuffer  # type: ignore[misc]
