"""What an app is told of its connection: in order, bounded, and dropped once the app has ended.

Hypercorn waits for room in a queue that nothing reads any more. The task that waits is the one that
reads the connection: it hears nothing else from then on, not even that its client has left.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from hypercorn.asyncio.task_group import TaskGroup as AsyncioTaskGroup
from hypercorn.asyncio.task_group import _handle as handle_in_asyncio
from hypercorn.asyncio.worker_context import EventWrapper as AsyncioEvent
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup as TrioTaskGroup
from hypercorn.trio.task_group import _handle as handle_in_trio
from hypercorn.trio.worker_context import EventWrapper as TrioEvent
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Event, Scope

from llmux.base.names import shown
from llmux.observe.logs import get_logger
from llmux.server.hypercorn_side.rules import RULES

Put = Callable[[ASGIReceiveEvent], Awaitable[None]]
AppSend = Callable[[ASGISendEvent | None], Awaitable[None]]

log = get_logger(__name__)

LAST = frozenset({"http.disconnect", "websocket.disconnect"})
"""What ends a request waits for nothing."""

MOST_BYTES = 65536
"""Messages of a WebSocket that wait: so many bytes, and one that may be larger."""

NO_THREADS = (None, None)
"""What Hypercorn has for apps of WSGI."""


class Inbox:
    """The messages for one call of an app.

    Those of a WebSocket count as memory that is held until the app asks for the next one: by then
    it has passed them on.
    """

    def __init__(self, most: int, event_class: type[Event]) -> None:
        """Begin empty.

        Args:
            most: How many messages are kept; then `put` waits.
            event_class: Events of the loop that it is used in.
        """
        self._messages: deque[tuple[ASGIReceiveEvent, int]] = deque()
        self._bytes = 0  # in these
        self._taken_bytes = 0  # in the last one that was taken
        self._bodies = RULES.bodies
        self._most = most
        self._has_room = event_class()
        self._has_some = event_class()
        self._is_closed = False

    async def put(self, message: ASGIReceiveEvent) -> None:
        """Add a message; returns once there was room, or when the app has ended."""
        length = _length(message)
        self._count(length)
        try:
            while self._is_full and message["type"] not in LAST and not self._is_closed:
                await _wait_again(self._has_room)
            if self._is_closed:
                return
            self._messages.append((message, length))
            self._bytes += length
            length = 0
            await self._has_some.set()
        finally:
            self._count(-length)

    async def get(self) -> ASGIReceiveEvent:
        """The next message."""
        self._forget_taken()
        while not self._messages:
            await _wait_again(self._has_some)
        message, self._taken_bytes = self._messages.popleft()
        self._bytes -= self._taken_bytes
        await self._has_room.set()
        return message

    async def close(self) -> None:
        """The app has ended: what comes is for nobody."""
        self._is_closed = True
        self._forget_taken()
        self._count(-self._bytes)
        self._bytes = 0
        self._messages.clear()
        await self._has_room.set()

    @property
    def _is_full(self) -> bool:
        return len(self._messages) >= self._most or self._bytes >= MOST_BYTES

    def _forget_taken(self) -> None:
        self._count(-self._taken_bytes)
        self._taken_bytes = 0

    def _count(self, by: int) -> None:
        if self._bodies is not None:
            self._bodies.held_bytes += by

    def closed_after(self, app: AppWrapper) -> AppWrapper:
        """The app, after which this is closed."""

        async def serve(*args: Any) -> None:
            try:
                await app(*args)
            finally:
                await self.close()

        return serve  # type: ignore[return-value]


def _length(message: ASGIReceiveEvent) -> int:
    """Bytes of a WebSocket's message; those of other messages are counted where they are taken."""
    if message["type"] != "websocket.receive":
        return 0
    return len(message.get("bytes") or b"") + len(message.get("text") or "")


async def _wait_again(event: Event) -> None:
    """Wait until an event is set once more. One that is waited for is not replaced."""
    if event.is_set():
        await event.clear()
    await event.wait()


def ending_quietly(send: AppSend) -> AppSend:
    """What an app sends with; what Hypercorn does once it has ended (None) raises nothing.

    In Trio that would end the server, with everybody's requests.
    """

    async def say(message: ASGISendEvent | None) -> None:
        try:
            await send(message)
        except Exception as error:
            if message is not None:
                raise
            log.error("answer_unfinished", error=shown(repr(error)))

    return say


class InboxTrioGroup(TrioTaskGroup):
    """The tasks of one connection."""

    async def __aexit__(self, *error: Any) -> None:
        nursery = self._nursery
        await super().__aexit__(*error)
        self._nursery = nursery  # closed: who still wants something of it gets a RuntimeError

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:
        """Begin a task, unless the connection has ended."""
        with suppress(RuntimeError):
            super().spawn(func, *args)

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Scope, send: AppSend) -> Put:
        """Call the app; returns what gives it messages."""
        inbox = Inbox(config.max_app_queue_size, TrioEvent)
        self.spawn(
            handle_in_trio,
            inbox.closed_after(app),
            config,
            scope,
            inbox.get,
            ending_quietly(send),
            *NO_THREADS,
        )
        return inbox.put


class ClosingTasks(asyncio.TaskGroup):
    """Closes what it does not take any more; Python would say that it was never awaited."""

    def create_task(self, coro: Any, **settings: Any) -> Any:
        """As in asyncio; raises RuntimeError once the group has ended."""
        try:
            return super().create_task(coro, **settings)
        except RuntimeError:
            coro.close()
            raise


class InboxAsyncioGroup(AsyncioTaskGroup):
    """The same in asyncio."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._task_group = ClosingTasks()

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Scope, send: AppSend) -> Put:
        """Call the app; returns what gives it messages."""
        inbox = Inbox(config.max_app_queue_size, AsyncioEvent)
        self.spawn(
            handle_in_asyncio, inbox.closed_after(app), config, scope, inbox.get, send, *NO_THREADS
        )
        return inbox.put

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:
        """Begin a task, unless the connection has ended."""
        with suppress(RuntimeError):
            super().spawn(func, *args)
