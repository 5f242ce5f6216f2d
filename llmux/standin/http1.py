"""HTTP/1.1 for the stand-in: parse requests, write responses."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import httptools
import msgspec
import trio

T = TypeVar("T")


class HttpError(Exception):
    """An error to answer a request with."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request that has arrived in full."""

    method: str
    path: str
    body: bytes
    content_type: str
    keep_alive: bool

    def decode(self, kind: type[T]) -> T:
        """Decode the body, JSON of the given shape.

        Raises:
            HttpError: It has another shape.
        """
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise HttpError(400, f"Cannot read the body: {error}") from None


class _Parser:
    """Turns a connection's bytes into requests; the `on_` methods are httptools' callbacks."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._finished: list[Request] = []

    def feed(self, data: bytes | bytearray) -> list[Request]:
        """Return the requests that end within this data.

        Raises:
            httptools.HttpParserError: This is not HTTP.
        """
        # A server may ignore a request to upgrade (RFC 9110 section 7.8).
        with suppress(httptools.HttpParserUpgrade):
            self._parser.feed_data(data)
        finished, self._finished = self._finished, []
        return finished

    def on_message_begin(self) -> None:
        self._url = b""
        self._content_type = b""
        self._body = bytearray()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"content-type":
            self._content_type = value

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._finished.append(
            Request(
                method=self._parser.get_method().decode(),
                path=self._url.decode("latin-1").partition("?")[0],
                body=bytes(self._body),
                content_type=self._content_type.decode("latin-1"),
                keep_alive=self._parser.should_keep_alive(),
            )
        )


async def read_requests(
    stream: trio.abc.ReceiveStream,
    requests: trio.MemorySendChannel[Request],
    connection: trio.CancelScope,
) -> None:
    """Read requests until the client closes; then cancel the connection and its response."""
    parser = _Parser()
    async for data in stream:
        for request in parser.feed(data):
            await requests.send(request)
    connection.cancel()


class Response:
    """Writes the response to one request."""

    def __init__(self, stream: trio.abc.SendStream, request: Request) -> None:
        self._stream = stream
        self._request = request

    def _head(self, status: int, **fields: str) -> bytes:
        if not self._request.keep_alive:
            fields["connection"] = "close"
        lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items()]
        return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{''.join(lines)}\r\n".encode()

    async def json(self, payload: object, status: int = 200) -> None:
        """Write a whole response."""
        body = msgspec.json.encode(payload)
        head = self._head(status, content_type="application/json", content_length=str(len(body)))
        # A response to HEAD gives the length of a body and has none (RFC 9110 section 9.3.2).
        await self._stream.send_all(head if self._request.method == "HEAD" else head + body)

    async def begin_stream(self, content_type: str) -> None:
        await self._stream.send_all(
            self._head(200, content_type=content_type, transfer_encoding="chunked")
        )

    async def piece(self, data: bytes) -> None:
        """Write one chunk of a stream."""
        if data:  # an empty chunk would end the body
            await self._stream.send_all(_chunk(data))

    async def end_stream(self, data: bytes) -> None:
        """Write the last chunk and the end of the body in one piece."""
        await self._stream.send_all(_chunk(data) + b"0\r\n\r\n")

    async def event(self, payload: object) -> None:
        """Write one server-sent event of a stream."""
        await self.piece(sse_event(msgspec.json.encode(payload)))


def sse_event(data: bytes) -> bytes:
    return b"data: %b\n\n" % data


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
