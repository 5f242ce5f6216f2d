"""Say what is wrong with a PEM file that OpenSSL cannot use: it does not say so itself."""

from __future__ import annotations

import binascii
import re
import ssl
from base64 import b64decode
from collections.abc import Iterator

BEGIN = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----[ \t\r]*")

BLOCK = re.compile(
    r"^-----BEGIN (?P<label>[A-Z0-9 ]{1,40})-----[ \t\r]*\n(?P<body>.*?)^-----END (?P=label)-----",
    re.DOTALL | re.MULTILINE,
)

HEADERS = re.compile(r"\A(?:[A-Za-z0-9-]+:.*\n(?:[ \t].*\n)*)+\s*\n")
"""Headers in front of the base64 of old keys (RFC 1421)."""

BYTE_ORDER_MARK = "\xef\xbb\xbf"
"""As Windows editors write it, decoded as Latin-1."""


def labels(text: str) -> list[str]:
    """Return the kinds of the blocks of a PEM file, as far as their first lines are right."""
    found = (BEGIN.fullmatch(line.strip()) for line in text.split("\n"))
    return [match[1] for match in found if match is not None]


def flaw(text: str) -> str:
    """Return what is wrong with a PEM file, and what would be right; empty if nothing is known.

    No part of the content is quoted: it may be a key.

    Args:
        text: The file, decoded as Latin-1.
    """
    return next(_flaws(text), "")


def _flaws(text: str) -> Iterator[str]:
    if text.startswith(BYTE_ORDER_MARK):
        yield "begins with a byte order mark: save it as UTF-8 without one"
    begins = 0
    for number, line in enumerate(text.split("\n"), 1):
        if "-----BEGIN " not in line:
            continue
        begins += 1
        if line[0] in " \t":
            yield f"line {number} is indented: in PEM, lines start at the left margin"
        if not BEGIN.fullmatch(line):
            yield f"line {number} must hold -----BEGIN ...----- and nothing else"
    blocks = list(BLOCK.finditer(text))
    if len(blocks) < begins:
        yield "is incomplete: a -----BEGIN ...----- line lacks its -----END ...----- line"
    for block in blocks:
        where = f"the {block['label']} on line {text.count(chr(10), 0, block.start()) + 1}"
        try:
            content = b64decode("".join(HEADERS.sub("", block["body"]).split()), validate=True)
        except (binascii.Error, ValueError):
            yield f"{where} is not valid base64: copy it again"
            return
        if block["label"] == "CERTIFICATE" and not _is_certificate(content):
            yield f"{where} is damaged: copy it again"


def _is_certificate(content: bytes) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=content)
    except (ssl.SSLError, ValueError):
        return False
    return True
