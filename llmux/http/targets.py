"""Request lines: valid methods, and targets that can be joined to a backend's path.

Targets that two readers may resolve in two ways are refused, not resolved: a proxy in front may
have checked the path as the client wrote it. Clients resolve dot segments before they send
(RFC 3986, section 5.2.4; WHATWG URL), so no honest request is refused.
"""

from __future__ import annotations

import re

from llmux.base.names import shown
from llmux.errors import BadRequest
from llmux.http.syntax import TOKEN

ASTERISK = b"*"

# RFC 9112, section 3.2.2. No user information: RFC 9110, section 4.2.4, takes it for an attack.
_ABSOLUTE = re.compile(
    rb"(?i:https?)://(?:\[[0-9A-Fa-f:.]+\]|[^][@:/?#\\]+)(?::[0-9]*)?(?P<path>/[^?]*)?(?P<query>\?.*)?",
    re.DOTALL,
)

_COMMON_METHODS = frozenset({b"POST", b"GET"})
_TOKEN = re.compile(TOKEN)

# Nearly all paths are of these bytes only, and need no closer look.
_PLAIN = re.compile(rb"/[A-Za-z0-9/_:-]*+")

# These end the request line early, or the target: servers disagree on the part after a "#".
_UNSENDABLE = re.compile(rb"[\0-\x20\x7f#]")

# Some servers read an escaped slash or a backslash as a slash, and drop the part after a semicolon.
_SEPARATOR = rb"(?:[/\\]|%(?:2[fF]|5[cC]))"
_DOT_SEGMENT = re.compile(rb"%b(?:\.|%%2[eE]){1,2}(?:%b|;|%%3[bB]|\Z)" % (_SEPARATOR, _SEPARATOR))


def origin_form(target: bytes) -> bytes:
    """Return path and query of a target, which may be an absolute URI (RFC 9112, section 3.2.2).

    Raises:
        BadRequest: Not an absolute URI, a path, or an asterisk.
    """
    if target.startswith(b"/") or target == ASTERISK:
        return target
    if (uri := _ABSOLUTE.fullmatch(target)) is None:
        raise BadRequest(
            "The request's target must be a path that begins with '/', or an http URI, "
            f"not {shown(target.decode('latin-1'))!r}"
        )
    return (uri["path"] or b"/") + (uri["query"] or b"")


def check_request_line(method: bytes, target: bytes) -> None:
    """Check a request line that is to be forwarded.

    Args:
        method: As written.
        target: Path and query.

    Raises:
        BadRequest: It cannot be forwarded as it is, or could be read in two ways.
    """
    if method not in _COMMON_METHODS and not _TOKEN.fullmatch(method):
        raise BadRequest("The request's method is not a token")
    if _PLAIN.fullmatch(target):
        return
    if target == ASTERISK:
        if method != b"OPTIONS":  # RFC 9112, section 3.2.4
            raise BadRequest("The target '*' goes with OPTIONS only")
        return
    if not target.startswith(b"/"):
        raise BadRequest("The request's path must begin with '/'")
    if _UNSENDABLE.search(target):
        raise BadRequest("The request's target holds a space, a control character, or a '#'")
    path = target.partition(b"?")[0]
    is_suspect = b"/." in path or b"%" in path
    if b"\\" in path or (is_suspect and _DOT_SEGMENT.search(path)):
        raise BadRequest("The request's path must hold no segment '.' or '..', and no backslash")
