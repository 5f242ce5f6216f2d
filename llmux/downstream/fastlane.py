"""The fast lane: model traffic straight from the socket and back, for `llmux serve`.

It reads each request's head with llhttp, and carries model traffic itself, through the same
`ModelProxy` as the ASGI lane. Everything else (llmux's own paths, other versions of HTTP, protocols
that it does not know) goes to `hand_over`, with the bytes already read; the connection stays there.

    FastLane            accepted connections, one request after the other; idle ones are swept
    ClientConnection    bytes in and out, heads (`fast_connection`)
    Departures          clients that leave in mid-request (`fast_departures`)
    Pump                relays all bodies (`pump`)
    FastRequest         one request, its response (`fast_request`)
    FastWebSocket       one that asks for a WebSocket (`fast_websocket`)
    TlsConnection       a connection over TLS (`fast_tls`)
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from trio_util import periodic

from llmux.downstream.fast_connection import LINGER_S, ClientConnection
from llmux.downstream.fast_departures import Departures
from llmux.downstream.fast_request import FastRequest
from llmux.downstream.fast_tls import Farewells, TlsConnection
from llmux.downstream.fast_websocket import FastWebSocket
from llmux.downstream.pump import Pump
from llmux.errors import LlmuxError
from llmux.http import wire
from llmux.http.heads import RequestHead, parse_head
from llmux.http.paths import own_path
from llmux.http.strict import PREFACE_LINE
from llmux.http.targets import origin_form
from llmux.http.tls import HANDSHAKE_S, NotTls, TlsStream, refuse_plain
from llmux.observe.handshakes import TOO_SLOW, note_failed
from llmux.observe.logs import get_logger
from llmux.proxy.forward import ModelProxy
from llmux.proxy.lane import ClientLeft

KEEP_ALIVE_S = 75.0
"""How long a connection may be idle between requests (nginx's default)."""

SWEEP_S = 1.0
"""Interval at which idle connections are looked through."""

UPGRADES = (b"", b"websocket")
"""Changes of protocol that are carried."""

HandOver = Callable[[trio.SocketStream | TlsStream, bytes], Awaitable[None]]

log = get_logger(__name__)


class FastLane:
    """Serves connections until stopped.

    Args:
        proxy: Carries the model traffic.
        hand_over: Serves a connection from the bytes given on, to its end.
        stall_s: Seconds without a byte taken, or sent of a body, after which a client is cut; also
            those in which a backend takes nothing of what a WebSocket's client sends.
        most_fields: How many header fields a request may have.
    """

    def __init__(
        self, proxy: ModelProxy, hand_over: HandOver, *, stall_s: float, most_fields: int
    ) -> None:
        self.stall_s = stall_s
        self.is_stopping = False
        self._proxy = proxy
        self._hand_over = hand_over
        self._most_fields = most_fields
        self.pump = Pump()
        self._departures, self._farewells = Departures(), Farewells()
        self._idle_since: dict[ClientConnection, float] = {}  # oldest first

    async def run(self) -> None:
        """Relay, notice clients that leave, and close idle connections; never returns."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pump.run)
            nursery.start_soon(self._departures.run)
            try:
                async for _ in periodic(SWEEP_S):
                    self._close_idle(trio.current_time() - KEEP_ALIVE_S)
                    self._farewells.look()
            finally:
                self._farewells.close()

    def standing_still(self) -> list[str]:
        """Return those of its tasks that have not answered since the last call, for people."""
        pulses = {"relays bodies": self.pump.pulse, "notices departures": self._departures.pulse}
        return [f"the task that {does}" for does, pulse in pulses.items() if not pulse.look()]

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one connection to its end."""
        try:
            connection = ClientConnection(self, stream)
        except OSError:  # reset before it was accepted
            await trio.aclose_forcefully(stream)
            return
        await self._serve_to_end(connection)

    async def serve_tls(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        """Serve one connection over TLS to its end, beginning with its handshake."""
        try:
            connection = TlsConnection(self, stream, context)
        except OSError:  # reset before it was accepted
            await trio.aclose_forcefully(stream)
            return
        if not await self._shake_hands(connection):
            await trio.aclose_forcefully(stream)
            return
        connection.scope = trio.CancelScope()
        with self._farewells.watching(connection):
            await self._serve_to_end(connection)

    async def _shake_hands(self, connection: TlsConnection) -> bool:
        """Return whether the client speaks TLS from now on."""
        self.note_idle(connection)  # it may be closed like an idle one
        try:
            with connection.scope, trio.move_on_after(HANDSHAKE_S) as patience:
                await connection.tls.handshake()
                return True
            if patience.cancelled_caught:
                note_failed(connection.peer, TOO_SLOW)
        except NotTls as error:
            note_failed(connection.peer, str(error))
            with suppress(*wire.BREAKS, trio.TooSlowError):
                await refuse_plain(connection.stream)
        except (*wire.BREAKS, trio.TooSlowError) as error:
            note_failed(connection.peer, str(error) or TOO_SLOW)
        finally:
            self.note_busy(connection)
        return False

    async def _serve_to_end(self, connection: ClientConnection) -> None:
        try:
            with self._departures.watching(connection):
                await self._serve_here(connection)
            if connection.rest is not None:
                # There a client that has only closed its side gets its answer, and a server that
                # reads no more, with a request queued behind another, does not see the departure.
                connection.scope = trio.CancelScope()
                connection.outlasts_s = LINGER_S
                with self._departures.watching(connection), connection.scope:
                    await self._hand_over(connection.whole_stream, connection.rest)
        except LlmuxError as error:
            with suppress(*wire.BREAKS, ClientLeft):
                await connection.refuse(error)
        except (*wire.BREAKS, ClientLeft):
            pass
        except Exception:
            log.exception("connection_failed")
        finally:
            connection.say_goodbye()
            await trio.aclose_forcefully(connection.stream)

    async def _serve_here(self, connection: ClientConnection) -> None:
        """Serve one request after the other; returns at the end, or with `rest` set."""
        while True:
            with connection.scope:
                await self._serve_requests(connection)
            was_cancelled = connection.scope.cancelled_caught
            if was_cancelled:
                connection.rest = None
            deadline = connection.scope.deadline
            has_left = deadline <= trio.current_time()
            if has_left or was_cancelled or connection.rest or not connection.can_go_on:
                return
            # `Departures` is told of the client's end once only: what it said must stay.
            connection.scope = trio.CancelScope(deadline=deadline)

    async def _serve_requests(self, connection: ClientConnection) -> None:
        """Serve in this scope; returns early once it is cancelled, if only the request was cut."""
        while connection.can_go_on and not connection.scope.cancel_called:
            data = await connection.next_head()
            if data is None:
                connection.can_go_on = False
                return
            if data.startswith(PREFACE_LINE):
                connection.rest = data + connection.buffer
                return
            try:
                head = parse_head(data, self._most_fields)
                is_mine = _is_model_traffic(head)
            except LlmuxError:
                connection.unread = data
                raise
            if not is_mine:
                connection.rest = data + connection.buffer
                return
            kind = FastWebSocket if head.upgrade else FastRequest
            await self._proxy.serve(kind(connection, head, len(data), self._proxy.bodies))

    def stop(self) -> None:
        """Close idle connections now, and the others after the request that they carry."""
        self.is_stopping = True
        self._close_idle(math.inf)

    def note_idle(self, connection: ClientConnection) -> None:
        """See `fast_connection.Server`."""
        self._idle_since[connection] = trio.current_time()
        if self.is_stopping and not connection.has_unread():
            connection.scope.cancel()

    def note_busy(self, connection: ClientConnection) -> None:
        """See `fast_connection.Server`."""
        del self._idle_since[connection]

    def _close_idle(self, since: float) -> None:
        for connection, idle_since in self._idle_since.items():
            if idle_since > since:
                break
            if not connection.has_unread():  # a request that is here already gets its answer
                connection.scope.cancel()


def _is_model_traffic(head: RequestHead) -> bool:
    """Return whether this lane serves a request; raises BadRequest for a bad target."""
    path = origin_form(head.target).partition(b"?")[0]
    is_own = own_path(path, head.method) is not None
    return head.is_common and not is_own and head.upgrade in UPGRADES
