"""A request on the ASGI lane while its client is watched: when to stop waiting for a `send`."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from llmux.errors import BadRequest, BodyTooLarge, RequestTooSlow
from llmux.http import wire
from llmux.http.asgi_types import Message, Receive, Send
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import Body
from llmux.proxy.lane import ClientLeft

SENT_BYTES = 65536
"""The most that is sent in one message, so that a client has the stall limit for each such part."""

CUT_S = 0.25
"""How long a message may still take once its request is cut.

A client that reads has taken it by then, and is told in the next one why it was cut.
"""

LEFT_S = 1.0
"""How long the rest may take once the client has left, or seems to.

The server reports a disconnect at the end of every response, too (ASGI 3, HTTP: Disconnect), and
then has only to recycle the connection, in which it must not be cancelled.
"""

# The last: the server is closing the connection (it has begun `send_eof`).
SERVER_BREAKS = (*wire.BREAKS, trio.BusyResourceError)


class Watched:
    """What is served in a task of the lifespan, while the server's own task watches the client.

    Hypercorn shields its `send`: nothing can cancel a task that sends to a client which does not
    read. But when the app returns, Hypercorn closes the connection, and that ends the `send`. So
    whatever a client may not hold up (a stall, a cut, its own departure) ends `watching`.

    Attributes:
        scope: Around the task that serves it.
        watching: Around the server's own task; cancelled when there is no more to wait for.
        ended: Set when it is served.
        is_ending: The last of the response is being sent, or has been.
        sending_since: Since when the server has been taking a message; None if it is not.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self.scope = trio.CancelScope()
        self.watching = trio.CancelScope()
        self.ended = trio.Event()
        self.is_ending = False
        self.sending_since: float | None = None
        self._receive = receive
        self._asgi_send = send

    @property
    def is_sending(self) -> bool:
        """See `llmux.proxy.lane.Lane`."""
        return self.sending_since is not None

    async def run(self, proxy: ModelProxy) -> None:
        """Serve the request; what goes wrong with it must not end the lifespan that runs this."""
        try:
            with self.scope:
                await self.serve(proxy)
        except ClientLeft:
            pass
        finally:
            self.ended.set()
            if not self.is_ending:
                self.watching.cancel()

    async def serve(self, proxy: ModelProxy) -> None:
        """Serve it, whatever happens; raises ClientLeft if there is nobody to tell of that."""
        raise NotImplementedError

    async def wait_left(self) -> None:
        """Return when the client has left, or when it does not matter any more."""
        await self.ended.wait()

    async def watch(self) -> None:
        """What the server's own task does meanwhile."""
        try:
            with self.watching:
                await self.wait_left()
                if self.is_ending:
                    self.end_within(LEFT_S)
                    await self.ended.wait()
        finally:
            if not self.ended.is_set():
                self.scope.cancel()

    def end_within(self, seconds: float) -> None:
        """Have the server close the connection after so many seconds, if it has not ended then."""
        self.watching.deadline = min(self.watching.deadline, trio.current_time() + seconds)

    def unblock(self) -> None:
        """What was being done was cancelled: do not wait for a client that takes nothing."""
        if self.sending_since is not None:
            self.end_within(LEFT_S if self.is_ending else CUT_S)

    async def send(self, message: Message) -> None:
        """Have the server send something; raises ClientLeft."""
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            for start in range(0, len(body) - SENT_BYTES, SENT_BYTES):
                piece = body[start : start + SENT_BYTES]
                await self._pass_on({**message, "body": piece, "more_body": True})
                message = {**message, "body": body[start + SENT_BYTES :]}
            self.is_ending = not message.get("more_body", False)
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        self.sending_since = trio.current_time()
        try:
            await self._asgi_send(message)
        except SERVER_BREAKS:
            self.is_ending = False
            raise ClientLeft from None
        finally:
            self.sending_since = None


async def collect(
    receive: Receive,
    body: Body,
    length: int,
    *,
    most_bytes: int,
    stall_s: float,
    scope: trio.CancelScope,
) -> None:
    """Receive a request's body.

    Args:
        receive: Gets the server's next message.
        body: Where it is counted and kept.
        length: How long the client says it is; 0 if it does not.
        most_bytes: How long it may be.
        stall_s: Seconds in which a byte must come.
        scope: A new scope; cancelled, it ends the reading.

    Raises:
        LlmuxError: It is too long, too slow, or was cancelled.
        ClientLeft: The client left.
    """
    ends_at = trio.current_time() + body.longest_s
    body.announce(length)
    if length > most_bytes:
        raise BodyTooLarge(most_bytes)
    received = bytearray()  # a list of small pieces would take fifty times their bytes
    more = True
    scope.deadline = min(ends_at, trio.current_time() + stall_s)
    with scope:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            more = message.get("more_body", False)
            if piece := message.get("body", b""):
                if len(received) + len(piece) > most_bytes:
                    raise BodyTooLarge(most_bytes)
                body.grow(len(piece))
                received += piece
                scope.deadline = min(ends_at, trio.current_time() + stall_s)
    if scope.cancelled_caught:
        raise RequestTooSlow
    body.data = bytes(received)


def content_length(headers: Sequence[tuple[bytes, bytes]]) -> int:
    """What a client says of its body's length; 0 if nothing. Raises BadRequest."""
    for name, value in headers:
        if name.lower() == b"content-length":
            try:
                return int(value)
            except ValueError:
                raise BadRequest("Content-Length is not a number") from None
    return 0
