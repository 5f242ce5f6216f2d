"""One request to a model server: sent, answered, and the connection given back or closed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from llmux.errors import BackendBroke, BackendError, BackendRefused
from llmux.http.syntax import Headers
from llmux.upstream.answers import Answer, read_head
from llmux.upstream.connections import Connection, Origin, Pool

JOINED_BODY_BYTES = 65536
"""Smaller bodies are sent with the head; larger ones in a task of their own."""

STALLING_BYTES = 32768
"""Larger bodies may fill the receive window of a busy backend, and wait until it reads on."""

DEAD_PEER_S = 120.0
"""Seconds without any sign of a backend's host until it counts as gone (Go's net: 15 + 9 x 15)."""

MAX_INTERIM = 100
"""Limit for interim answers (1xx) before the final one; honest servers send one or two."""

BODY_METHODS = frozenset({b"POST", b"PUT", b"PATCH"})
"""Methods that send Content-Length even for an empty body (RFC 9110, section 8.6)."""


class Request:
    """A request as it goes over the wire.

    Attributes:
        method: The meaning of a response's framing depends on it (HEAD).
        head: Request line and headers, with the blank line.
        body: Emptied once the answer's head has arrived.
        is_upgrade: True if the caller asks to change the protocol.
    """

    __slots__ = ("body", "head", "is_upgrade", "method")

    def __init__(
        self, origin: Origin, method: bytes, target: bytes, headers: Headers, body: bytes
    ) -> None:
        if target != b"*":
            if not target.startswith(b"/"):  # behind a prefix it would be another path
                raise ValueError("a request's target must begin with a slash")
            target = origin.prefix + target
        self.method = method
        self.body = body
        line = b"%b %b HTTP/1.1" % (method, target)
        lines = [line, b"Host: " + origin.host_header]
        lines += [b"%b: %b" % header for header in headers]
        if body or method in BODY_METHODS:
            lines.append(b"Content-Length: %d" % len(body))
        self.head = b"\r\n".join([*lines, b"", b""])
        self.is_upgrade = b"\r\nupgrade:" in self.head.lower()
        # A line break or space in a header or target would start another header, or another
        # request (RFC 9112, sections 11.1 and 11.2).
        breaks = len(lines) + 1
        if (
            (self.head.count(b"\r"), self.head.count(b"\n")) != (breaks, breaks)
            or b"\0" in self.head
            or line.count(b" ") != 2
        ):
            raise ValueError("a request's parts may hold no CR, LF or NUL, nor its line a space")


class Exchange:
    """Context manager: send a request, and hold the connection while its answer is read.

    Leaving returns the connection to the pool if the answer was read to its end, and else closes
    it at once, so that the backend stops work that nobody waits for. Neither blocks, so both work
    when cancelled.
    """

    __slots__ = ("_connection", "_on_send", "_origin", "_pool", "_request", "sender")

    def __init__(
        self, origin: Origin, pool: Pool, request: Request, on_send: Callable[[], object]
    ) -> None:
        self._on_send = on_send
        self._origin = origin
        self._pool = pool
        self._request = request
        self._connection: Connection | None = None
        self.sender: trio.Nursery | None = None
        """Nursery for sending the request while its answer is read; None to send it first."""

    async def __aenter__(self) -> Answer:
        """Send, and return once the final status line and headers have arrived.

        Raises:
            BackendRefused: No connection, and nothing was sent.
            BackendError: No answer.
        """
        self._pool.in_use += 1
        try:
            return await self._answer()
        except BaseException:
            self._leave()
            raise

    async def __aexit__(self, *_error: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._pool.in_use -= 1
        if self._connection is not None:
            self._pool.put_back(self._connection)

    async def _answer(self) -> Answer:
        self._connection = self._pool.take()
        if self._connection is None:
            self._connection = await self._origin.connect()
            return await self._ask(self._connection)
        try:
            return await self._ask(self._connection)
        except BackendError:
            if self._connection.has_answered:
                raise
        return await self._ask_again()

    async def _ask_again(self) -> Answer:
        """Retry: the idle connection was closed unanswered, most likely before the request came.

        A server may close an idle connection at any time (RFC 9112, section 9.5), and section 9.3.1
        lets a client retry a request that it knows was not processed.
        """
        assert self._connection is not None
        self._pool.put_back(self._connection)  # which closes it, unfinished as it is
        try:
            self._connection = await self._origin.connect()
        except BackendRefused as error:
            # Not BackendRefused, which allows a retry: the first try may have crashed the backend.
            raise BackendError(f"closed the connection, then refused: {error}") from error
        return await self._ask(self._connection)

    async def _ask(self, connection: Connection) -> Answer:
        self._pool.add(connection)
        connection.begin()
        self._on_send()
        may_stall, dead_s = len(self._request.body) > STALLING_BYTES, self._origin.dead_peer_s
        if may_stall:
            connection.allow_stall(dead_s, allowed=True)
        try:
            if self.sender is None:
                await connection.send(self._request.head + self._request.body)
            else:
                self.sender.start_soon(connection.send, self._request.head, self._request.body)
            head = await read_head(connection)
            interim = 0
            while head.status < 200 and head.status != 101:
                interim += 1
                if interim > MAX_INTERIM:
                    raise BackendBroke(f"more than {MAX_INTERIM} interim answers")
                head = await read_head(connection)
            if head.status == 101 and not self._request.is_upgrade:
                raise BackendBroke("changed the protocol unasked")
            if may_stall:
                connection.allow_stall(dead_s, allowed=False)
            self._request.body = b""  # it will not be sent again
            return Answer(head, self._request.method, connection)
        except BackendBroke as error:
            raise BackendError(str(error)) from error


@asynccontextmanager
async def uploading(exchange: Exchange) -> AsyncIterator[Answer]:
    """Run an exchange whose request is sent by a task of its own.

    A backend may answer before it has read a large body, and read no more of the body until its
    answer is taken.
    """
    error: Exception | None = None
    async with trio.open_nursery() as nursery:
        exchange.sender = nursery
        try:
            async with exchange as answer:
                yield answer
        except Exception as caught:
            error = caught  # raised again outside, or the nursery would wrap it in a group
        # The sender is done by now: leaving closed the connection of an unfinished upload.
    if error is not None:
        raise error


class Backend:
    """One model server and its idle connections.

    An exchange takes the connection that was used last, or opens one; sends; reads up to the end
    of the headers; and yields an `Answer`, whose body the caller iterates over. From then on each
    buffer received costs one receive and at most one call into llhttp.

    A connection carries another request only if the last one was sent whole, its answer read to
    the end, and nothing came after it. A server may close an idle connection at any time: if that
    has arrived, it is seen before use; if it arrives later, as an answer that never begins, the
    request is sent once more, on a new connection.

    Connecting has a deadline, an answer has none: a model may think as long as its client waits.
    """

    def __init__(
        self,
        base_url: str,
        *,
        connect_timeout_s: float = 10.0,
        dead_peer_s: float | None = DEAD_PEER_S,
    ) -> None:
        """Connect to nothing yet.

        Args:
            base_url: http or https; its path is put before every target. Or `unix:/run/x.sock`.
            connect_timeout_s: Seconds for a connection, TLS handshake included.
            dead_peer_s: Seconds without any sign of its host until that counts as gone (TCP
                keep-alive); None: the system's default.

        Raises:
            ValueError: Not such a URL.
        """
        self.base_url = base_url
        self._origin = Origin(base_url, connect_timeout_s, dead_peer_s)
        self._pool = Pool()

    def __repr__(self) -> str:
        return f"<Backend {self.base_url}, {len(self._pool)} idle, {self._pool.in_use} in use>"

    def exchange(
        self,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        on_send: Callable[[], object] = lambda: None,
    ) -> AbstractAsyncContextManager[Answer]:
        """Send one request; entering yields its answer, once the headers are in.

        Args:
            method: As it goes over the wire.
            target: Path and query, or an asterisk, which stands for the whole server.
            headers: Without Host and Content-Length, which are added, and without hop-by-hop ones,
                except Connection and Upgrade to ask for an upgrade.
            body: The whole body.
            on_send: Called before the first byte goes out, each time that it is sent.

        Raises:
            ValueError: Not a target, or CR, LF or NUL that would change the request.
            BackendRefused: On entering: no connection, and nothing was sent.
            BackendError: On entering: no answer.
        """
        request = Request(self._origin, method, target, headers, body)
        exchange = Exchange(self._origin, self._pool, request, on_send)
        return exchange if len(body) < JOINED_BODY_BYTES else uploading(exchange)

    def heard_at(self) -> float:
        """Return when a byte of an answer arrived last (Trio's clock, seconds); -inf: never."""
        return self._pool.heard_at()

    def close_idle(self) -> None:
        self._pool.close_idle()

    def close(self) -> None:
        """Close the idle connections now, and those in use once they are done."""
        self._pool.close()
