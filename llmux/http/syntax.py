"""HTTP/1 grammar that requests and responses share (RFC 9110 and RFC 9112)."""

from __future__ import annotations

from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]
"""Header fields in their order, each a name and a value. Names may be in any case."""

CRLF = b"\r\n"
BLANK_LINE = b"\r\n\r\n"

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""RFC 9110, section 5.6.2."""

MAX_LENGTH_DIGITS = 20
"""Limit for a Content-Length, leading zeros included: the digits of 64 bits (h11's limit, too).

Python raises ValueError for a number of thousands of digits.
"""
