"""TLS on the server's side of a socket, with what is not sent yet in its own hands.

OpenSSL works on memory here, and this module reads and writes the socket as `wire` does: reading
waits first, writing waits only if it must. So data can be encrypted and sent without a checkpoint,
and a send that is cancelled leaves the stream of records intact.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress

import trio

from llmux.http import wire

HANDSHAKE_S = 30.0
"""Limit for a handshake, as for the head of a request."""

HANDSHAKES_A_TURN = 4
"""Handshakes that compute in one round of the event loop: each takes about a millisecond."""

RECORD = 0x16
"""First byte of a TLS connection: a handshake record (RFC 8446, section 5.1)."""

SLICE_BYTES = 65536
"""Plaintext that is encrypted at a time."""

MOST_EARLY_BYTES = SLICE_BYTES
"""Data kept of a client that sends while nobody receives; a goodbye behind more is found later."""

MOST_UNSENT_BYTES = 4 * SLICE_BYTES
"""A peer that has TLS answer more than this (KeyUpdate) and reads nothing is cut."""

REFUSAL_S = 2.0
"""Time for a client without TLS to read why it is refused."""

_NOT_TLS = (
    b"llmux serves HTTPS on this port, and has received something other than TLS: "
    b"use https:// in the URL, not http://.\n"
)

NOT_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(_NOT_TLS)
) + _NOT_TLS

_turns = trio.CapacityLimiter(HANDSHAKES_A_TURN)


class NotTls(Exception):
    """The client does not speak TLS.

    Attributes:
        data: What it has sent.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__("the client does not speak TLS")
        self.data = data


class HandshakeFailed(OSError):
    """The client and llmux found no common ground, or the client left."""


class TlsSocket:
    """One TLS connection on a socket.

    Args:
        socket: A connection whose client begins with a handshake.
        context: Holds the certificate.

    Attributes:
        has_ended: True once the client has said that it sends no more, or has closed its side.
        is_reading: True while a task waits for the client's bytes.
    """

    def __init__(self, socket: trio.socket.SocketType, context: ssl.SSLContext) -> None:
        self._socket = socket
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = b""
        self._early = b""  # decrypted by `look`, not received yet
        self.has_ended = self.is_reading = False

    @property
    def has_early(self) -> bool:
        """True if there is data for `receive` that no poll of the socket tells of."""
        return bool(self._early)

    @property
    def protocol(self) -> str | None:
        """The protocol that ALPN chose, if any."""
        return self._tls.selected_alpn_protocol()

    # ---- The handshake ----

    async def handshake(self) -> None:
        """Shake hands; what is left to send of it goes out with the first data.

        Raises:
            NotTls: The client speaks something else.
            HandshakeFailed: There is no agreement.
        """
        is_first = True
        while True:
            data = await wire.receive(self._socket)
            if not data:
                raise HandshakeFailed("the client left during the handshake")
            if is_first and data[0] != RECORD:
                raise NotTls(data)
            is_first = False
            self._incoming.write(data)
            async with _turns:  # which is a checkpoint, too
                is_done = self._advance()
            await self.flush()
            if is_done:
                if self._incoming.pending:  # the first request came with the end of the handshake
                    self._early = self._readable()
                return

    def _advance(self) -> bool:
        """Take the handshake further; returns True at its end."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            with suppress(OSError):
                self._push()  # the alert that says why
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise HandshakeFailed(reason) from None
        return True

    # ---- Receiving ----

    async def receive(self) -> bytes:
        """Return the client's next bytes; nothing once it sends no more. Raises OSError."""
        if self._early:
            data, self._early = self._early, b""
            await trio.lowlevel.checkpoint()
            return data
        self.is_reading = True
        try:
            while not self.has_ended:
                data = self._decrypt(await wire.receive(self._socket))
                if data:
                    return data
        finally:
            self.is_reading = False
        await trio.lowlevel.checkpoint()
        return b""

    def _decrypt(self, data: bytes) -> bytes:
        """Return what has become readable with these bytes of the socket."""
        if not data:
            self.has_ended = True
            return b""
        self._incoming.write(data)
        return self._readable()

    def _readable(self) -> bytes:
        """Decrypt what is in memory. Raises OSError."""
        found = b""
        try:
            while True:
                more = self._tls.read(wire.RECEIVE_BYTES)
                found = found + more if found else more
                if not more:  # close_notify
                    self.has_ended = True
                    break
                if not self._incoming.pending:
                    break
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.has_ended = True
            raise ConnectionAbortedError(str(error)) from None
        if self._outgoing.pending:  # to a KeyUpdate, or an alert
            self._push()
            if len(self._unsent) > MOST_UNSENT_BYTES:
                raise ConnectionAbortedError("the client does not read")
        return found

    def look(self) -> None:
        """Read what has arrived while nobody receives, to notice a client that says goodbye.

        TLS has its own end of data (close_notify), after which many clients (asyncio) keep the
        connection open until they get the same. It may follow data, which is kept for `receive`,
        up to `MOST_EARLY_BYTES` and what one more read holds.
        """
        if self.is_reading:
            return
        try:
            while not self.has_ended and len(self._early) < MOST_EARLY_BYTES:
                self._early += self._decrypt(os.read(self._socket.fileno(), wire.RECEIVE_BYTES))
        except BlockingIOError:
            pass
        except OSError:
            self.has_ended = True

    # ---- Sending ----

    def write(self, data: bytes | memoryview) -> bool:
        """Encrypt data, and send what the kernel takes at once.

        Returns:
            False if some is left for `flush`.

        Raises:
            OSError: The connection broke.
        """
        if data:
            count = self._tls.write(data)
            while count < len(data):  # OpenSSL writes one record of 16 KiB at a time
                count += self._tls.write(memoryview(data)[count:])
        return self._push()

    def _push(self) -> bool:
        """Send what is encrypted, as far as the kernel takes it; returns True if that is all."""
        data = self._outgoing.read()
        if self._unsent:
            data = self._unsent + data
        if not data:
            return True
        sent = wire.write(self._socket, data)
        self._unsent = b"" if sent == len(data) else data[sent:]
        return not self._unsent

    async def flush(self, stall_s: float = HANDSHAKE_S) -> None:
        """Send what is encrypted; waits only if it must.

        Raises:
            trio.TooSlowError: The client took nothing for `stall_s`.
            OSError: The connection broke.
        """
        while not self._push():
            with trio.fail_after(stall_s):
                await trio.lowlevel.wait_writable(wire.open_fileno(self._socket))

    def say_goodbye(self) -> None:
        """Tell the client that no more data follows, if it takes that at once."""
        with suppress(OSError):  # SSLError is one
            self._tls.unwrap()
        with suppress(*wire.BREAKS):
            self._push()


async def refuse_plain(stream: trio.SocketStream) -> None:
    """Tell a client that speaks HTTP without TLS what to do, as nginx does.

    Raises:
        trio.TooSlowError: The client does not read.
        OSError: The connection broke.
    """
    with trio.fail_after(REFUSAL_S):
        await wire.send(stream.socket, NOT_TLS)
        await stream.send_eof()
        while await wire.receive(stream.socket):
            pass  # closing on unread data would lose the client the answer


class TlsStream(trio.abc.Stream):
    """A TLS connection in the form that Hypercorn takes, after its handshake.

    Args:
        tls: The connection.
        transport_stream: Its TCP stream.
    """

    def __init__(self, tls: TlsSocket, transport_stream: trio.SocketStream) -> None:
        self._tls = tls
        self.transport_stream = transport_stream

    @property
    def socket(self) -> trio.socket.SocketType:
        return self.transport_stream.socket

    async def do_handshake(self) -> None:
        """Do nothing: it is done."""

    def selected_alpn_protocol(self) -> str | None:
        return self._tls.protocol

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002
        """Return the next bytes; raises BrokenResourceError or ClosedResourceError."""
        try:
            return await self._tls.receive()
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it; raises BrokenResourceError or ClosedResourceError."""
        await trio.lowlevel.checkpoint()
        try:
            with memoryview(data) as view:
                for start in range(0, len(view), SLICE_BYTES):
                    self._tls.write(view[start : start + SLICE_BYTES])
                    await self._tls.flush(float("inf"))
        except OSError as error:
            raise trio.BrokenResourceError from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes data."""
        await self.transport_stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that no more data follows, and close this side."""
        self._tls.say_goodbye()
        await self.transport_stream.send_eof()

    async def aclose(self) -> None:
        """Say goodbye if the client takes that at once, and close."""
        self._tls.say_goodbye()
        await self.transport_stream.aclose()
