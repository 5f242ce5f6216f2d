"""HTTP/2 on Hypercorn: stream errors end only their stream, and floods end the connection."""

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
"""Limit of the HPACK encoder's table (HPACK's default); a client may ask for up to 4 GiB."""


class BoundedH2Protocol(H2Protocol):
    """One HTTP/2 connection, with these faults of Hypercorn's corrected.

    - DATA that arrives after an early response ends the connection with all its streams.
    - Frames are handled as long as any arrive, without letting other tasks run.
    - A response that the app gives up gets no end.
    - The sending task waits on after the client has left.
    """

    connection: StreamErrorConnection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        made = self.connection
        self.connection = StreamErrorConnection(made.config)
        self.connection.DEFAULT_MAX_INBOUND_FRAME_SIZE = made.DEFAULT_MAX_INBOUND_FRAME_SIZE
        self.connection.local_settings = made.local_settings
        # `check_request` checks headers instead: h2 would end the connection over a bad one.
        self.connection.config.validate_inbound_headers = False
        self._frames = FrameCutter(YIELD_EVENTS)
        self._budget = Budget(self.context.time())
        self._is_upgrade = False
        self._answered: set[int] = set()  # streams whose response head has been sent

    async def initiate(
        self, headers: list[tuple[bytes, bytes]] | None = None, settings: bytes | None = None
    ) -> None:
        """Begin the connection; `headers` is the HTTP/1 request that asked for the upgrade."""
        if not RULES.http2:  # TLS negotiated it nevertheless
            self.closed = True
            await self.send(RawData(data=NO_HTTP2))
            await self.send(Closed())
            return
        self._is_upgrade = headers is not None  # then the request was checked as HTTP/1
        await super().initiate(headers, settings)
        self._is_upgrade = False

    async def handle(self, event: ConnectionEvent) -> None:
        """Handle received bytes, or the end of the connection."""
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
        try:
            await super().send_task()
        finally:
            # On asyncio, requests may outlive this task when all tasks are cancelled. They would
            # wait forever for it to send the rest of their responses.
            await self._close_buffers()  # noqa: ASYNC102 - it waits for nothing

    async def _close_buffers(self) -> None:
        """Discard what is waiting to be sent, and wake the tasks that wait for room."""
        for buffer in tuple(self.stream_buffers.values()):
            await buffer.close()

    async def _handle_events(self, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.PriorityUpdated):
                continue  # deprecated (RFC 9113, section 5.3.2), and each would take memory
            if isinstance(event, h2.events.DataReceived) and event.stream_id not in self.streams:
                # Answered already. Acknowledge unread data, or it would use up the flow-control
                # window of the connection.
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
        """Send an event of the app on its stream."""
        if isinstance(event, StreamClosed):
            self._answered.discard(event.stream_id)
            await self._reset_unfinished(event.stream_id)
        elif isinstance(event, Response):
            if event.stream_id in self._answered:
                # A second head: a task that was cancelled while it sent the first one cannot know
                # that the first one is out. Sent, it would end the response as if it were complete.
                await self._reset_unfinished(event.stream_id)
                return
            self._answered.add(event.stream_id)
        await super().stream_send(event)
        if event.stream_id in self.streams:  # not reset by the client
            if isinstance(event, Body | Data):
                self._budget.earn(SENT_EARNS)
            elif isinstance(event, EndBody | EndData):
                self._budget.earn(ANSWER_EARNS)

    async def _reset_unfinished(self, stream_id: int) -> None:
        """Reset a stream whose app ended before its response did (RFC 9113, section 5.4.2)."""
        buffer = self.stream_buffers.get(stream_id)
        if buffer is None or buffer.complete or stream_id not in self.streams:
            return
        await buffer.close()
        with suppress(h2.exceptions.ProtocolError, MissingStreamError):
            self.connection.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            if has_room(self.task_group):
                # In a task of its own, since the client may read nothing.
                self.task_group.spawn(self._flush)
            self.priority.unblock(stream_id)  # so that `send_task` removes the stream

    async def _send_data(self, stream_id: int) -> None:
        # A stream may end while its data is being sent. These errors would then end the server.
        with suppress(KeyError, MissingStreamError):
            if stream_id in self.stream_buffers:
                await super()._send_data(stream_id)
            else:
                self.priority.remove_stream(stream_id)


def check_request(headers: list[tuple[bytes, bytes]]) -> None:
    """Check a request's headers as h2 does, and more strictly.

    Raises:
        BadRequest: The headers are no valid request.
        TooManyFields: There are more fields than `limits.header_fields`.
    """
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
        raise BadRequest("The request's method is not a token")
    if method.upper() == b"CONNECT" and pseudo.get(b":protocol") != b"websocket":
        raise BadRequest("CONNECT is not supported")
    path = pseudo.get(b":path", b"")
    if not (path == b"*" or (path.startswith(b"/") and VISIBLE.fullmatch(path))):
        raise BadRequest("The request's path holds characters that must be percent-encoded")
    check_host(pseudo.get(b":authority", b""))
