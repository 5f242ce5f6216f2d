"""Notice clients that leave while a request of theirs is being served on the fast lane."""

from __future__ import annotations

import select
from contextlib import suppress
from typing import ClassVar

import trio

from llmux.downstream.fast_connection import ClientConnection
from llmux.downstream.pulse import Pulse


class Departures:
    """One epoll for all connections, so that requests pay nothing for it.

    It is told once about each connection, and wakes its one task when a client closes its side,
    even while earlier data of it is unread.

    An event names a descriptor by its number only, and may belong to an earlier owner of the
    number: a closed socket stays registered while a child between fork and exec has a copy of it
    (epoll(7), Q6). So an event is only a reason to look at the connection that has the number now.

    Attributes:
        pulse: Shows that `run` runs.
    """

    # One event is enough, and without EPOLLONESHOT it would come again until the close.
    events: ClassVar[int] = select.EPOLLRDHUP | select.EPOLLONESHOT

    def __init__(self) -> None:
        self.pulse = Pulse()
        self._epoll = select.epoll()
        self._connections: dict[int, ClientConnection] = {}

    async def run(self) -> None:
        """Cancel the work for clients that have left; never returns."""
        try:
            with self.pulse.beating(self._epoll):
                while True:
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                    self.look()
        finally:
            self._epoll.close()

    def look(self) -> None:
        """Cancel the work for the clients that have left since the last look."""
        for fileno, _ in self._epoll.poll(0):
            if fileno == self.pulse.fileno:
                self.pulse.answer()
                continue
            connection = self._connections.get(fileno)
            if connection is not None and connection.has_left():
                connection.note_left()

    def watching(self, connection: ClientConnection) -> Watch:
        """Watch a connection for as long as the context lasts."""
        return Watch(self, connection)

    def add(self, connection: ClientConnection) -> None:
        self._connections[connection.fileno] = connection
        # At a shutdown `run` may have ended already; then the connection is cancelled, too.
        if not self._epoll.closed:
            self._epoll.register(connection.fileno, self.events)

    def forget(self, connection: ClientConnection) -> None:
        """Stop watching; harmless when another connection has the number by now."""
        if self._connections.get(connection.fileno) is connection:
            del self._connections[connection.fileno]
            with suppress(OSError, ValueError):  # closed already: the kernel has forgotten it, too
                self._epoll.unregister(connection.fileno)


class Watch:
    """See `Departures.watching`."""

    def __init__(self, departures: Departures, connection: ClientConnection) -> None:
        self._departures = departures
        self._connection = connection

    def __enter__(self) -> None:
        self._departures.add(self._connection)

    def __exit__(self, *_: object) -> None:
        self._departures.forget(self._connection)
