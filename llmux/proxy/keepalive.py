"""Keep-alive comments for clients that wait for a stream, so that no proxy times out on silence.

Off unless `policy.waiting_keepalive_secs` is set, since it has a price: the client gets its 200
before the outcome is known, and errors come as events.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import trio

from llmux.http.syntax import Headers
from llmux.switching.inflight import is_cancellation

COMMENT = b": waiting for the model\n\n"
"""Clients ignore a line that begins with a colon (WHATWG HTML, section 9.2.6)."""

HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Events(Protocol):
    """A response that may become a stream of events; part of `lane.EventStream`."""

    async def begin_events(self, headers: Headers) -> None:
        """Send status 200 and these headers."""
        ...

    async def send_events(self, data: bytes) -> None: ...


class KeptAlive:
    """Sends one client a comment at intervals while its request waits.

    Args:
        client: The response.
        interval_s: Seconds between comments, and before the first.
        headers: Called when the status line goes out, for headers to add.

    Attributes:
        has_begun: True once the client has its 200; only events may follow.
        is_over: True once the backend has begun to answer; no more comments are sent.
        answered: Headers of a backend's answer whose body is still to come, to send with the 200.
    """

    def __init__(self, client: Events, interval_s: float, headers: Callable[[], Headers]) -> None:
        self.has_begun = False
        self.is_over = False
        self.answered: Headers = ()
        self._client = client
        self._interval_s = interval_s
        self._headers = headers
        self._broke_with: Exception | None = None
        self._sending = trio.Lock()  # a comment goes out whole, or not at all

    @property
    def has_only_comments(self) -> bool:
        """True if the client has its 200, and nothing but comments yet."""
        return self.has_begun and not self.is_over

    def give_way(self) -> bool:
        """Stop before the first comment; returns False if that is too late."""
        self.is_over = self.is_over or not self.has_begun
        return not self.has_begun

    async def stop(self) -> None:
        """Send no more comments; returns once the last is out."""
        async with self._sending:
            self.is_over = True

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Send comments while the context lasts, or until `stop`."""
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
            # A cut also cancels the connection's scope; the error raised inside says more.
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
