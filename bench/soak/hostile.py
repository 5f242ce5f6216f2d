"""A hostile client: the connections and helpers that its acts need."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from bench.soak.backend.answers import MARKER
from bench.soak.lines import connect
from bench.soak.run import BROKEN, Run
from bench.soak.settings import KEY

SMALL_BUFFER_BYTES = 4 << 10


@dataclass
class Foe:
    """A hostile client, about to act.

    Attributes:
        flooding: Lock of the client that floods llmux with connections.
    """

    run: Run
    rng: random.Random
    address: str
    flooding: trio.Lock

    @asynccontextmanager
    async def connection(self, *, reads: bool = True) -> AsyncIterator[trio.SocketStream]:
        """Open a connection, to be reset or closed at the end."""
        buffer = 0 if reads else SMALL_BUFFER_BYTES
        stream = await connect(self.run.stage.port, self.address, receive_buffer=buffer)
        try:
            yield stream
        finally:
            stream.socket.close()

    async def throw(self, *pieces: bytes, reads: bool = True, pause_s: float = 0.0) -> bytes:
        """Send raw bytes on a new connection, and read the response for a while.

        Args:
            pieces: Sent one after the other.
            reads: Read what comes.
            pause_s: Pause after each piece.
        """
        async with self.connection(reads=reads) as stream, trio.open_nursery() as nursery:
            received = b""

            async def take() -> None:
                nonlocal received
                with suppress(*BROKEN):
                    while data := await stream.receive_some(1 << 16):
                        received = received or bytes(data)
                nursery.cancel_scope.cancel()

            if reads:
                nursery.start_soon(take)
            with suppress(*BROKEN):
                await send_all(stream, pieces, pause_s)
            await trio.sleep(self.rng.choice((0.2, 1, 5)) if reads else 5)
            nursery.cancel_scope.cancel()
        return received

    @property
    def model(self) -> str:
        """Pick an existing model."""
        return self.rng.choice(self.run.stage.members[:-1]).name

    def marked_path(self, how: str) -> str:
        """Make a path that no backend may ever see, with a word on how it would get there."""
        return f"/upstream/{self.model}/{MARKER.decode()}-{how}"

    def marked(self, how: str) -> bytes:
        """Make a request that must never reach a backend."""
        return (
            f"GET {self.marked_path(how)} HTTP/1.1\r\nHost: localhost\r\n{self.key}\r\n"
        ).encode()

    @property
    def key(self) -> str:
        """Make a header with the key, or none."""
        return self.rng.choice(("", f"Authorization: Bearer {KEY}\r\n"))

    def size(self, most: int) -> int:
        """Draw a size up to this one, more often a large one."""
        return int(most * self.rng.uniform(0.2, 1))


Act = Callable[[Foe], Awaitable[object]]


async def send_all(stream: trio.SocketStream, pieces: Iterable[bytes], pause_s: float) -> None:
    """Send one piece after the other."""
    for piece in pieces:
        await stream.send_all(piece)
        if pause_s:
            await trio.sleep(pause_s)
