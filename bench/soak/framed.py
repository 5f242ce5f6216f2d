"""Good clients that speak HTTP/2 or WebSocket."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import trio
import wsproto
from wsproto import events as ws
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from bench.soak.ask import Ask, Header, Seen, judge, seen_of

PIECE_BYTES = 16_000
ENDED = (trio.BrokenResourceError, trio.ClosedResourceError)

REFUSED = b"HTTP/1.1 503 "
"""llmux refuses a connection over its limits in HTTP/1.1, before it knows the protocol."""


@dataclass
class Stream:
    """One request on an HTTP/2 connection.

    Attributes:
        rest: The part of the body that is still to be sent.
        leaves_at: Time at which the client gives up (Trio's clock).
        seen: Its end; None while it runs.
    """

    ask: Ask
    rest: bytes
    leaves_at: float
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    seen: Seen | None = None

    @property
    def status(self) -> int:
        """Status of the response; 0 if none has come."""
        return int(self.headers.get(":status", 0))

    def header(self, name: str) -> str:
        """Look up a header of the response; empty if there is none."""
        return self.headers.get(name, "")

    def end(self, seen: Seen) -> None:
        """Note the end, unless one was noted before."""
        if self.seen is None:
            seen.kind, seen.ended_at = "HTTP/2", time.time()
            self.seen = seen

    def break_off(self, detail: str) -> None:
        """Note an end that is a fault."""
        if not self.status:
            self.end(Seen("lost", detail=f"no answer: {detail}"))
        else:
            self.end(seen_of("cut", self.status, self.header, detail))


class H2Line:
    """An HTTP/2 connection with prior knowledge."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self._http = h2.connection.H2Connection(config=config)
        self._http.initiate_connection()
        self._streams: dict[int, Stream] = {}

    async def ask(self, asks: Sequence[Ask]) -> list[Seen]:
        """Send all requests at once; returns once each has ended."""
        now = trio.current_time()
        new = [Stream(ask, ask.body, now + ask.leave_after_s) for ask in asks]
        try:
            for stream in new:
                self._begin(stream)
            while any(stream.seen is None for stream in new):
                self._send_bodies()
                await self._flush()
                data = b""
                soonest = min((s.leaves_at for s in new if s.seen is None), default=math.inf)
                with trio.move_on_at(min(soonest, trio.current_time() + 5)):
                    data = await self.stream.receive_some(1 << 16)
                    if not data:
                        raise EOFError("closed")
                if data.startswith(REFUSED):
                    for stream in new:
                        stream.end(Seen("too_many_connections", detail="as HTTP/1.1"))
                    break
                self._give_up(new)
                for event in self._http.receive_data(bytes(data)):
                    self._take(event)
        except (*ENDED, EOFError, OSError, h2.exceptions.H2Error) as error:
            for stream in new:
                stream.break_off(f"connection: {error.__cause__ or error}")
        return [stream.seen for stream in new if stream.seen is not None]

    @property
    def can_go_on(self) -> bool:
        """True if it can carry more requests."""
        return self._http.state_machine.state is not h2.connection.ConnectionState.CLOSED

    def _begin(self, stream: Stream) -> None:
        ask = stream.ask
        headers = [
            (":method", "GET" if ask.own_path else "POST"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", ask.target),
            *((name.lower(), value) for name, value in ask.headers()),
        ]
        if not ask.own_path:
            headers.append(("content-length", str(len(ask.body))))
        number = self._http.get_next_available_stream_id()
        self._http.send_headers(number, headers, end_stream=not ask.body)
        self._streams[number] = stream

    def _send_bodies(self) -> None:
        for number, stream in self._streams.items():
            while stream.rest and stream.seen is None:
                room = self._http.local_flow_control_window(number)
                size = min(len(stream.rest), room, PIECE_BYTES, self._http.max_outbound_frame_size)
                if size <= 0:
                    break
                piece, stream.rest = stream.rest[:size], stream.rest[size:]
                try:
                    self._http.send_data(number, piece, end_stream=not stream.rest)
                except h2.exceptions.StreamClosedError:  # it was answered before it was reset
                    stream.rest = b""

    async def _flush(self) -> None:
        if data := self._http.data_to_send():
            # The response on a refused connection can still be read.
            with suppress(trio.BrokenResourceError):
                await self.stream.send_all(data)

    def _give_up(self, streams: Sequence[Stream]) -> None:
        now = trio.current_time()
        for number, stream in self._streams.items():
            if stream in streams and stream.seen is None and stream.leaves_at <= now:
                with suppress(h2.exceptions.ProtocolError):
                    self._http.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
                stream.end(Seen("left"))

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            raise EOFError(f"GOAWAY {event.error_code}")  # noqa: TRY004 - it is how it ends
        stream = self._streams.get(getattr(event, "stream_id", None) or 0)
        if stream is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            stream.headers = {str(name): str(value) for name, value in event.headers or ()}
        elif isinstance(event, h2.events.DataReceived):
            stream.body += event.data or b""
            size = event.flow_controlled_length or 0
            if size:
                with suppress(h2.exceptions.StreamClosedError):
                    self._http.acknowledge_received_data(size, event.stream_id or 0)
        elif isinstance(event, h2.events.StreamEnded):
            stream.end(judge(stream.ask, stream.status, stream.header, bytes(stream.body)))
        elif isinstance(event, h2.events.StreamReset):
            stream.break_off(f"reset with {event.error_code}")


async def talk(
    stream: trio.SocketStream, ask: Ask, messages: int, pause_s: float, target: str
) -> Seen:
    """Run a WebSocket to its end: the model echoes each message."""
    http = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    headers = [(name.encode(), value.encode()) for name, value in ask.headers()]
    request = ws.Request(host="localhost", target=target, extra_headers=headers)
    head: dict[str, str] = {}
    refusal = bytearray()
    status, echoed, text = 0, 0, ""
    early = b""
    try:
        await stream.send_all(http.send(request))
        while True:
            data, early = early or await stream.receive_some(1 << 16), b""
            http.receive_data(bytes(data) or None)
            for event in http.events():
                if isinstance(event, ws.AcceptConnection):
                    status, head = 101, _plain(event.extra_headers)
                elif isinstance(event, ws.RejectConnection):
                    status, head = event.status_code, _plain(event.headers)
                    if not event.has_body:
                        return _ended(judge(ask, status, _lookup(head), b""))
                    continue
                elif isinstance(event, ws.RejectData):
                    refusal += event.data
                    if event.body_finished:
                        return _ended(judge(ask, status, _lookup(head), bytes(refusal)))
                    continue
                elif isinstance(event, ws.TextMessage):
                    text += event.data
                    if not event.message_finished:
                        continue
                    if text != _message(ask, echoed):
                        return _ended(seen_of("wrong", status, _lookup(head), text[:200]))
                    echoed, text = echoed + 1, ""
                elif isinstance(event, ws.Ping):
                    await stream.send_all(http.send(event.response()))
                    continue
                elif isinstance(event, ws.CloseConnection):
                    detail = f"{event.code} after {echoed} messages"
                    return _ended(seen_of("cut", status, _lookup(head), detail))
                else:
                    continue
                if echoed == messages:
                    await stream.send_all(http.send(ws.CloseConnection(code=1000)))
                    right = _lookup(head)("x-llmux-model") == ask.model
                    return _ended(seen_of("ok" if right else "wrong", 101, _lookup(head)))
                with trio.move_on_after(pause_s):  # it notices a cut all the same
                    early += (more := await stream.receive_some(1 << 16))
                    if not more:
                        raise EOFError("closed")
                await stream.send_all(http.send(ws.TextMessage(data=_message(ask, echoed))))
            if not data:
                raise EOFError("closed")
    except (*ENDED, EOFError, LocalProtocolError, RemoteProtocolError) as error:
        detail = str(error.__cause__ or error)
        if not status:
            return _ended(Seen("lost", detail=f"no answer: {detail}"))
        return _ended(seen_of("cut", status, _lookup(head), detail))


def _message(ask: Ask, number: int) -> str:
    return f"{ask.id} {number} " * (1 + ask.size // 100)


def _plain(headers: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode().lower(): value.decode() for name, value in headers}


def _lookup(head: dict[str, str]) -> Header:
    return lambda name: head.get(name, "")


def _ended(seen: Seen) -> Seen:
    seen.kind, seen.ended_at = "WebSocket", time.time()
    return seen
