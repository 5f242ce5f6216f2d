"""Clients that leave, as one epoll notices them."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from llmux.downstream.fast_connection import ClientConnection
from llmux.downstream.fast_departures import Departures
from llmux.downstream.pump import Pump
from tests.downstream.test_pump import Lane


async def test_a_connection_that_comes_after_the_end_is_served_unwatched() -> None:
    """At a second signal all ends in any order: no error may come of that."""
    departures = Departures()
    with trio.CancelScope() as scope:
        scope.cancel()
        await departures.run()
    client, server = trio.socket.socketpair()
    with client, server:
        connection = ClientConnection(Lane(Pump()), trio.SocketStream(server))
        with departures.watching(connection):
            await trio.lowlevel.checkpoint()


async def test_a_departure_that_is_noted_again_does_not_win_time(autojump_clock: MockClock) -> None:
    client, server = trio.socket.socketpair()
    with client, server:
        connection = ClientConnection(Lane(Pump()), trio.SocketStream(server))
        connection.outlasts_s = 2.0
        with trio.fail_after(2.5), connection.scope:
            while True:
                connection.note_left()
                await trio.sleep(1)
    assert connection.scope.cancelled_caught
