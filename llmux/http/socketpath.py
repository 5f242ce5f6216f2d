"""URLs of servers that listen on a Unix socket: `unix:/run/x.sock`, as nginx writes it."""

from __future__ import annotations

import re

SCHEME = "unix:"

MAX_PATH_BYTES = 107
"""`sun_path` has 108 bytes, the NUL at its end included (Linux, unix(7))."""

_UNIX = re.compile(SCHEME, re.IGNORECASE)


def is_socket_url(url: str) -> bool:
    return _UNIX.match(url) is not None


def socket_path(url: str) -> str | None:
    """Return the path of the socket that a URL names; None for other URLs.

    The path is taken literally, without percent-decoding.

    Raises:
        ValueError: Not the path of a socket.
    """
    if not is_socket_url(url):
        return None
    rest = url[len(SCHEME) :]
    path = "/" + rest.lstrip("/")
    if not rest.strip("/"):
        raise ValueError("needs the path of a socket, as in unix:/run/x.sock")
    if not rest.startswith("/") or (rest.startswith("//") and not rest.startswith("///")):
        raise ValueError(f"the socket's path must be absolute, did you mean {SCHEME + path!r}?")
    if ":/" in path:
        raise ValueError("a path on the server cannot follow the socket's")
    if path.endswith("/"):
        raise ValueError("the socket's path must not end with a slash")
    if not path.isprintable():
        raise ValueError("the socket's path must hold printable characters only")
    if (size := len(path.encode())) > MAX_PATH_BYTES:
        raise ValueError(
            f"the socket's path has {size} bytes; at most {MAX_PATH_BYTES} are possible"
        )
    return path


def meant_socket(url: str) -> str | None:
    """Return llmux's URL for a socket that is written as other programs write it; else None."""
    if url.startswith("/"):
        return SCHEME + url
    nginx = re.match(r"https?://unix:(/[^:]+)", url, re.IGNORECASE)
    if nginx is not None:
        return SCHEME + nginx[1]
    requests = re.match(r"https?\+unix://(?:%2f|/)([^/]+)", url, re.IGNORECASE)
    if requests is not None:
        return SCHEME + "/" + re.sub("%2f", "/", requests[1], flags=re.IGNORECASE)
    return None
