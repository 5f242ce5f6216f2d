"""Trio as a guest of an asyncio server: each ASGI call hops between the two loops.

    asyncio server                        one thread                         Trio app

    lifespan ────── start_guest_run ─────────────────────────────▶ a nursery for all calls
    call ────────── run_sync_soon ───────────────────────────────▶ a task: app(scope, ...)
    receive(), send() as asyncio tasks ◀── create_task ─────────── await receive(), send()
        their results ─────────────────── run_sync_soon ─────────▶ a trio.Event

Both loops run in the same thread, Trio's ticks as callbacks of asyncio's loop, so no data needs a
lock. But each must be woken by its own means: Trio by its token, asyncio by a future or a task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import outcome
import trio

from llmux.asgi_types import ASGIApp, Message, Receive, Scope, Send

T = TypeVar("T")


class GuestBridge:
    """Serves a Trio ASGI app from an asyncio loop, from the lifespan's start to its end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._calls: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection; called in asyncio.

        Raises:
            RuntimeError: The lifespan has not begun, or has ended.
        """
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._carry(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run Trio for as long as the lifespan lasts."""
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        ended: asyncio.Future[outcome.Outcome[None]] = loop.create_future()
        trio.lowlevel.start_guest_run(
            self._hold_calls,
            started,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
            host_uses_signal_set_wakeup_fd=True,
        )
        try:
            await _wait_shielded(started)
            await self._carry(scope, receive, send)
        finally:
            calls, token, self._calls = self._calls, self._token, None
            if calls is not None and token is not None:
                token.run_sync_soon(calls.cancel_scope.cancel)
            end = await _wait_shielded(ended)
        end.unwrap()

    async def _hold_calls(self, started: asyncio.Future[None]) -> None:
        async with trio.open_nursery() as self._calls:
            self._token = trio.lowlevel.current_trio_token()
            started.set_result(None)
            await trio.sleep_forever()

    async def _carry(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app in Trio; cancelled, cancel it and wait for its end."""
        if self._calls is None or self._token is None:
            raise RuntimeError("the app is not running: no lifespan has begun, or it has ended")
        token = self._token
        call = _Call(self._app, scope, receive, send, token)
        token.run_sync_soon(self._calls.start_soon, call.run)
        try:
            await asyncio.shield(call.ended)
        except asyncio.CancelledError:
            token.run_sync_soon(call.scope.cancel)
            await _wait_shielded(call.ended)
            raise
        call.ended.result().unwrap()


class _Call:
    """One ASGI connection: the app's task in Trio, and its way back to asyncio."""

    def __init__(
        self,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
        token: trio.lowlevel.TrioToken,
    ) -> None:
        self._app = app
        self._asgi_scope = scope
        self._receive = receive
        self._send = send
        self._token = token
        self._loop = asyncio.get_running_loop()
        self._kept: Message | None = None
        self.scope = trio.CancelScope()
        self.ended: asyncio.Future[outcome.Outcome[None]] = self._loop.create_future()

    async def run(self) -> None:
        """In Trio: run the app, and tell how it ended."""
        end: outcome.Outcome[None] = outcome.Error(RuntimeError("the server has stopped"))
        try:
            with self.scope:
                end = await outcome.acapture(
                    self._app,
                    self._asgi_scope,
                    self.receive,
                    self.send,
                )
            if self.scope.cancelled_caught:
                end = outcome.Value(None)  # asyncio cancelled it, and knows
        finally:
            self.ended.set_result(_ungrouped(end))

    async def receive(self) -> Message:
        """In Trio: the server's next message; none is lost when this is cancelled."""
        if self._kept is not None:
            message, self._kept = self._kept, None
            return message
        task = self._start(self._receive())
        try:
            return await self._finish(task)
        except trio.Cancelled:
            if not task.cancelled() and task.exception() is None:
                self._kept = task.result()
            raise

    async def send(self, message: Message) -> None:
        """In Trio: hand the server a message."""
        await self._finish(self._start(self._send(message)))

    def _start(self, awaitable: Awaitable[T]) -> asyncio.Task[T]:
        return self._loop.create_task(_as_coroutine(awaitable))

    async def _finish(self, task: asyncio.Task[T]) -> T:
        """Wait in Trio for an asyncio task, which does not outlive the wait."""
        done = trio.Event()
        task.add_done_callback(lambda _: self._token.run_sync_soon(done.set))
        try:
            await done.wait()
        except trio.Cancelled:
            task.cancel()
            with trio.CancelScope(shield=True):
                await done.wait()  # cancelled, it ends at its next step
            raise
        return task.result()


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


async def _wait_shielded(future: asyncio.Future[T]) -> T:
    """Wait for a future that is sure to come, whatever is cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return future.result()


def _ungrouped(end: outcome.Outcome[None]) -> outcome.Outcome[None]:
    """Without the groups that nurseries wrap a single error in."""
    if not isinstance(end, outcome.Error):
        return end
    error = end.error
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return outcome.Error(error)
