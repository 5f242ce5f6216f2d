"""TLS where Hypercorn's connection class serves: the control port, and systems without epoll."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from llmux.http import wire
from llmux.http.tls import HANDSHAKE_S, NotTls, TlsSocket, TlsStream, refuse_plain
from llmux.observe.handshakes import TOO_SLOW, note_failed
from llmux.server.connection_limits import peer_of

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
    except NotTls as error:
        _note(stream, str(error))
        with suppress(*wire.BREAKS, trio.TooSlowError):
            await refuse_plain(stream)
    except (*wire.BREAKS, trio.TooSlowError) as error:
        _note(stream, str(error) or TOO_SLOW)
    else:
        if not patience.cancelled_caught:
            await serve(TlsStream(tls, stream), b"")
            return
        _note(stream, TOO_SLOW)
    await trio.aclose_forcefully(stream)


def _note(stream: trio.SocketStream, reason: str) -> None:
    with suppress(OSError):  # it has been reset
        note_failed(peer_of(stream.socket), reason)
