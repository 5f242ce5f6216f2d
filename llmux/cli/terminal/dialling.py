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
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from llmux.cli.terminal.failures import NoAnswer
from llmux.cli.terminal.target import UNIX, Trust
from llmux.http.certificates import BadPair, read_leaf
from llmux.http.served_certificate import fingerprint_of, read_served

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


class PinnedConnection(HTTPSConnection):
    """HTTPS to a server that has one of a few certificates.

    The address does not matter, nor does the certificate's time or issuer: the handshake proves
    that the server holds the certificate's key. Nothing is sent before the certificate is known.

    Args:
        host: Host to connect to.
        port: Its port.
        pins: Fingerprints of the certificates; see `fingerprint_of`.
        timeout: Limit for each step, in seconds.
    """

    def __init__(
        self, host: str, port: int | None = None, *, pins: frozenset[str], timeout: float
    ) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # `connect` verifies it
        super().__init__(host, port, timeout=timeout, context=context)
        self._pins = pins

    def connect(self) -> None:
        """See `HTTPConnection`; raises SSLCertVerificationError, too."""
        super().connect()
        certificate = self.sock.getpeercert(binary_form=True)
        if certificate is None or fingerprint_of(certificate) not in self._pins:
            self.close()
            raise ssl.SSLCertVerificationError(1, "its certificate is not llmux's")


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
        kind = _https(trust)
    proxy = _proxy_for(parts)
    if proxy is None or proxy.hostname is None:
        return kind(host, parts.port, timeout=timeout_s), ""
    connection = kind(proxy.hostname, proxy.port or 80, timeout=timeout_s)
    if is_tls:
        connection.set_tunnel(host, parts.port)
        return connection, ""
    return connection, f"http://{parts.netloc}"


def _https(trust: Trust | None) -> Callable[..., HTTPSConnection]:
    """Return what makes connections to a server that is to be trusted; raises NoAnswer."""
    if trust is None:
        return HTTPSConnection
    if trust.is_own:
        return partial(PinnedConnection, pins=_pins(trust))
    return partial(HTTPSConnection, context=_context(trust.file))


def _pins(trust: Trust) -> frozenset[str]:
    """Return the certificates that llmux may have: that of its config, and the one it serves now.

    The issuers in the file do not count: they have signed the certificates of other servers.

    Raises:
        NoAnswer: There are none.
    """
    served = None if trust.state_dir is None else read_served(trust.state_dir)
    pins = {served} if served else set()
    try:
        if trust.trouble:
            raise NoAnswer(trust.trouble)
        pins.add(fingerprint_of(read_leaf(trust.file)))
    except BadPair as error:
        if not pins:
            raise NoAnswer(f"{trust.file}, the certificate to trust: {error.message}") from None
    except NoAnswer:
        if not pins:
            raise
    return frozenset(pins)


def _context(file: Path) -> ssl.SSLContext:
    """Return a context that believes these certificates; raises NoAnswer."""
    try:
        context = ssl.create_default_context(cafile=os.fspath(file))
    except ssl.SSLError:
        raise NoAnswer(f"{file} holds no certificates in PEM to trust") from None
    except OSError as error:
        raise NoAnswer(f"{file} cannot be read: {error.strerror}") from None
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
