"""HTTP/1 on Hypercorn: h11 gets what the strict reader lets pass, when it can take it."""

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
"""What a client of HTTP/2 understands (RFC 9113, sections 6.8 and 7), and may try again after."""

BUSY = (h11.DONE, MIGHT_SWITCH_PROTOCOL)
"""States of a client whose request is whole, and not answered yet."""


LOOK_S = 1.0
"""How often it is looked whether a client has left while nothing is read of it."""


class StrictConnection(h11.Connection):
    """h11's, for one request at a time.

    A request that asks for another protocol pauses h11; Hypercorn then reads no more, and does not
    see that its client leaves.
    """

    def __init__(self) -> None:
        super().__init__(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)

    def next_event(self) -> Any:
        """As h11's."""
        event = super().next_event()
        return h11.NEED_DATA if event is h11.PAUSED else event


class StrictH11Protocol(H11Protocol):
    """One connection, from whose client only whole and valid requests get to h11.

    Hypercorn gives h11 all that comes. h11 takes lines that end without CR, and folded ones; it
    takes what follows a last request for a mistake, for which Hypercorn then replaces, or cuts,
    the answer to that request.
    """

    connection: h11.Connection | H11WSConnection

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = StrictConnection()
        self._reader = RequestReader(RULES.most_fields)
        self._refusal: LlmuxError | None = None
        self._unsent_bytes = -1  # of an answer; negative if it has no length
        self._is_over = False  # the last word has been said
        self._is_closed = False
        self._beside = self.context.single_task_class()

    async def handle(self, event: ConnectionEvent) -> None:
        """Take what was received, or the news that the connection is closed."""
        if not isinstance(event, RawData):
            self._is_closed = True
            await self._beside.stop()
            await super().handle(event)
            # Hypercorn leaves the task that waits for the end of a request waiting.
            await self.can_read.set()
        elif isinstance(self.connection, H11WSConnection):
            if not self._is_over:
                await super().handle(event)
        elif event.data:  # its end is told with Closed, too
            self._reader.receive(event.data)
            await self._pass_on()

    async def _pass_on(self) -> None:
        """Give h11 what there is, piece by piece."""
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
        """Wait until the request before is answered; returns whether another can follow it."""
        if self.connection.their_state in BUSY and not self._is_closed and self._has_room:
            await self._beside.restart(self.task_group, self._watch_client)
            while self.connection.their_state in BUSY and not self._is_closed:
                await self.can_read.clear()
                await self.can_read.wait()
            await self._beside.stop()
        return self.connection.their_state is h11.IDLE and not self._is_closed

    @property
    def _has_room(self) -> bool:
        return has_room(self.task_group)

    async def _watch_client(self) -> None:
        """Close the connection if its client leaves: nothing is read that would say so.

        One that has only closed its side may still get an answer or two.
        """
        while not (isinstance(self.send, Sending) and self.send.has_left()):
            await self.context.sleep(LOOK_S)
        await self._close_late()

    async def _refuse(self, error: LlmuxError) -> None:
        """Say what is wrong with the request that is coming, once it is its turn."""
        if self.connection.their_state in BUSY:
            self._refusal = error  # for the end of the request that is being answered
        elif self.connection.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            await self._say(error)
        else:
            await self.send(Closed())

    async def _say(self, error: LlmuxError) -> None:
        self._is_over = True
        self._reader.end()
        status, headers, body = error_answer(error, dialect_of_head(self._reader.line))
        headers = [*headers, *self.config.response_headers("h11"), (b"connection", b"close")]
        await self.send(RawData(data=response_head(status, headers) + body))
        await self._close_stream()
        await self._linger()

    async def _send_error_response(self, status_code: int) -> None:  # noqa: ARG002 - Hypercorn passes it
        """Hypercorn's answer to what h11 finds wrong is empty, and not llmux's."""
        await self._say(BadRequest("The request is not HTTP/1.1"))

    async def stream_send(self, event: Event) -> None:
        """Send what the app says, unless the client has heard the last word."""
        if isinstance(event, Response) and event.status_code >= HTTPStatus.OK and self._is_last:
            closing = [*event.headers, (b"connection", b"close")]
            event = replace(event, headers=closing)
        if self._is_over:
            return
        if isinstance(event, Response) and self.connection.our_state is h11.SEND_BODY:
            # A task that was cancelled while it sent the head does not know that the head is out.
            self._is_over = True
            await self.send(Closed())
            return
        if isinstance(event, Response):
            length = header(event.headers, b"content-length")
            self._unsent_bytes = int(length) if length.isdigit() else -1
        elif isinstance(event, Body):
            self._unsent_bytes -= len(event.data)
        elif isinstance(event, StreamClosed) and self._is_cut_behind_its_end:
            await super().stream_send(EndBody(stream_id=event.stream_id))
        await super().stream_send(event)

    async def _send_h11_event(self, event: Any) -> None:
        """Send; close the connection if the answer cannot go on so.

        Hypercorn notes that an answer has begun once its head is sent. Given up before that, it
        gets a second head, which h11 refuses; raised at the end of a request, that ends the server.
        """
        try:
            await super()._send_h11_event(event)
        except h11.LocalProtocolError:
            await self.send(Closed())

    @property
    def _is_cut_behind_its_end(self) -> bool:
        """Whether an answer was given up that its client has whole, and may ask again after."""
        return self._unsent_bytes == 0 and self.connection.our_state is h11.SEND_BODY

    @property
    def _is_last(self) -> bool:
        """Whether the connection ends behind the answer that begins now.

        It does if the client still sends of its request: a client that is not told would send its
        next request there.
        """
        return self.connection.their_state not in BUSY or self.context.terminated.is_set()

    async def _maybe_recycle(self) -> None:
        is_unread = not self._reader.has_ended and self.connection.their_state not in BUSY
        # Behind part of a message comes no last word, for which to let the client finish sending.
        is_torn = isinstance(self.stream, HoldingWSStream) and self.stream.is_torn
        if is_unread and not is_torn and not self._is_closed:
            # The client still sends of its request, or its WebSocket.
            self._is_over = True
            await self._close_stream()
            await self.can_read.set()
            await self._linger()
            return
        await super()._maybe_recycle()
        if self._refusal is not None and self.connection.their_state is h11.IDLE:
            await self._say(self._refusal)

    async def _linger(self) -> None:
        """Close once the client has closed its side, or has had the time to."""
        if isinstance(self.send, Sending):
            await self.send.end()
        if self._is_closed:
            return
        if self._has_room:
            await self._beside.restart(self.task_group, self._close_late)
        else:
            await self.send(Closed())

    async def _close_late(self) -> None:
        await self.context.sleep(LINGER_S)
        self.task_group.spawn(self._close)  # which stops this task

    async def _close(self) -> None:
        await self.send(Closed())
        await self.handle(Closed())  # asyncio's server says so only where it reads
