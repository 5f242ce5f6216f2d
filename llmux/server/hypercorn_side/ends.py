"""Close connections whose clients stopped reading.

Hypercorn itself waits forever for a client to read what it sends; under asyncio, also for the rest
of the write buffer when it closes a connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio
from hypercorn.asyncio.tcp_server import TCPServer as AsyncioServer
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import h2 as h2_protocol
from hypercorn.trio.tcp_server import TCPServer as TrioServer

from llmux.http import wire
from llmux.server.hypercorn_side.rules import RULES
from llmux.server.hypercorn_side.sockets import notice_death

SENT_BYTES = 65536
"""The stall limit applies to each chunk of this many bytes."""

if TYPE_CHECKING:

    class _Server:
        """The parts that Hypercorn's `TCPServer` has in common on Trio and on asyncio."""

        idle_task: Any

        def __init__(self, *args: Any) -> None: ...
        async def protocol_send(self, event: Event) -> None:
            raise NotImplementedError

        async def _read_data(self) -> None:
            raise NotImplementedError

else:
    _Server = object


class EndingServer(_Server):
    """Closes a connection whose client reads nothing, whichever protocol it speaks."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._client_left = False
        notice_death(self)

    async def protocol_send(self, event: Event) -> None:
        """Send, and close the connection if the client reads nothing for the stall limit."""
        if isinstance(event, RawData):
            await self._send(event.data)
        elif not isinstance(event, Updated):
            await super().protocol_send(event)
        elif not self._client_left:
            # The connection's task group may have ended already: no idle timer can start in it,
            # and none is needed.
            with suppress(RuntimeError):
                await super().protocol_send(event)

    async def _read_data(self) -> None:
        await super()._read_data()
        # The client has left. Hypercorn would keep the connection until its idle timeout.
        self._client_left = True
        await self.idle_task.stop()

    async def _send(self, data: bytes) -> None:
        raise NotImplementedError


class EndingTrioServer(EndingServer, TrioServer):
    """A connection on Trio."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._unsent: deque[bytes] = deque()

    async def _send(self, data: bytes) -> None:
        """Send in the order of calls.

        HPACK state is shared by all streams of an HTTP/2 connection: once a frame has been built it
        must be sent, or the client cannot decode the headers after it. So a task that is cancelled
        while it waits for the lock leaves its data to the task that holds the lock.
        """
        self._unsent.append(data)
        try:
            # Without a checkpoint: cancelled there, no other task might be left to send the data.
            self.send_lock.acquire_nowait()
        except trio.WouldBlock:
            await self.send_lock.acquire()
        try:
            while self._unsent:
                await self._send_now(self._unsent.popleft())
        finally:
            self.send_lock.release()

    async def _send_now(self, data: bytes) -> None:
        stream: trio.abc.Stream = self.stream
        try:
            if isinstance(stream, trio.SocketStream):
                # Most clients take a token at once. Trio's own way costs two checkpoints before.
                data = data[wire.write(stream.socket, data) :]
            for start in range(0, len(data), SENT_BYTES):
                # Shielded, as in Hypercorn: a chunk sent in part would break the framing.
                with trio.fail_after(RULES.stall_s) as sending:
                    sending.shield = True
                    await stream.send_all(data[start : start + SENT_BYTES])
        except trio.TooSlowError:
            await trio.aclose_forcefully(self.stream)
            await self._handle_closed()
        except wire.BREAKS:
            await self._handle_closed()

    async def _handle_closed(self) -> None:
        # Shielded: cancelled half-way, the protocol would be left in an inconsistent state. Nothing
        # in here waits for the client.
        with trio.CancelScope(shield=True):
            await self.protocol.handle(Closed())


class EndingAsyncioServer(EndingServer, AsyncioServer):
    """A connection on asyncio; after `close` it stays open until the client has read the rest."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._written_bytes = 0

    async def run(self) -> None:
        # In Python 3.11, `StreamReaderProtocol` logs a traceback for a task that ends cancelled.
        with suppress(asyncio.CancelledError):
            await super().run()

    async def _send(self, data: bytes) -> None:
        """Write at once, in the order of calls; then wait for room in the write buffer."""
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
        """Wait for room; raises TimeoutError if the client reads nothing for the stall limit."""
        while True:
            read_bytes = self._read_bytes
            try:
                async with asyncio.timeout(RULES.stall_s):
                    await self.writer.drain()
                    return
            except TimeoutError:
                if self._read_bytes == read_bytes:
                    raise

    @property
    def _read_bytes(self) -> int:
        return self._written_bytes - self.writer.transport.get_write_buffer_size()

    async def _close(self) -> None:
        self._watch_closing(self.writer.transport.get_write_buffer_size())
        await super()._close()

    def _watch_closing(self, buffered_bytes: int) -> None:
        """Abort a closing connection once its client reads nothing for the stall limit."""
        if buffered_bytes:
            self.loop.call_later(RULES.stall_s, self._check_progress, buffered_bytes)

    def _check_progress(self, before_bytes: int) -> None:
        buffered_bytes = self.writer.transport.get_write_buffer_size()
        if buffered_bytes >= before_bytes:
            self.writer.transport.abort()
        else:
            self._watch_closing(buffered_bytes)


class BoundedBuffer(h2_protocol.StreamBuffer):
    """The bytes of an HTTP/2 stream that wait for the client's flow-control window.

    Hypercorn's buffer accepts more data as soon as any of it is sent, so for a client that opens no
    window it keeps the whole response and no stall is noticed.
    """

    async def push(self, data: bytes) -> None:
        """Buffer the data; returns once there is room for more."""
        if self._complete:
            raise h2_protocol.BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= h2_protocol.BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        length = min(len(self.buffer), max_length)
        data = bytes(self.buffer[:length])
        del self.buffer[:length]
        if len(self.buffer) < h2_protocol.BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data
