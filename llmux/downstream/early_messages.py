"""Listen to the client of a WebSocket before there is a backend for it, on the fast lane."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from llmux.errors import LlmuxError
from llmux.http import wire
from llmux.http.wsframes import TEXT, frame
from llmux.proxy.held import Body
from llmux.proxy.lane import ClientLeft
from llmux.proxy.opening import SILENCE_S, EarlyFrames


class Connection(Protocol):
    """The client's connection, as far as it is used here.

    Attributes:
        buffer: Received and not used yet.
    """

    buffer: bytes

    async def receive(self) -> bytes:
        """Return the next bytes; nothing once the client has closed its side."""
        ...

    async def send(self, data: bytes) -> None:
        """Send; raises ClientLeft."""
        ...


class EarlyMessages:
    """Messages that the client of a WebSocket sends before there is a backend for it.

    Pings are answered meanwhile: clients give up on a server that leaves them unanswered for
    seconds, and a model may take minutes to wake.

    Attributes:
        frames: The frames received.
    """

    def __init__(self, connection: Connection, body: Body) -> None:
        self.frames = EarlyFrames()
        self._connection = connection
        self._body = body
        self._listening: trio.CancelScope | None = None
        self._is_stopped = False
        self._ended: trio.Event | None = None

    async def hear_first(self, greeting: bytes) -> None:
        """Listen until the first message is whole."""
        data, self._connection.buffer = self._connection.buffer, b""
        if data:
            await self._take(data)
        if greeting and not (self.frames.is_whole or self.frames.has_begun):
            with trio.move_on_after(SILENCE_S) as silence:
                data = await self._receive()
            if silence.cancelled_caught:
                await self._connection.send(frame(TEXT, greeting))
            else:
                await self._take(data)
        while not self.frames.is_whole:
            await self._take(await self._receive())

    @asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """Listen for as long as the context lasts, or until it is stopped.

        Raises:
            ClientLeft: The client has closed the WebSocket.
            LlmuxError: The client has sent too much, or not a client's frames.
        """
        error: Exception | None = None
        self._ended = trio.Event()

        async def attend() -> None:
            nonlocal error
            try:
                await self._attend()
            except (ClientLeft, LlmuxError) as caught:
                error = caught
                nursery.cancel_scope.cancel()
            finally:
                assert self._ended is not None
                self._ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(attend)
            try:
                yield
            except Exception as caught:
                error = error or caught  # raised again outside, or the nursery would wrap it
            await self.stop()
        if error is not None:
            raise error

    async def _attend(self) -> None:
        while not self._is_stopped:
            data = b""
            with trio.CancelScope() as self._listening:
                data = await self._receive()
            self._listening = None
            if data:
                await self._take(data)

    async def stop(self) -> None:
        """Stop listening; the frames received stay."""
        self._is_stopped = True
        if self._listening is not None:
            self._listening.cancel()
        if self._ended is not None:
            await self._ended.wait()

    async def _receive(self) -> bytes:
        try:
            data = await self._connection.receive()
        except wire.BREAKS:
            data = b""
        if not data:
            raise ClientLeft
        return data

    async def _take(self, data: bytes) -> None:
        self._body.grow(len(data))
        if answer := self.frames.feed(data):
            await self._connection.send(answer)
        if self.frames.has_closed:
            raise ClientLeft
