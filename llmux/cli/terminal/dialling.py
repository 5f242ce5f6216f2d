"""Open connections to llmux, with the standard library: importing httpx takes longer than asking.

`http_proxy` and the like are followed as curl follows them, except on the way to this machine.
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection, HTTPSConnection
from urllib.parse import SplitResult, urlsplit

from llmux.cli.terminal.failures import NoAnswer
from llmux.cli.terminal.target import UNIX, Trust

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class UnixConnection(HTTPConnection):
    """HTTP over a Unix socket.

    Args:
        path: Of the socket.
        timeout: Limit for each step, in seconds.
    """

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """See `HTTPConnection`."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def dial(url: str, timeout_s: float, trust: Trust | None = None) -> tuple[HTTPConnection, str]:
    """Return a connection that is still to be opened, and the URL that paths are put behind.

    The second is empty where a request names its path only: everywhere but behind a proxy of HTTP.

    Args:
        url: See `Target`; its path belongs to each request.
        timeout_s: Limit for connecting.
        trust: See `Target`.

    Raises:
        NoAnswer: The certificates to trust cannot be read.
    """
    if url.startswith(UNIX):
        return UnixConnection(url.removeprefix(UNIX), timeout_s), ""
    parts = urlsplit(url)
    is_tls, host = parts.scheme == "https", parts.hostname or ""
    kind: Callable[..., HTTPConnection] = HTTPConnection
    if is_tls:
        kind = partial(HTTPSConnection, context=None if trust is None else _context(trust))
    proxy = _proxy_for(parts)
    if proxy is None or proxy.hostname is None:
        return kind(host, parts.port, timeout=timeout_s), ""
    connection = kind(proxy.hostname, proxy.port or 80, timeout=timeout_s)
    if is_tls:
        connection.set_tunnel(host, parts.port)
        return connection, ""
    return connection, f"http://{parts.netloc}"


def _context(trust: Trust) -> ssl.SSLContext:
    """Return a context that believes these certificates; raises NoAnswer."""
    try:
        if trust.is_own:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.load_verify_locations(trust.file)
        else:
            context = ssl.create_default_context(cafile=os.fspath(trust.file))
    except ssl.SSLError:
        raise NoAnswer(f"{trust.file} holds no certificates in PEM to trust") from None
    except OSError as error:
        raise NoAnswer(f"{trust.file} cannot be read: {error.strerror}") from None
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be a CA's
    return context


def _proxy_for(parts: SplitResult) -> SplitResult | None:
    host = parts.hostname or ""
    if host in LOOPBACK or not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - rare, and 25 ms

    named = getproxies().get(parts.scheme) or getproxies().get("all")
    if named is None or proxy_bypass(host):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")
