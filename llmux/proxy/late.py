"""Send a backend's answer to a client that was sent keep-alive comments before it.

The client has its status line (200, an event stream) already, so whatever the backend answers must
become events: an event stream is passed on, JSON lines and whole bodies are translated. Comments
continue until the first byte of the body.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from http import HTTPStatus

from llmux.errors import BackendError
from llmux.openai.as_events import as_events
from llmux.openai.decoding import Decoder, content_encoding
from llmux.openai.dialects import Dialect
from llmux.openai.streams import EVENT_STREAM, JSON_LINES, media_type
from llmux.proxy.held import Bodies
from llmux.proxy.keepalive import Events, KeptAlive
from llmux.upstream import Answer

MOST_WHOLE_BYTES = 16 << 20
"""Limit for an answer, or a line of one, that must be complete before it can become events; the
same as for a WebSocket message."""

EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":", b"\xef\xbb\xbf")
"""Possible starts of an event stream: field names, a comment, a byte order mark (WHATWG HTML,
section 9.2.5)."""

UNSPECIFIC_TYPES = frozenset({b"", b"text/plain", b"application/octet-stream"})
"""Media types of servers that do not label their answers; the body shows whether it is events."""


def is_event_answer(answer: Answer) -> bool:
    return is_success(answer) and media_type(answer.headers) == EVENT_STREAM


def is_success(answer: Answer) -> bool:
    """Return whether the status is 2xx: neither an error nor a redirect."""
    return HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES


class LateAnswer:
    """An answer to send behind comments.

    Args:
        client: The response that has begun, or may begin any moment.
        alive: Sends the comments until the answer stops it.
        answer: The backend's.
        dialect: The client's API, which words errors.
        bodies: Counts the memory that the answer takes.
    """

    def __init__(
        self, client: Events, alive: KeptAlive, answer: Answer, dialect: Dialect, bodies: Bodies
    ) -> None:
        self._client = client
        self._alive = alive
        self._answer = answer
        self._dialect = dialect
        self._bodies = bodies

    async def send(self) -> None:
        """Send the whole answer, without the end of the stream.

        Raises:
            BackendError: It cannot become events; nothing of it was sent.
            BackendBroke: It broke off.
        """
        async with aclosing(self._pieces()) as pieces:
            await self._send(await anext(pieces, b""), pieces)

    async def _send(self, first: bytes, pieces: AsyncIterator[bytes]) -> None:
        kind = media_type(self._answer.headers)
        if kind in UNSPECIFIC_TYPES:
            first = await _read_start(first, pieces)
        if not is_success(self._answer):  # the client has its 200: the status must be in the event
            await self._send_whole(first, pieces)
        elif kind == EVENT_STREAM or (kind in UNSPECIFIC_TYPES and first.startswith(EVENT_STARTS)):
            await self._pass(first)
            async for piece in pieces:
                await self._pass(piece)
        elif kind in JSON_LINES:
            await self._send_lines(first, pieces)
        else:
            await self._send_whole(first, pieces)

    async def _pieces(self) -> AsyncGenerator[bytes]:
        """Yield the decoded body; no piece is empty."""
        decoder = Decoder(content_encoding(self._answer.headers))
        async for data in self._answer.chunks():
            for piece in decoder.decode(data):
                yield piece
        decoder.check_end()

    async def _pass(self, data: bytes) -> None:
        if not self._alive.is_over:  # as late as this, so that comments bridge the whole wait
            await self._alive.stop()
        if data:
            await self._client.send_events(data)

    async def _send_whole(self, first: bytes, pieces: AsyncIterator[bytes]) -> None:
        body = bytearray(first)
        async for piece in pieces:
            body += piece
            _check_length(body)
        with self._bodies.streaming(len(body)):
            whole = bytes(body)
            if media_type(self._answer.headers) == EVENT_STREAM:  # of an error
                whole = whole.rpartition(b"data:")[2] or whole  # its last event has the error
            await self._pass(as_events(self._answer.status, whole, self._dialect))

    async def _send_lines(self, first: bytes, pieces: AsyncIterator[bytes]) -> None:
        rest = await self._send_ended(first)
        async for piece in pieces:
            rest = await self._send_ended(rest + piece)
            _check_length(rest)
        await self._send_ended(rest + b"\n")

    async def _send_ended(self, text: bytes) -> bytes:
        """Send the complete lines as events; returns the incomplete rest."""
        *lines, rest = text.split(b"\n")
        # JSON text sequences begin each line with a record separator (RFC 7464).
        payloads = [line.strip(b"\x1e\r ") for line in lines]
        if events := b"".join(b"data: %b\n\n" % each for each in payloads if each):
            await self._pass(events)
        return rest


async def _read_start(first: bytes, pieces: AsyncIterator[bytes]) -> bytes:
    """Read on until the start of a body shows whether it is an event stream."""
    while any(start.startswith(first) and start != first for start in EVENT_STARTS):
        if not (more := await anext(pieces, b"")):
            break
        first += more
    return first


def _check_length(data: bytes | bytearray) -> None:
    if len(data) > MOST_WHOLE_BYTES:
        raise BackendError(
            f"answered a client that waits for events with more than {MOST_WHOLE_BYTES} bytes of "
            "something else"
        )
