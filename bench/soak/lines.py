"""A good client's connection over HTTP/1.x, with raw sockets: kept alive, pipelined, or neither."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress

import h11
import trio

from bench.soak.ask import Ask, Seen, judge, seen_of
from bench.soak.settings import STALL_S

UPLOAD_PIECES = 20
UPLOAD_PAUSE_S = 0.1

ERROR_EVENT = b'data: {"error"'
"""Start of the last event of a stream that llmux has cut."""


async def connect(port: int, source: str, *, receive_buffer: int = 0) -> trio.SocketStream:
    """Connect to llmux from one of this machine's own addresses.

    Args:
        port: Where llmux listens.
        source: The address to come from, one of 127.0.0.0/8.
        receive_buffer: Size of the kernel's buffer in bytes; 0 for its default.
    """
    plain = trio.socket.socket()
    try:
        if receive_buffer:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await plain.bind((source, 0))
        await plain.connect(("127.0.0.1", port))
    except BaseException:
        plain.close()
        raise
    return trio.SocketStream(plain)


def reset(stream: trio.SocketStream) -> None:
    """Disconnect with a RST."""
    with suppress(OSError):
        option = struct.pack("ii", 1, 0)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
    stream.socket.close()


def encode(ask: Ask) -> bytes:
    """Return the whole request as bytes."""
    method = "GET" if ask.own_path else "POST"
    lines = [f"{method} {ask.target} HTTP/{ask.version}", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in ask.headers()]
    if ask.closes:
        lines.append("Connection: close")
    body = ask.body
    if ask.chunked:
        lines.append("Transfer-Encoding: chunked")
        body = b"".join(
            b"%x\r\n%b\r\n" % (len(piece), piece)
            for piece in (body[at : at + 5000] for at in range(0, len(body), 5000))
        )
        body += b"0\r\n\r\n"
    elif not ask.own_path:
        lines.append(f"Content-Length: {len(body)}")
    if ask.stops_after >= 0:
        body = body[: ask.stops_after]
    head = "\r\n".join([*lines, "", ""]).encode()
    return head + body + (b"\r\n" if ask.extra_crlf else b"")


def is_part(body: bytes, whole: Sequence[bytes]) -> bool:
    """Return whether it is a part of one of these; an event about a cut may follow."""
    begun = body[: body.rfind(ERROR_EVENT)] if ERROR_EVENT in body else body
    return any(right != body and right.startswith(begun) for right in whole)


class Line:
    """A client's connection; it carries requests until one side closes it.

    Attributes:
        opened_at: Time of opening (wall clock): a kill of llmux since then has closed it.
        can_go_on: It may carry another request.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.opened_at = time.time()
        self.can_go_on = True
        self._ends: list[str] = []
        self._early = b""  # of the next answer
        self._http = h11.Connection(h11.CLIENT)
        self._head: h11.Response | None = None
        self._body = bytearray()

    async def ask(self, asks: Sequence[Ask]) -> list[Seen]:
        """Send requests in one go, and read their responses in order."""
        data = b"".join(encode(ask) for ask in asks)
        seen: list[Seen] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, data, asks[-1])
            for ask in asks:
                if not self.can_go_on:  # the previous response was the last on this connection
                    seen.append(Seen("unserved", ended_at=time.time()))
                    continue
                seen.append(await self._take(ask))
                seen[-1].ended_at = time.time()
                if seen[-1].outcome == "lost" and self._ends:
                    seen[-1].detail += f", after {', '.join(self._ends)}"
                self._ends.append(f"{ask.own_path} {seen[-1].status} {seen[-1].outcome}".strip())
            nursery.cancel_scope.cancel()
        return seen

    async def _send(self, data: bytes, ask: Ask) -> None:
        # A server may answer before it has read it all: then the answer counts.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            step = max(1, len(data) // UPLOAD_PIECES) if ask.is_slow_upload else len(data)
            for start in range(0, len(data), step):
                await self.stream.send_all(data[start : start + step])
                if ask.is_slow_upload:
                    await trio.sleep(UPLOAD_PAUSE_S)
            if ask.half_closes:
                await self.stream.send_eof()

    async def _take(self, ask: Ask) -> Seen:
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self._http.send(h11.Request(method="GET", target="/", headers=[("Host", "localhost")]))
        self._http.send(h11.EndOfMessage())
        if self._early:
            self._http.receive_data(self._early)
        self._head, self._body = None, bytearray()
        seen = await self._take_events(ask)
        self._early = self._http.trailing_data[0]
        is_last = ask.closes or ask.half_closes or ask.version != "1.1"
        self.can_go_on = self._http.their_state is h11.DONE and not is_last
        return seen

    async def _take_events(self, ask: Ask) -> Seen:
        while True:
            try:
                event = self._http.next_event()
                if event is h11.NEED_DATA:
                    self._http.receive_data(await self._receive(ask))
                    continue
            except h11.RemoteProtocolError as error:
                return self._broken(str(error))
            except trio.BrokenResourceError as error:
                return self._broken(str(error.__cause__ or error))
            if isinstance(event, h11.Response):
                self._head = event
                if ask.stalls:
                    await trio.sleep(STALL_S + 2)
                    return seen_of("left", event.status_code, self._header)
            elif isinstance(event, h11.Data):
                self._body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return self._whole(ask)
            elif isinstance(event, h11.ConnectionClosed):
                return self._broken("closed")

    async def _receive(self, ask: Ask) -> bytes:
        if ask.pace:
            await trio.sleep(0.02)
        return bytes(await self.stream.receive_some(ask.pace or 1 << 16))

    def _whole(self, ask: Ask) -> Seen:
        assert self._head is not None
        body, status = bytes(self._body), self._head.status_code
        has_end = bool(self._header("content-length") or self._header("transfer-encoding"))
        if not has_end and is_part(body, ask.expected()):
            return self._broken("closed")  # HTTP/1.0 cannot mark a cut in any other way
        return judge(ask, status, self._header, body)

    def _broken(self, detail: str) -> Seen:
        if self._head is None:
            return Seen("lost", detail=f"no answer: {detail}")
        detail = f"{detail}, after {len(self._body)} bytes"
        return seen_of("cut", self._head.status_code, self._header, detail)

    def _header(self, name: str) -> str:
        assert self._head is not None
        wanted = name.encode()
        return next((value.decode() for key, value in self._head.headers if key == wanted), "")
