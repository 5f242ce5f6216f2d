"""One model request on the ASGI lane: its body in, its response out, message by message."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from http import HTTPStatus

import trio

from llmux.downstream.asgi_watch import ModelRequest, collect, content_length
from llmux.errors import BackendBroke
from llmux.http.asgi_types import Message, Receive, Scope, Send
from llmux.openai.streams import EVENT_ENDS, is_at_boundary
from llmux.proxy.forward import ModelProxy
from llmux.proxy.held import Body
from llmux.proxy.lane import ClientLeft, EventStream, HeaderList, Tunnel
from llmux.upstream import Answer

NOTHING = nullcontext()

# Hypercorn adds its own to every response.
SERVER_HEADERS = frozenset({b"date", b"server"})


class AsgiLane(ModelRequest):
    """See `llmux.proxy.lane.Lane`.

    A response that is given up half-way is simply not finished: the server then closes the
    connection without the end that the framing promises.
    """

    tunnel: Tunnel | None = None  # ASGI has a scope of its own for WebSockets, other upgrades none

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
        super().__init__(scope, target, receive, send, body, stall_s=stall_s)
        self.method: bytes = scope["method"].encode("latin-1", "replace")
        self.headers: HeaderList = scope["headers"]
        self.scheme: str = scope["scheme"]
        self.upgrade = b""  # an ASGI server does not pass these on
        self._tail = b""  # of what was sent of a stream
        self._reads_no_more = trio.Event()

    @property
    def events(self) -> EventStream:
        """See `Lane`."""
        return self

    async def serve(self, proxy: ModelProxy) -> None:
        """See `Watched`."""
        try:
            await proxy.serve(self)
        finally:
            self._reads_no_more.set()

    async def _send(self, message: Message) -> None:
        await self.send(message)
        self.sent_bytes += len(message.get("body", b""))

    async def read_body(self) -> None:
        """Read the whole body; raises BodyTooLarge, QueueFull, BadRequest, ClientLeft."""
        self.reading = trio.CancelScope()
        try:
            await collect(
                self._receive,
                self.body,
                content_length(self.headers),
                most_bytes=self.body.most_bytes,
                stall_s=self._stall_s,
                scope=self.reading,
            )
        finally:
            self.reading = None
            self._reads_no_more.set()

    async def wait_left(self) -> None:
        """Return when the client has left; messages before that are dropped."""
        await self._reads_no_more.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def present(self) -> AbstractAsyncContextManager[None]:
        """See `Lane`: `Watched` cancels the task."""
        return NOTHING

    async def relay(self, answer: Answer, headers: HeaderList) -> None:
        """Send the backend's answer with these headers, piece by piece, to its end."""
        await self._start(answer.status, headers)
        chunk = sent = b""
        try:
            async for chunk in answer.chunks():
                # The last piece is marked as such, which saves an empty message behind it.
                more = not answer.has_ended
                await self._send({"type": "http.response.body", "body": chunk, "more_body": more})
                if not more:
                    return
                sent = chunk
                self._tail = self._tail[-4:] + chunk[-4:]
        except (trio.Cancelled, BackendBroke):
            if chunk is sent and answer.is_stream:
                self._stands_between = is_at_boundary(answer.headers, self._tail)
            raise
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def begin_events(self, headers: HeaderList) -> None:
        """See `EventStream`."""
        await self._start(HTTPStatus.OK, headers)

    async def send_events(self, data: bytes) -> None:
        """See `EventStream`."""
        self._stands_between = False
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._tail = self._tail[-4:] + data[-4:]
        self._stands_between = self._tail.endswith(EVENT_ENDS)

    async def end_events(self) -> None:
        """See `EventStream`."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def send_last_event(self, event: bytes) -> None:
        """See `EventStream`."""
        if self._stands_between:
            with suppress(ClientLeft):
                await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def reply(self, status: int, headers: HeaderList, body: bytes) -> None:
        """Send an answer of llmux's own."""
        await self._start(status, headers)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: HeaderList) -> None:
        self.has_answered = True
        self._reads_no_more.set()
        kept = [(name, value) for name, value in headers if name.lower() not in SERVER_HEADERS]
        await self._send({"type": "http.response.start", "status": status, "headers": kept})
