"""An answer that may come late: its client has a status line and comments already, or may get them.

Comments go on until the first byte of the answer's body. Then it is passed on as events, whatever
its backend has made of it, if these can say it.
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
"""Of an answer, or a line of one, that must be there as a whole to become events: as much as of a
WebSocket's message."""

FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":", b"\xef\xbb\xbf")
"""What a stream of events may begin with (WHATWG HTML, section 9.2.5)."""

UNTOLD = frozenset({b"", b"text/plain", b"application/octet-stream"})
"""Types of servers that do not say what they send."""


def comes_as_events(answer: Answer) -> bool:
    """Whether it is what a client of events waits for."""
    return is_success(answer) and media_type(answer.headers) == EVENT_STREAM


def is_success(answer: Answer) -> bool:
    """Whether it is no error, and no redirection."""
    return HTTPStatus.OK <= answer.status < HTTPStatus.MULTIPLE_CHOICES


class LateAnswer:
    """An answer on its way to a client that has been sent comments.

    Args:
        client: It.
        alive: What sends the comments.
        answer: What it gets now.
        dialect: What it speaks.
        bodies: Where what is held is counted.
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
        """Send all of it.

        Raises:
            BackendError: It cannot be made events; the client has been sent nothing of it.
            BackendBroke: It broke off.
        """
        async with aclosing(self._pieces()) as pieces:
            await self._send(await anext(pieces, b""), pieces)

    async def _send(self, first: bytes, pieces: AsyncIterator[bytes]) -> None:
        kind = media_type(self._answer.headers)
        if kind in UNTOLD:
            first = await _with_field(first, pieces)
        if not is_success(self._answer):
            await self._send_whole(first, pieces)
        elif kind == EVENT_STREAM or (kind in UNTOLD and first.startswith(FIELDS)):
            await self._pass(first)
            async for piece in pieces:
                await self._pass(piece)
        elif kind in JSON_LINES:
            await self._send_lines(first, pieces)
        else:
            await self._send_whole(first, pieces)

    async def _pieces(self) -> AsyncGenerator[bytes]:
        """Its body, decoded; never an empty piece."""
        decoder = Decoder(content_encoding(self._answer.headers))
        async for data in self._answer.chunks():
            for piece in decoder.decode(data):
                yield piece
        decoder.check_end()

    async def _pass(self, data: bytes) -> None:
        if not self._alive.is_over:
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
                whole = whole.rpartition(b"data:")[2] or whole
            await self._pass(as_events(self._answer.status, whole, self._dialect))

    async def _send_lines(self, first: bytes, pieces: AsyncIterator[bytes]) -> None:
        rest = await self._send_ended(first)
        async for piece in pieces:
            rest = await self._send_ended(rest + piece)
            _check_length(rest)
        await self._send_ended(rest + b"\n")

    async def _send_ended(self, text: bytes) -> bytes:
        """Send the lines that have ended; returns the rest."""
        *lines, rest = text.split(b"\n")
        said = [line.strip(b"\x1e\r ") for line in lines]
        if events := b"".join(b"data: %b\n\n" % line for line in said if line):
            await self._pass(events)
        return rest


async def _with_field(first: bytes, pieces: AsyncIterator[bytes]) -> bytes:
    """Read on until the beginning of a body shows whether it holds events."""
    while any(field.startswith(first) and field != first for field in FIELDS):
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
