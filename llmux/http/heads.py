"""The head of an HTTP/1 request, read strictly: refuse what could be read in two ways.

A head that two servers read differently can smuggle a second request past the first of them (RFC
9112, section 11.2). llhttp (through httptools) refuses bare LF, folded lines, white space in or
around names, control characters, both Content-Length and Transfer-Encoding, and any but one plain
Content-Length. This module refuses what llhttp lets pass and should not. Every lane uses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus

import httptools

from llmux.base.names import shown
from llmux.errors import BadRequest, HeadTooLarge, TooManyFields
from llmux.http.syntax import BLANK_LINE, CRLF, MAX_LENGTH_DIGITS, TOKEN, Headers

MAX_HEAD_BYTES = 65536
"""Limit for request line and headers (nginx 32 KiB, Apache 64 KiB and more, node.js 16 KiB)."""

MAX_EMPTY_BYTES = 64
"""Limit for empty lines before a request. Some clients send one behind a body, and RFC 9112,
section 2.2, has servers ignore at least one."""

VISIBLE = re.compile(rb"[\x21-\x7e]+")
"""The characters of a request's target: no controls, no space, nothing beyond ASCII."""

METHOD = re.compile(TOKEN)
_REQUEST_LINE = re.compile(rb"(%b) [\x21-\x7e]+ HTTP/1\.[01]\r\n" % TOKEN)
# RFC 9112, section 3.2: uri-host [":" port]; underscores are common in container networks.
_HOST = re.compile(rb"[0-9A-Za-z._~!$&'()*+,;=%:\[\]-]*")


@dataclass(slots=True)
class RequestHead:
    """A request's head, parsed.

    Attributes:
        method: As written.
        target: As written: path and query, an absolute URI, or `*`.
        headers: As received.
        content_length: Bytes of the body; 0 if there is none, or it is chunked.
        is_chunked: True if the body is chunked.
        keeps_alive: True if the client may send another request on this connection.
        expects_continue: True if the client waits for a 100 before it sends the body.
        upgrade: Protocol that the client asks to change to, in lower case; empty if none.
        is_common: True for HTTP/1.1 with a method that llhttp knows.
    """

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    content_length: int = 0
    is_chunked: bool = False
    keeps_alive: bool = True
    expects_continue: bool = False
    upgrade: bytes = b""
    is_common: bool = True


class _Parts:
    """Receives llhttp's callbacks."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, piece: bytes) -> None:
        self.target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))


def check_host(value: bytes) -> None:
    """Raise BadRequest unless this is a host, with or without a port."""
    if not _HOST.fullmatch(value):
        raise BadRequest("The request's Host header is no host")


def skip_empty_lines(data: bytes) -> bytes:
    """Return the data after any empty lines at its start; raises BadRequest for too many."""
    start = 0
    while data.startswith(CRLF, start):
        start += len(CRLF)
        check_empty_bytes(start)
    return data[start:] if start else data


def check_empty_bytes(count: int) -> None:
    """Raise BadRequest if there are too many bytes of empty lines."""
    if count > MAX_EMPTY_BYTES:
        raise BadRequest("Too many empty lines before the request")


def find_end(data: bytes, seen: int = 0) -> int:
    """Return the length of the head, its blank line included; 0 if it has not ended yet.

    Args:
        data: The head as far as received, and what follows it.
        seen: Bytes that were searched before.

    Raises:
        HeadTooLarge: Longer than `MAX_HEAD_BYTES`.
        BadRequest: A line ends with a bare LF, so other parsers may find another end.
    """
    end = data.find(BLANK_LINE, max(0, seen - 3)) + len(BLANK_LINE)
    if end < len(BLANK_LINE):
        end = 0
    if (end or len(data)) > MAX_HEAD_BYTES:
        raise HeadTooLarge(MAX_HEAD_BYTES)
    if not end and data.count(b"\n", seen) != data.count(CRLF, max(0, seen - 1)):
        raise BadRequest("A line of the request ends without CR")
    return end


def parse_head(data: bytes, most_fields: int) -> RequestHead:
    """Parse a whole head, its blank line included.

    Args:
        data: The head.
        most_fields: Limit for its header fields.

    Raises:
        BadRequest: Not HTTP/1, or it could be read in two ways.
        TooManyFields: It has more than `most_fields`.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        raise _bad_request_line(data)
    if data.count(CRLF) - 2 > most_fields:  # without the request line and the blank one
        raise TooManyFields(most_fields)
    parts = _Parts()
    method: bytes = line[1]
    is_common = True
    try:
        parser = _feed(parts, data)
    except httptools.HttpParserInvalidMethodError:
        # RFC 9110, section 9.1, leaves methods open, llhttp does not: check the rest as a POST.
        is_common = False
        parts = _Parts()
        parser = _feed(parts, b"POST" + data[len(method) :])
    if method.upper() == b"CONNECT":  # what follows it is no HTTP (RFC 9110, section 9.3.6)
        raise BadRequest("CONNECT is not supported")
    head = RequestHead(method, parts.target, parts.headers, is_common=is_common)
    is_old = parser.get_http_version() == "1.0"
    if is_old:
        head.is_common = head.keeps_alive = False
    _read_headers(head, is_old=is_old)
    return head


def _feed(parts: _Parts, data: bytes) -> httptools.HttpRequestParser:
    parser = httptools.HttpRequestParser(parts)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # how llhttp ends the head of a request to upgrade
    except httptools.HttpParserInvalidMethodError:
        raise
    except httptools.HttpParserError as error:
        raise BadRequest(f"The request is not HTTP/1.1: {error}") from error
    return parser


def _bad_request_line(data: bytes) -> BadRequest:
    line = data[: data.find(CRLF)]
    if line.count(b" ") != 2:
        return BadRequest("The request line is not METHOD TARGET VERSION, one space in between")
    method, target, _ = line.split(b" ")
    if not METHOD.fullmatch(method):
        return BadRequest("The request's method is not a token")
    if not VISIBLE.fullmatch(target):
        return BadRequest("The request's target holds characters that must be percent-encoded")
    return BadRequest("The request is not HTTP/1.1")


def _read_headers(head: RequestHead, *, is_old: bool) -> None:
    hosts = 0
    for name, value in head.headers:
        lower = name.lower()
        if lower == b"host":
            hosts += 1
            check_host(value)
        elif lower in _READERS:
            _READERS[lower](head, value)
    # RFC 9112, section 3.2: else one server may route by the first, and another by the last.
    if hosts != 1 and not (is_old and hosts == 0):
        raise BadRequest("The request must have one Host header")
    if is_old and head.is_chunked:  # RFC 9112, section 6.1: it may have been framed in another way
        raise BadRequest("Transfer-Encoding needs HTTP/1.1")
    # Upgrade is hop-by-hop: without its connection option it was meant for another hop (RFC 9110,
    # section 7.8).
    if b"upgrade" not in _connection_tokens(head):
        head.upgrade = b""


def _connection_tokens(head: RequestHead) -> set[bytes]:
    if not head.upgrade:
        return set()
    values = (value for name, value in head.headers if name.lower() == b"connection")
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _read_content_length(head: RequestHead, value: bytes) -> None:
    if len(value) > MAX_LENGTH_DIGITS:
        raise BadRequest(f"Content-Length has more than {MAX_LENGTH_DIGITS} digits")
    head.content_length = int(value)  # llhttp has checked that it is one number, given once


def _read_transfer_encoding(head: RequestHead, value: bytes) -> None:
    if head.is_chunked or value.lower() != b"chunked":
        raise BadRequest(f"Transfer-Encoding {shown(value.decode('latin-1'))!r} is not supported")
    head.is_chunked = True


def _read_connection(head: RequestHead, value: bytes) -> None:
    # Options are case-insensitive (RFC 9110, section 7.6.1).
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


_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


def response_head(status: int, headers: Headers, reason: bytes | None = None) -> bytes:
    """Return status line and headers of a response, with the blank line."""
    line = _STATUS_LINES.get(status) if reason is None else None
    line = line or b"HTTP/1.1 %d %b\r\n" % (status, reason or b"")
    return b"".join([line, *[b"%b: %b\r\n" % header for header in headers], b"\r\n"])
