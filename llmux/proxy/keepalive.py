"""Comments for clients that wait for a stream, so that nobody on the way gives up on a silent line.

Off unless `policy.waiting_keepalive_secs` is set: whoever gets them has its 200 before it is known
how its request ends, and hears of a failure in an event.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from llmux.http.syntax import Headers
from llmux.switching.inflight import is_cancellation

COMMENT = b": waiting for the model\n\n"
"""A line that begins with a colon says nothing (WHATWG HTML, section 9.2.6)."""

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Events(Protocol):
    """A client that may be sent a stream of events."""

    async def begin_events(self, headers: Headers) -> None:
        """Send a status line, 200, and headers."""
        ...

    async def send_events(self, data: bytes) -> None:
        """Send some of the stream."""
        ...


class KeptAlive:
    """One client that is told every so often that its request still waits.

    Attributes:
        has_begun: Whether it has its 200; all that follows are events.
        is_over: Whether its backend has begun to answer.
        answered: Headers of the answer whose body is waited for; nothing before.
    """

    def __init__(self, client: Events, interval_s: float, headers: Callable[[], Headers]) -> None:
        """Send nothing yet.

        Args:
            client: Who is told.
            interval_s: How often, in seconds.
            headers: Called for more headers when the status line goes out.
        """
        self.has_begun = False
        self.is_over = False
        self.answered: Headers = ()
        self._client = client
        self._interval_s = interval_s
        self._headers = headers
        self._broke_with: Exception | None = None
        self._sending = trio.Lock()  # a comment goes out whole, or not at all

    @property
    def hears_events_of_llmux(self) -> bool:
        """Whether it has its 200, and nothing but comments yet."""
        return self.has_begun and not self.is_over

    def give_way(self) -> bool:
        """Send nothing from now on, if nothing has been sent; returns whether that is so."""
        self.is_over = self.is_over or not self.has_begun
        return not self.has_begun

    async def stop(self) -> None:
        """Send no more, and return when the last is out."""
        async with self._sending:
            self.is_over = True

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Send comments for as long as the context lasts, or until `stop`."""
        error: Exception | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_comments, nursery.cancel_scope)
                try:
                    yield
                except Exception as caught:
                    error = caught  # raised again outside, or the nursery would wrap it in a group
                nursery.cancel_scope.cancel()
        except BaseException as ended:
            # A cut has cancelled the connection's scope, too; what it raised says more.
            if error is None or not is_cancellation(ended):
                raise
        error = error or self._broke_with
        if error is not None:
            raise error

    async def _send_comments(self, request: trio.CancelScope) -> None:
        try:
            while True:
                await trio.sleep(self._interval_s)
                async with self._sending:
                    if self.is_over:
                        return
                    if not self.has_begun:
                        self.has_begun = True
                        await self._client.begin_events(
                            [*HEADERS, *self.answered, *self._headers()]
                        )
                    await self._client.send_events(COMMENT)
        except Exception as error:  # the client has left: so has its request
            self._broke_with = error
            request.cancel()
