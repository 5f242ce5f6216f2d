"""TLS where Hypercorn's connection class serves: the control port, and systems without epoll."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from llmux.http import wire
from llmux.http.tls import HANDSHAKE_S, NotTls, TlsSocket, TlsStream, refuse_plain
from llmux.observe.logs import get_logger
from llmux.server.connection_limits import peer_of

log = get_logger(__name__)

Serve = Callable[[TlsStream, bytes], Awaitable[None]]


async def serve_tls(serve: Serve, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
    """Shake hands on a connection, and serve it to its end.

    Args:
        serve: Serves the connection from the bytes given on.
        stream: The connection, as it was accepted.
        context: Holds the certificate.
    """
    tls = TlsSocket(stream.socket, context)
    try:
        with trio.move_on_after(HANDSHAKE_S) as patience:
            await tls.handshake()
    except NotTls:
        with suppress(*wire.BREAKS, trio.TooSlowError):
            await refuse_plain(stream)
    except (*wire.BREAKS, trio.TooSlowError) as error:
        with suppress(OSError):
            log.debug("handshake_failed", peer=peer_of(stream.socket), reason=str(error))
    else:
        if not patience.cancelled_caught:
            await serve(TlsStream(tls, stream), b"")
            return
    await trio.aclose_forcefully(stream)
