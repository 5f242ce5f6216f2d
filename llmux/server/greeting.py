"""Tell people on a terminal where llmux is: for clients, and the live page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from socket import socket

from llmux.api.listeners import PORT
from llmux.http.clients import is_loopback
from llmux.server.control_listener import Opened


def root_url(sock: socket, scheme: str = "http") -> str:
    """Return the URL of a listening TCP socket for this machine, without a slash at its end.

    A listener on every address is reached by loopback.
    """
    host, port = _place(sock)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _place(sock: socket) -> tuple[str, int]:
    host, port, *_ = sock.getsockname()
    address = ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return host, port


def greeting(
    sockets: Sequence[socket],
    control: Opened | None,
    *,
    has_keys: bool = False,
    scheme: str = "http",
) -> list[str]:
    """Return the URL for clients, and that of the live page if a browser can reach it.

    Args:
        sockets: The main listener's.
        control: The control API's own listener, if it has one; it then has the page, too.
        has_keys: True if there are keys for the control API: without them the page answers loopback
            only.
        scheme: http or https.
    """
    if not sockets:
        return []
    lines = [f"API  {root_url(sockets[0], scheme)}/v1"]
    if control is None or control.kind == PORT:
        sock = sockets[0] if control is None else control.sock
        needs_keys = not has_keys and not is_loopback(_place(sock)[0])
        needed = " (needs control_keys)" if needs_keys else ""
        lines.append(f"UI   {root_url(sock, scheme)}/ui{needed}")
    return lines


def greet(lines: Iterable[str]) -> None:
    """Print lines where the log goes, if that is a terminal."""
    with suppress(OSError, ValueError):  # it may be gone, or closed
        if sys.stderr.isatty():
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()
