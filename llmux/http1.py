"""The head of an HTTP/1.1 request, read strictly: what could be read in two ways is refused.

llhttp (through httptools) refuses bare LF, folded lines, white space in or around names, control
characters, both Content-Length and Transfer-Encoding, and any but one plain Content-Length. What
it lets pass and should not is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass

import httptools

from llmux.errors import BadRequest, HeadTooLarge
from llmux.names import shown

MAX_HEAD_BYTES = 65536
"""Request line and headers. Precedents: nginx 32 KiB, Apache 64 KiB and more, node.js 16 KiB."""

BLANK_LINE = b"\r\n\r\n"


class NotForUs(Exception):
    """A request that the fast lane leaves to Hypercorn: it may well be right, or well refused."""


@dataclass(slots=True)
class RequestHead:
    """What a request's head says.

    Attributes:
        method: As written.
        target: As written: path and query, an absolute URI, or `*`.
        headers: As received.
        content_length: Bytes of the body; 0 if it has none, or comes in chunks.
        is_chunked: Whether the body comes in chunks.
        keeps_alive: Whether the client will send another request on this connection.
        expects_continue: Whether it waits for a 100 before it sends its body.
        upgrade: The protocol that it wants to change to, in lower case; empty if none.
    """

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    content_length: int = 0
    is_chunked: bool = False
    keeps_alive: bool = True
    expects_continue: bool = False
    upgrade: bytes = b""


class _Parts:
    """What llhttp calls back with."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, piece: bytes) -> None:
        self.target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))


def find_end(data: bytes) -> int:
    """Where the head ends, its blank line included; 0 if it has not ended yet.

    Raises:
        HeadTooLarge: It is longer than any should be.
        BadRequest: A line ends with a bare LF, so it might never end, or has ended for others.
    """
    end = data.find(BLANK_LINE) + len(BLANK_LINE)
    if end < len(BLANK_LINE):
        end = 0
    if max(end, 0 if end else len(data)) > MAX_HEAD_BYTES:
        raise HeadTooLarge(MAX_HEAD_BYTES)
    if not end and data.count(b"\n") != data.count(b"\r\n"):
        raise BadRequest("A line of the request ends without CR")
    return end


def parse_head(data: bytes) -> RequestHead:
    """Parse a whole head, its blank line included.

    Raises:
        BadRequest: It is not HTTP/1.1, or could be read in two ways.
        NotForUs: Another version, or a method that llhttp does not know.
    """
    parts = _Parts()
    parser = httptools.HttpRequestParser(parts)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # how it ends the head of a request that asks for one
    except httptools.HttpParserInvalidMethodError as error:
        raise NotForUs from error
    except httptools.HttpParserError as error:
        if data.startswith(b"PRI * HTTP/2.0\r\n"):
            raise NotForUs from error
        raise BadRequest(f"The request is not HTTP/1.1: {error}") from error
    method = parser.get_method()
    if method == b"CONNECT":
        raise BadRequest("CONNECT is not supported")
    if parser.get_http_version() != "1.1":
        raise NotForUs
    head = RequestHead(method, parts.target, parts.headers)
    _read_headers(head)
    return head


def _read_headers(head: RequestHead) -> None:
    hosts = 0
    for name, value in head.headers:
        read = _READERS.get(name.lower())
        if read is not None:
            read(head, value)
        elif name.lower() == b"host":
            hosts += 1
    if hosts != 1:  # RFC 9112, section 3.2
        raise BadRequest("The request must have one Host header")
    if b"upgrade" not in _connection_tokens(head):
        head.upgrade = b""


def _connection_tokens(head: RequestHead) -> set[bytes]:
    if not head.upgrade:
        return set()
    values = (value for name, value in head.headers if name.lower() == b"connection")
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _read_content_length(head: RequestHead, value: bytes) -> None:
    head.content_length = int(value)  # llhttp has seen that it is one number, given once


def _read_transfer_encoding(head: RequestHead, value: bytes) -> None:
    if head.is_chunked or value.lower() != b"chunked":
        raise BadRequest(f"Transfer-Encoding {shown(value.decode('latin-1'))!r} is not supported")
    head.is_chunked = True


def _read_connection(head: RequestHead, value: bytes) -> None:
    if any(token.strip() == b"close" for token in value.lower().split(b",")):
        head.keeps_alive = False


def _read_expect(head: RequestHead, value: bytes) -> None:
    head.expects_continue = value.lower() == b"100-continue"


def _read_upgrade(head: RequestHead, value: bytes) -> None:
    head.upgrade = value.lower()


_READERS = {
    b"content-length": _read_content_length,
    b"transfer-encoding": _read_transfer_encoding,
    b"connection": _read_connection,
    b"expect": _read_expect,
    b"upgrade": _read_upgrade,
}
