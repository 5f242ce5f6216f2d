"""Tell people on a terminal where llmux is: for clients, and the live page."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from socket import socket

from llmux.api.listeners import PORT
from llmux.server.control_listener import Opened


def root_url(sock: socket) -> str:
    """Return the URL of a listening TCP socket for this machine, without a slash at its end.

    A listener on every address is reached by loopback.
    """
    host, port, *_ = sock.getsockname()
    address = ip_address(host.partition("%")[0])
    if address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def greeting(sockets: Sequence[socket], control: Opened | None) -> list[str]:
    """Return the URL for clients, and that of the live page if a browser can reach it.

    Args:
        sockets: The main listener's, without TLS.
        control: The control API's own listener, if it has one; it then has the page, too.
    """
    if not sockets:
        return []
    root = root_url(sockets[0])
    lines = [f"API  {root}/v1"]
    if control is None:
        lines.append(f"UI   {root}/ui")
    elif control.kind == PORT:
        lines.append(f"UI   {root_url(control.sock)}/ui")
    return lines


def greet(lines: Iterable[str]) -> None:
    """Print lines where the log goes, if that is a terminal."""
    with suppress(OSError, ValueError):  # it may be gone, or closed
        if sys.stderr.isatty():
            sys.stderr.write("".join(f"{line}\n" for line in lines))
            sys.stderr.flush()
