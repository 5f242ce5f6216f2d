"""Watch the client of a request on the ASGI lane: when to stop waiting for a `send`."""

from __future__ import annotations

import trio

from llmux.errors import BadRequest, BodyTooLarge, RequestTooSlow
from llmux.http import wire
from llmux.http.asgi_types import Message, Receive, Scope, Send
from llmux.http.syntax import Headers
from llmux.observe.logs import get_logger
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import Body
from llmux.proxy.lane import ClientLeft

SENT_BYTES = 65536
"""Limit for one message, so that the stall limit applies to each such part of a large body."""

CUT_S = 0.25
"""How long a message may still take once its request is cut.

A client that reads has taken it by then, and gets the reason for the cut in the next one.
"""

LEFT_S = 1.0
"""How long the rest may take once the client has left, or seems to.

The server reports a disconnect at the end of every response, too (ASGI 3, HTTP: Disconnect), and
then has only to recycle the connection, in which it must not be cancelled.
"""

# The last: the server is closing the connection (it has begun `send_eof`).
SERVER_BREAKS = (*wire.BREAKS, trio.BusyResourceError)

log = get_logger(__name__)


class Watched:
    """A request served in a task of the lifespan, while the server's own task watches the client.

    Hypercorn shields its `send`: nothing can cancel a task that sends to a client which does not
    read. But when the app returns, Hypercorn closes the connection, and that ends the `send`. So
    every reason to give up on a client (a stall, a cut, its departure) ends `watching`.

    Attributes:
        scope: Around the task that serves the request.
        watching: Around the server's own task; cancelled when there is no more to wait for.
        ended: Set when the request has been served.
        is_ending: True once the last of the response is being sent.
        sending_since: When the server began to take a message; None if it is taking none.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self.scope = trio.CancelScope()
        self.watching = trio.CancelScope()
        self.ended = trio.Event()
        self.is_ending = False
        self.sending_since: float | None = None
        self._is_given_up = False
        self._receive = receive
        self._asgi_send = send

    @property
    def is_sending(self) -> bool:
        """See `llmux.proxy.lane.Lane`."""
        return self.sending_since is not None

    async def run(self, proxy: ModelProxy) -> None:
        """Serve the request, in the lifespan's nursery, which no error of a request may end."""
        try:
            with self.scope:
                await self.serve(proxy)
        except ClientLeft:
            pass
        except Exception:
            # Also what was raised beside a cancellation: no `except` inside the scope catches that.
            log.exception("request_failed")
        finally:
            self.ended.set()
            if not self.is_ending:
                self.watching.cancel()

    async def serve(self, proxy: ModelProxy) -> None:
        """Serve the request; raises ClientLeft, and no other error that a client causes."""
        raise NotImplementedError

    async def wait_left(self) -> None:
        """Return when the client has left, or a departure no longer matters."""
        await self.ended.wait()

    async def watch(self) -> None:
        """Run in the server's own task until the request is served or given up."""
        try:
            with self.watching:
                await self.wait_left()
                if self.is_ending:
                    self.end_within(LEFT_S)
                    await self.ended.wait()
        finally:
            self._is_given_up = True
            if not self.ended.is_set():
                self.scope.cancel()

    def end_within(self, seconds: float) -> None:
        """Have the server close the connection after these seconds, unless the request ends."""
        self.watching.deadline = min(self.watching.deadline, trio.current_time() + seconds)

    def unblock(self) -> None:
        """See `llmux.proxy.lane.Lane`: a shielded `send` outlives the cancelled scope."""
        if self.sending_since is not None:
            self.end_within(LEFT_S if self.is_ending else CUT_S)

    async def send(self, message: Message) -> None:
        """Pass a message to the server, large bodies in parts; raises ClientLeft."""
        if message["type"] == "http.response.body":
            body = message.get("body", b"")
            for start in range(0, len(body) - SENT_BYTES, SENT_BYTES):
                piece = body[start : start + SENT_BYTES]
                await self._pass_on({**message, "body": piece, "more_body": True})
                message = {**message, "body": body[start + SENT_BYTES :]}
            self.is_ending = not message.get("more_body", False)
        await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if self._is_given_up:  # the server has closed the connection, and takes no message
            raise ClientLeft
        self.sending_since = trio.current_time()
        try:
            await self._asgi_send(message)
        except SERVER_BREAKS:
            self.is_ending = False
            raise ClientLeft from None
        finally:
            self.sending_since = None


class ModelRequest(Watched):
    """The part of `llmux.proxy.lane.Lane` that requests and WebSockets have in common here."""

    def __init__(
        self,
        scope: Scope,
        target: bytes,
        receive: Receive,
        send: Send,
        body: Body,
        *,
        stall_s: float,
    ) -> None:
        super().__init__(receive, send)
        self.body = body
        self.target = target
        self.peer: str | None = scope["client"][0] if scope.get("client") else None
        self.has_answered = False
        # Hypercorn sends nothing for a task that is cancelled.
        self.cut_scope: trio.CancelScope | None = None
        self.reading: trio.CancelScope | None = None
        self.sent_bytes = 0
        self._stall_s = stall_s
        self._stands_between = False  # True between two events, lines or messages to the client


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
        receive: ASGI's callable.
        body: Counts and keeps the data.
        length: Content-Length in bytes; 0 if the client gives none.
        most_bytes: Limit for the body.
        stall_s: Seconds without a byte after which the request is refused.
        scope: A new scope; cancelling it ends the reading.

    Raises:
        LlmuxError: Too long, too slow, or cancelled.
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


def content_length(headers: Headers) -> int:
    """Return the Content-Length in bytes; 0 if there is none. Raises BadRequest."""
    for name, value in headers:
        if name.lower() == b"content-length":
            try:
                return int(value)
            except ValueError:
                raise BadRequest("Content-Length is not a number") from None
    return 0
