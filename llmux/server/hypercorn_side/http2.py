"""HTTP/2 on Hypercorn: one stream's error stays in that stream, and floods end."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
from h2.utilities import HeaderValidationFlags, validate_headers
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as ConnectionEvent
from hypercorn.protocol.events import (
    Body,
    Data,
    EndBody,
    EndData,
    Event,
    Response,
    StreamClosed,
)
from hypercorn.protocol.h2 import H2Protocol
from priority.priority import MissingStreamError

from llmux.errors import BadRequest, LlmuxError, TooManyFields
from llmux.http.heads import METHOD, VISIBLE, check_host
from llmux.openai.answers import error_answer
from llmux.openai.dialects import dialect_of
from llmux.server.hypercorn_side.frames import ANSWER_EARNS, SENT_EARNS, Budget, FrameCutter
from llmux.server.hypercorn_side.http1 import NO_HTTP2
from llmux.server.hypercorn_side.rules import RULES, YIELD_EVENTS
from llmux.server.hypercorn_side.sockets import has_room
from llmux.server.hypercorn_side.streams import StreamErrorConnection

REQUEST = HeaderValidationFlags(
    is_client=False, is_trailer=False, is_response_header=False, is_push_promise=False
)

TABLE_BYTES = 4096
"""What is kept of sent headers, at most (HPACK's default); a client may ask for 4 GiB."""


class BoundedH2Protocol(H2Protocol):
    """One connection of HTTP/2.

    Hypercorn ends it, with all streams, when DATA follows an early answer; takes as many frames as
    come, without a break; leaves a response that is given up without an end; and, when the client
    has left, leaves the task that sends to it waiting.
    """

    connection: StreamErrorConnection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        made = self.connection
        self.connection = StreamErrorConnection(made.config)
        self.connection.DEFAULT_MAX_INBOUND_FRAME_SIZE = made.DEFAULT_MAX_INBOUND_FRAME_SIZE
        self.connection.local_settings = made.local_settings
        # What is wrong with a request's headers is found here: h2 would end the connection.
        self.connection.config.validate_inbound_headers = False
        self._frames = FrameCutter(YIELD_EVENTS)
        self._budget = Budget(self.context.time())
        self._is_upgrade = False
        self._answered: set[int] = set()  # streams that have the head of their answer

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        """Begin; with the request that has asked for HTTP/2 if there was one."""
        if not RULES.http2:  # TLS has negotiated it all the same
            self.closed = True
            await self.send(RawData(data=NO_HTTP2))
            await self.send(Closed())
            return
        self._is_upgrade = headers is not None  # which was checked, as one of HTTP/1
        await super().initiate(headers, settings)
        self._is_upgrade = False

    async def handle(self, event: ConnectionEvent) -> None:
        """Take what was received, or the news that the connection is closed."""
        if not isinstance(event, RawData):
            await self._close_buffers()
            await super().handle(event)
            return
        for data, cost in self._frames.cut(event.data):
            if self.closed:
                return
            if not self._budget.spend(cost, self.context.time()):
                await self._end_flood()
                return
            await super().handle(RawData(data=data))
            await self.context.sleep(0)

    async def _end_flood(self) -> None:
        self.connection.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
        await self._flush()
        await self.handle(Closed())
        await self.send(Closed())

    async def send_task(self) -> None:
        """Send what streams have, until the connection ends.

        In asyncio, requests may outlive this task when all are cancelled, and would wait for ever
        for it to send the rest of their answers.
        """
        try:
            await super().send_task()
        finally:
            await self._close_buffers()  # noqa: ASYNC102 - it waits for nothing

    async def _close_buffers(self) -> None:
        """Nothing that waits to be sent will be."""
        for buffer in tuple(self.stream_buffers.values()):
            await buffer.close()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.PriorityUpdated):
                continue  # deprecated (RFC 9113, section 5.3.2), and more to keep for each
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                # Answered already. What is not read counts as read, or it would fill the window.
                length = event.flow_controlled_length or 0
                self.connection.acknowledge_received_data(length, event.stream_id)
                continue
            if isinstance(event, h2.events.RemoteSettingsChanged):
                encoder = self.connection.encoder
                encoder.header_table_size = min(TABLE_BYTES, encoder.header_table_size)
            if isinstance(event, h2.events.StreamReset):
                buffer = self.stream_buffers.get(event.stream_id)
                if buffer is not None:
                    await buffer.close()
            await super()._handle_events([event])
        await self._flush()

    async def _create_stream(self, request: h2.events.RequestReceived) -> None:
        if self.connection.has_too_many:
            self.connection.reset_stream(request.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        try:
            if not self._is_upgrade:
                check_request(request.headers or [])
        except LlmuxError as error:
            self._refuse(request.stream_id or 0, error, request.headers or [])
        else:
            await super()._create_stream(request)

    def _refuse(
        self, stream_id: int, error: LlmuxError, request: list[tuple[bytes, bytes]]
    ) -> None:
        path = next((value for name, value in request if name == b":path"), b"")
        status, headers, body = error_answer(error, dialect_of(path, request))
        lines = [(b":status", b"%d" % status), *self.config.response_headers("h2")]
        with suppress(h2.exceptions.ProtocolError):  # it is closed already
            if len(body) > self.connection.local_flow_control_window(stream_id):
                self.connection.send_headers(stream_id, lines, end_stream=True)
                return
            lines += [(name.lower(), value) for name, value in headers]
            self.connection.send_headers(stream_id, lines)
            self.connection.send_data(stream_id, body, end_stream=True)

    async def stream_send(self, event: Event) -> None:
        """Send what the app says on one stream."""
        if isinstance(event, StreamClosed):
            self._answered.discard(event.stream_id)
            await self._reset_unfinished(event.stream_id)
        elif isinstance(event, Response):
            if event.stream_id in self._answered:
                # A task that was cancelled while it sent the head does not know that the head is
                # out. More would make a whole answer of it.
                await self._reset_unfinished(event.stream_id)
                return
            self._answered.add(event.stream_id)
        await super().stream_send(event)
        if event.stream_id in self.streams:  # not one that the client has taken back
            if isinstance(event, Body | Data):
                self._budget.earn(SENT_EARNS)
            elif isinstance(event, EndBody | EndData):
                self._budget.earn(ANSWER_EARNS)

    async def _reset_unfinished(self, stream_id: int) -> None:
        """The app is done with a stream: reset it if the response has no end (RFC 9113, 5.4.2)."""
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or buffer.complete or stream_id not in self.streams:
            return
        await buffer.close()
        with suppress(h2.exceptions.ProtocolError, MissingStreamError):
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            if has_room(self.task_group):
                self.task_group.spawn(self._flush)  # not here: the client may take nothing
            self.priority.unblock(stream_id)  # `send_task` forgets the stream

    async def _send_data(self, stream_id: int) -> None:
        # A stream may end while something of it is sent; what that raises would end the server.
        with suppress(KeyError, MissingStreamError):
            if stream_id in self.stream_buffers:
                await super()._send_data(stream_id)
            else:
                self.priority.remove_stream(stream_id)


def check_request(headers: list[tuple[bytes, bytes]]) -> None:
    """Raise BadRequest for what is no request; h2's own check with more strictness."""
    if sum(not name.startswith(b":") for name, _ in headers) > RULES.most_fields:
        raise TooManyFields(RULES.most_fields)
    try:
        for _ in validate_headers(headers, REQUEST):
            pass
    except h2.exceptions.ProtocolError as error:
        raise BadRequest(f"The request is not HTTP/2: {error}") from error
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    method = pseudo.get(b":method", b"")
    if not METHOD.fullmatch(method):
        raise BadRequest("The request's method is no token")
    if method.upper() == b"CONNECT" and pseudo.get(b":protocol") != b"websocket":
        raise BadRequest("CONNECT is not supported")
    path = pseudo.get(b":path", b"")
    if not (path == b"*" or (path.startswith(b"/") and VISIBLE.fullmatch(path))):
        raise BadRequest("The request's path holds characters that must be percent-encoded")
    check_host(pseudo.get(b":authority", b""))
