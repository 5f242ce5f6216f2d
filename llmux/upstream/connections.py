"""Connections to a backend: opening them, the state of each, and the pool of idle ones."""

from __future__ import annotations

import errno
import math
import os
import socket
import ssl
import struct
import sys
from urllib.parse import urlsplit

import trio

from llmux.errors import BackendBroke, BackendError, BackendRefused
from llmux.http import wire
from llmux.http.socketpath import SCHEME, socket_path
from llmux.upstream.seen import PIECE_BYTES, UNSEEN, Seen

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

MAX_IDLE = 512
"""Limit for idle connections to one backend: enough for a large batch (vLLM's `max_num_seqs` is 256
by default), so that the next batch need not connect again."""

IDLE_S = 30.0
"""Seconds after which an idle connection is not used again; NAT routers forget silent ones."""

LAST_DATA_RECV = 52
"""Offset in `struct tcp_info` (linux/tcp.h) of the milliseconds since data was received. The kernel
keeps that time anyway, so that it costs nothing for each chunk."""

# Failures to connect that are this host's own fault, and no reason to think the backend is down.
LOCAL_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}
)


class Connection:
    """One connection to a backend, and the state of the request that it carries.

    `pending` holds bytes received and not used yet. Bytes left there once the answer has ended
    belong to no request: such a connection is closed instead of returned to the pool, like one with
    an unfinished request or answer. `seen` keeps the first and the last bytes of the answer's body.
    """

    __slots__ = (
        "_socket",
        "_tls",
        "fileno",
        "has_answered",
        "has_ended",
        "has_sent",
        "idle_since",
        "keeps_alive",
        "pending",
        "seen",
        "stream",
    )

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.idle_since = 0.0
        self._tls = stream if isinstance(stream, trio.SSLStream) else None
        self._socket = (stream if self._tls is None else self._tls.transport_stream).socket
        self.fileno = self._socket.fileno()
        self.begin()

    @property
    def is_tls(self) -> bool:
        """True if what arrives must be decrypted, which `receive_now` does not do."""
        return self._tls is not None

    def begin(self) -> None:
        """Reset the state for another request."""
        self.pending = b""
        self.seen = Seen()
        self.has_sent = self.has_answered = self.has_ended = self.keeps_alive = False

    def end(self, excess: bytes) -> None:
        """Note the end of the answer, and the bytes that came after it."""
        self.has_ended = True
        self.pending = excess
        self.seen = UNSEEN  # the answer has it; an idle connection need not

    def can_carry_another(self) -> bool:
        """Return whether both sides are done with the last request, and nothing came after it."""
        return self.has_sent and self.has_ended and self.keeps_alive and not self.pending

    async def send(self, *parts: bytes) -> None:
        """Send a request.

        A break is no error here: a backend that stops reading may have answered all the same (413,
        then close), so what is received decides (RFC 9112, section 9.5).
        """
        try:
            for part in parts:
                if self._tls is None:
                    await wire.send(self._socket, part)
                else:
                    await self._tls.send_all(part)
        except wire.BREAKS:
            return
        self.has_sent = True

    async def receive(self) -> bytes:
        """Return pending bytes, or the next to arrive; nothing at the end of the stream.

        Raises:
            BackendBroke: The connection broke.
        """
        if self.pending:
            data, self.pending = self.pending, b""
            return data
        try:
            if self._tls is None:
                data = await wire.receive(self._socket)
            else:
                data = bytes(await self._tls.receive_some(wire.RECEIVE_BYTES))
        except wire.BREAKS as error:
            raise BackendBroke(str(error)) from error
        self._note(data)
        return data

    def receive_now(self) -> bytes | None:
        """Return what has arrived, pending bytes aside; nothing at the end, None if nothing has.

        Raises:
            BackendBroke: The connection broke.
        """
        try:
            data = os.read(self.fileno, wire.RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise BackendBroke(str(error)) from error
        self._note(data)
        return data

    def _note(self, data: bytes) -> None:
        seen = self.seen
        if seen.is_opening:
            seen.open(data)
        seen.last.append(data if len(data) <= PIECE_BYTES else data[-PIECE_BYTES:])

    async def receive_more(self) -> bytes:
        """Like `receive`, but raise BackendBroke at the end of the stream, too."""
        data = await self.receive()
        if not data:
            raise broken_off()
        return data

    def is_silent(self) -> bool:
        """Return whether an idle connection can be used: no byte has arrived, nor its end."""
        try:
            os.read(self._socket.fileno(), 1)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def heard_at(self) -> float:
        """Return when a byte of the present answer arrived last (Trio's clock); -inf: never."""
        if not self.has_answered:
            return -math.inf
        try:
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except (AttributeError, OSError):  # no Linux; closed
            return -math.inf
        (ago_ms,) = struct.unpack_from("=I", info, LAST_DATA_RECV)
        return trio.current_time() - float(ago_ms) / 1000

    def allow_stall(self, dead_s: float | None, *, allowed: bool) -> None:
        """See `wire.allow_stall`."""
        wire.allow_stall(self._socket, dead_s, allowed=allowed)

    def close(self) -> None:
        """Close at once: no TLS farewell, nothing to await."""
        self._socket.close()


def broken_off() -> BackendBroke:
    """Return the error for an answer that ends before its end."""
    return BackendBroke("closed the connection before the end of its answer")


class TimedConnection(Connection):
    """A connection for which the kernel keeps no time of receipt: Unix sockets; other systems."""

    __slots__ = ("_heard_at",)

    def begin(self) -> None:
        """See `Connection`."""
        super().begin()
        self._heard_at = -math.inf

    def _note(self, data: bytes) -> None:
        """See `Connection`; notes the time, too, which costs 0.1 us."""
        super()._note(data)
        self._heard_at = trio.current_time()

    def heard_at(self) -> float:
        """See `Connection`."""
        return self._heard_at if self.has_answered else -math.inf


TCP_CONNECTION = Connection if sys.platform == "linux" else TimedConnection


class Origin:
    """A backend's address, and how to connect to it.

    Attributes:
        host_header: Value of the Host header.
        prefix: Path put before every target.
        dead_peer_s: See `Backend`.
    """

    def __init__(
        self, base_url: str, connect_timeout_s: float, dead_peer_s: float | None = None
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self.dead_peer_s = dead_peer_s
        self._path = socket_path(base_url)
        if self._path is not None:
            self._shown = SCHEME + self._path
            self.host_header, self.prefix = b"localhost", b""
            return
        url = urlsplit(base_url)
        if url.scheme not in {"http", "https"} or not url.hostname:
            raise ValueError(f"not an http or https URL: {base_url!r}")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        shown_host = f"[{self._host}]" if ":" in self._host else self._host
        self._shown = f"{shown_host}:{self._port}"
        self.host_header = url.netloc.rpartition("@")[2].encode("ascii")
        self.prefix = url.path.rstrip("/").encode("ascii")

    async def connect(self) -> Connection:
        """Open a connection.

        Raises:
            BackendRefused: The backend accepts none.
            BackendError: None can be opened, for a reason on this side.
        """
        try:
            with trio.fail_after(self._connect_timeout_s):
                if self._path is not None:
                    return TimedConnection(await wire.connect_unix(self._path))
                return TCP_CONNECTION(await self._open())
        except trio.TooSlowError:
            raise BackendRefused(
                f"no connection to {self._shown} within {self._connect_timeout_s:g} s"
            ) from None
        except wire.BREAKS as error:
            cause = first_cause(error)
            is_local = isinstance(cause, OSError) and cause.errno in LOCAL_ERRNOS
            why = (isinstance(cause, OSError) and cause.strerror) or cause
            reason = f"no connection to {self._shown}: {why}"
            raise (BackendError if is_local else BackendRefused)(reason) from error

    async def _open(self) -> Stream:
        tcp = await wire.connect(self._host, self._port)
        wire.notice_death(tcp.socket, self.dead_peer_s)
        if self._tls is None:
            return tcp
        tls = trio.SSLStream(tcp, self._tls, server_hostname=self._host, https_compatible=True)
        try:
            await tls.do_handshake()
        except BaseException:
            tcp.socket.close()
            raise
        return tls


def first_cause(error: BaseException) -> BaseException:
    """Return the error that says most: Trio groups those of all addresses that it tried."""
    while (cause := error.__cause__) is not None:
        error = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause
    return error


class Pool:
    """The connections to one backend, idle and in use.

    The one used last is used next, so that after a burst the others age out. There is no task for
    that: old ones are closed when another is put back.
    """

    def __init__(self) -> None:
        self.in_use = 0
        self._busy: set[Connection] = set()
        self._idle: list[Connection] = []  # oldest first
        self._heard_at = -math.inf
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Connection | None:
        """Return an idle connection that looks alive, or None."""
        oldest = trio.current_time() - IDLE_S
        while self._idle:
            connection = self._idle.pop()
            if connection.idle_since >= oldest and connection.is_silent():
                return connection
            connection.close()
        return None

    def add(self, connection: Connection) -> None:
        """Count a connection as in use, until `put_back`."""
        self._busy.add(connection)

    def heard_at(self) -> float:
        """Return when a byte of an answer arrived last (Trio's clock); -inf: never."""
        return max([self._heard_at, *(each.heard_at() for each in self._busy)])

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for another request if it can carry one, else close it at once."""
        self._busy.discard(connection)
        if connection.has_ended:
            self._heard_at = trio.current_time()
        else:
            self._heard_at = max(self._heard_at, connection.heard_at())
        if self._is_closed or not connection.can_carry_another():
            connection.close()
            return
        now = connection.idle_since = self._heard_at
        self._idle.append(connection)
        while len(self._idle) > MAX_IDLE or self._idle[0].idle_since < now - IDLE_S:
            self._idle.pop(0).close()

    def close(self) -> None:
        """Close the idle ones now, and those in use when they are put back."""
        self._is_closed = True
        self.close_idle()

    def close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
