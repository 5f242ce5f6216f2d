"""HTTP/1 on Hypercorn: a strict reader checks requests, and passes them to h11 one at a time."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus
from typing import Any

import h11
from h11._state import MIGHT_SWITCH_PROTOCOL
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import Body, EndBody, Event, Response, StreamClosed
from hypercorn.protocol.h11 import (
    H2CProtocolRequiredError,
    H2ProtocolAssumedError,
    H11Protocol,
    H11WSConnection,
)

from llmux.errors import BadRequest, LlmuxError
from llmux.http.heads import MAX_HEAD_BYTES, response_head
from llmux.http.strict import RequestReader
from llmux.openai.answers import error_answer
from llmux.openai.dialects import dialect_of_head
from llmux.openai.headers import header
from llmux.server.hypercorn_side.rules import LINGER_S, RULES
from llmux.server.hypercorn_side.sockets import Sending, has_room
from llmux.server.hypercorn_side.websocket import HoldingWSStream

NO_HTTP2 = (
    b"\0\0\0\x04\0\0\0\0\0"  # SETTINGS, empty
    b"\0\0\x32\x07\0\0\0\0\0"  # GOAWAY, with a text
    b"\0\0\0\0\0\0\0\x0d"  # no stream was served; HTTP_1_1_REQUIRED
    b"HTTP/2 is off here (http2: true allows it)"
)
"""Tells an HTTP/2 client to retry over HTTP/1.1 (RFC 9113, sections 6.8 and 7)."""

BUSY = (h11.DONE, MIGHT_SWITCH_PROTOCOL)
"""h11's states of a client whose request is complete but not answered yet."""


LOOK_S = 1.0
"""Interval between checks whether the client has left, while nothing is read from it."""


class StrictConnection(h11.Connection):
    """An h11 connection that is never paused.

    A request that asks for another protocol pauses h11. Hypercorn would then stop reading, and miss
    that its client leaves.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    def next_event(self) -> Any:
        event = super().next_event()
        return h11.NEED_DATA if event is h11.PAUSED else event


class StrictH11Protocol(H11Protocol):
    """One HTTP/1 connection; h11 sees only bytes of valid requests, one request at a time.

    Hypercorn passes everything on to h11, which accepts bare LF and folded fields, and treats
    bytes after a connection's last request as an error. Hypercorn answers that error in place of
    the request, or cuts the response to it.
    """

    connection: h11.Connection | H11WSConnection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = StrictConnection()
        self._reader = RequestReader(RULES.most_fields)
        self._refusal: LlmuxError | None = None
        self._unsent_bytes = -1  # of the response; negative if it has no Content-Length
        self._is_over = False  # nothing more may be sent
        self._is_closed = False
        self._watcher = self.context.single_task_class()

    async def handle(self, event: ConnectionEvent) -> None:
        """Handle received bytes, or the end of the connection."""
        if not isinstance(event, RawData):
            self._is_closed = True
            await self._watcher.stop()
            await super().handle(event)
            # Wake the task that waits for the end of a request; Hypercorn does not.
            await self.can_read.set()
        elif isinstance(self.connection, H11WSConnection):
            if not self._is_over:
                await super().handle(event)
        elif event.data:  # empty at the end of input, which a Closed event follows
            self._reader.receive(event.data)
            await self._pass_on()

    async def _pass_on(self) -> None:
        """Pass the pieces that the reader has checked on to h11."""
        reader = self._reader
        try:
            if reader.speaks_http2:
                await self._begin_http2()
                return
            while (piece := reader.next_piece()) is not None:
                if piece.head is not None and not await self._until_free():
                    reader.end()
                    return
                await super().handle(RawData(data=piece.data))
                if isinstance(self.connection, H11WSConnection):
                    rest, reader.rest = reader.rest, b""
                    if rest:
                        await super().handle(RawData(data=rest))
                    return
        except H2CProtocolRequiredError as error:
            error.data += reader.rest
            raise
        except LlmuxError as error:
            await self._refuse(error)

    async def _begin_http2(self) -> None:
        data = self._reader.rest
        self._reader.end()
        if RULES.http2:
            raise H2ProtocolAssumedError(data)
        self._is_over = True
        await self.send(RawData(data=NO_HTTP2))
        await self._linger()

    async def _check_protocol(self, event: h11.Request) -> None:
        if RULES.http2:
            await super()._check_protocol(event)

    async def _until_free(self) -> bool:
        """Wait until the previous request is answered; returns False if no other can follow it."""
        if self.connection.their_state in BUSY and not self._is_closed and self._has_room:
            # Nothing is read in the meantime, so reading cannot reveal that the client leaves.
            await self._watcher.restart(self.task_group, self._watch_client)
            while self.connection.their_state in BUSY and not self._is_closed:
                await self.can_read.clear()
                await self.can_read.wait()
            await self._watcher.stop()
        return self.connection.their_state is h11.IDLE and not self._is_closed

    @property
    def _has_room(self) -> bool:
        return has_room(self.task_group)

    async def _watch_client(self) -> None:
        """Close the connection once its client has closed its side.

        Not at once: a client that only half-closed may still wait for its responses.
        """
        while not (isinstance(self.send, Sending) and self.send.has_left()):
            await self.context.sleep(LOOK_S)
        await self._close_late()

    async def _refuse(self, error: LlmuxError) -> None:
        """Answer the incoming request with an error, after the responses that precede it."""
        if self.connection.their_state in BUSY:
            self._refusal = error  # `_maybe_recycle` sends it after the current response
        elif self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._send_error(error)
        else:
            await self.send(Closed())

    async def _send_error(self, error: LlmuxError) -> None:
        self._is_over = True
        self._reader.end()
        status, headers, body = error_answer(error, dialect_of_head(self._reader.line))
        headers = [*headers, *self.config.response_headers("h11"), (b"connection", b"close")]
        await self.send(RawData(data=response_head(status, headers) + body))
        await self._close_stream()
        await self._linger()

    async def _send_error_response(self, status_code: int) -> None:  # noqa: ARG002 - Hypercorn passes it
        # Hypercorn would send an empty body instead of llmux's error format.
        await self._send_error(BadRequest("The request is not HTTP/1.1"))

    async def stream_send(self, event: Event) -> None:
        """Send an event of the app, unless the connection's last response is complete."""
        if isinstance(event, Response) and event.status_code >= HTTPStatus.OK and self._is_last:
            closing = [*event.headers, (b"connection", b"close")]
            event = replace(event, headers=closing)
        if self._is_over:
            return
        if isinstance(event, Response) and self.connection.our_state is h11.SEND_BODY:
            # A second head: a task that was cancelled while it sent the first one cannot know that
            # the first one is out.
            self._is_over = True
            await self.send(Closed())
            return
        if isinstance(event, Response):
            length = header(event.headers, b"content-length")
            self._unsent_bytes = int(length) if length.isdigit() else -1
        elif isinstance(event, Body):
            self._unsent_bytes -= len(event.data)
        elif isinstance(event, StreamClosed) and self._is_cut_after_last_byte:
            await super().stream_send(EndBody(stream_id=event.stream_id))
        await super().stream_send(event)

    async def _send_h11_event(self, event: Any) -> None:
        try:
            await super()._send_h11_event(event)
        except h11.LocalProtocolError:
            # Hypercorn notes that a response has begun only when its head has been sent. If the app
            # ends before that, Hypercorn sends a second head, which h11 refuses. Raised at the end
            # of a request, that error would end the server.
            await self.send(Closed())

    @property
    def _is_cut_after_last_byte(self) -> bool:
        """True if the app ended after the whole body was sent, but before it said so.

        The client has the complete response and may reuse the connection.
        """
        return self._unsent_bytes == 0 and self.connection.our_state is h11.SEND_BODY

    @property
    def _is_last(self) -> bool:
        """True if the connection ends after the response that begins now.

        It must end if the client is still sending its request: the rest of that request will not be
        read. `Connection: close` tells the client not to send another one.
        """
        return self.connection.their_state not in BUSY or self.context.terminated.is_set()

    async def _maybe_recycle(self) -> None:
        is_unread = not self._reader.has_ended and self.connection.their_state not in BUSY
        # Nothing can follow a message that was cut off, so the client need not read on.
        is_torn = isinstance(self.stream, HoldingWSStream) and self.stream.is_torn
        if is_unread and not is_torn and not self._is_closed:
            # The client is still sending: the rest of its request, or WebSocket frames.
            self._is_over = True
            await self._close_stream()
            await self.can_read.set()
            await self._linger()
            return
        await super()._maybe_recycle()
        if self._refusal is not None and self.connection.their_state is h11.IDLE:
            await self._send_error(self._refusal)

    async def _linger(self) -> None:
        """Half-close now, and close once the client has closed its side or `LINGER_S` is over."""
        if isinstance(self.send, Sending):
            await self.send.end()
        if self._is_closed:
            return
        if self._has_room:
            await self._watcher.restart(self.task_group, self._close_late)
        else:
            await self.send(Closed())

    async def _close_late(self) -> None:
        await self.context.sleep(LINGER_S)
        self.task_group.spawn(self._close)  # in a task of its own, since it stops this one

    async def _close(self) -> None:
        await self.send(Closed())
        # Hypercorn's asyncio server reports the end only from the task that reads.
        await self.handle(Closed())
