"""The queue of messages for an app: ordered, bounded, and discarded once the app has ended.

Hypercorn waits for room in the queue even when no app reads it any more. The task that waits is the
one that reads the connection, so from then on it notices nothing, not even that the client has
left.
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
"""Messages that end a request; they are queued even when the queue is full."""

MOST_BYTES = 65536
"""Size of the queued WebSocket messages from which on `put` waits; the last one may exceed it."""

NO_THREADS = (None, None)
"""Arguments that Hypercorn uses for WSGI apps only."""


class Inbox:
    """The queue of messages for one call of an app.

    A WebSocket message counts as held memory until the app asks for the next one: by then the app
    has passed it on.

    Args:
        most: Messages that are queued before `put` waits.
        event_class: Hypercorn's event class for the loop in use.
    """

    def __init__(self, most: int, event_class: type[Event]) -> None:
        self._messages: deque[tuple[ASGIReceiveEvent, int]] = deque()  # each with its size
        self._bytes = 0  # size of the queued messages
        self._taken_bytes = 0  # size of the message that the app took last
        self._bodies = RULES.bodies
        self._most = most
        self._has_room = event_class()
        self._has_some = event_class()
        self._is_closed = False

    async def put(self, message: ASGIReceiveEvent) -> None:
        """Queue a message; returns once there is room, or the app has ended."""
        length = _length(message)
        self._count(length)
        try:
            while self._is_full and message["type"] not in LAST and not self._is_closed:
                await _wait_again(self._has_room)
            if self._is_closed:
                return
            self._messages.append((message, length))
            self._bytes += length
            length = 0  # counted in `_bytes` from now on
            await self._has_some.set()
        finally:
            self._count(-length)

    async def get(self) -> ASGIReceiveEvent:
        self._forget_taken()
        while not self._messages:
            await _wait_again(self._has_some)
        message, self._taken_bytes = self._messages.popleft()
        self._bytes -= self._taken_bytes
        await self._has_room.set()
        return message

    async def close(self) -> None:
        """Discard all messages, queued and future, since the app has ended."""
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
        """Wrap the app so that this inbox is closed when the app ends."""

        async def serve(*args: Any) -> None:
            try:
                await app(*args)
            finally:
                await self.close()

        return serve  # type: ignore[return-value]


def _length(message: ASGIReceiveEvent) -> int:
    """Size of a WebSocket message; 0 for a request body, which is counted where it is read."""
    if message["type"] != "websocket.receive":
        return 0
    return len(message.get("bytes") or b"") + len(message.get("text") or "")


async def _wait_again(event: Event) -> None:
    """Clear an event and wait until it is set again."""
    if event.is_set():
        await event.clear()
    await event.wait()


def ending_quietly(send: AppSend) -> AppSend:
    """Wrap an app's `send` so that Hypercorn's clean-up after the app cannot raise.

    On Trio, an exception there would end the server with all its requests.
    """

    async def send_quietly(message: ASGISendEvent | None) -> None:
        try:
            await send(message)
        except Exception as error:
            if message is not None:  # None: the app has ended, and Hypercorn cleans up
                raise
            log.error("answer_unfinished", error=shown(repr(error)))

    return send_quietly


class InboxTrioGroup(TrioTaskGroup):
    """The tasks of one connection on Trio."""

    async def __aexit__(self, *error: Any) -> None:
        nursery = self._nursery
        await super().__aexit__(*error)
        # Hypercorn sets it to None. A closed nursery makes a late `spawn` raise RuntimeError, which
        # is suppressed below, not AttributeError.
        self._nursery = nursery

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:
        """Start a task, unless the connection has ended."""
        with suppress(RuntimeError):
            super().spawn(func, *args)

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Scope, send: AppSend) -> Put:
        """Start the app, and return the function that sends it messages."""
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
    """Closes coroutines that it refuses, or Python would warn that they were never awaited."""

    def create_task(self, coro: Any, **settings: Any) -> Any:
        try:
            return super().create_task(coro, **settings)
        except RuntimeError:
            coro.close()
            raise


class InboxAsyncioGroup(AsyncioTaskGroup):
    """The tasks of one connection on asyncio."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._task_group = ClosingTasks()

    async def spawn_app(self, app: AppWrapper, config: Config, scope: Scope, send: AppSend) -> Put:
        """Start the app, and return the function that sends it messages."""
        inbox = Inbox(config.max_app_queue_size, AsyncioEvent)
        self.spawn(
            handle_in_asyncio, inbox.closed_after(app), config, scope, inbox.get, send, *NO_THREADS
        )
        return inbox.put

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:
        """Start a task, unless the connection has ended."""
        with suppress(RuntimeError):
            super().spawn(func, *args)
