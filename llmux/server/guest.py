"""Trio as a guest of an asyncio server: each ASGI call hops between the two loops.

    asyncio server                        one thread                       Trio app

    lifespan ───────── start_guest_run ───────────────────────▶ the main task, a nursery
    any other call ─── nursery.start_soon ────────────────────▶ a task: app(scope, ...)
    receive(), send() in tasks of asyncio ◀─── create_task ──── await receive(), send()
        their results ─── trio.Event.set ─────────────────────▶ the message, or an error
    the call returns, raises ◀─── Future.set_result ─────────── the app's end
    the call is cancelled ─── CancelScope.cancel ─────────────▶ the app is cancelled

Both loops run in the same thread, with Trio's ticks as callbacks of asyncio's loop. So no data
needs a lock, and each side calls the other's sync functions directly; in guest mode these wake Trio
up. The cost of a hop is mostly that of waking the other loop; the asyncio task that each message
needs adds little.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TypeAlias

import outcome
import trio

from llmux.http.asgi_types import ASGIApp, Message, Receive, Scope, Send

End: TypeAlias = outcome.Outcome[None]
"""The result of an app, or of the whole guest run."""

Receiving: TypeAlias = asyncio.Task[outcome.Maybe[Message]]


class GuestBridge:
    """Serves a Trio ASGI app from an asyncio loop, from the lifespan's start to its end.

    Trio runs during the lifespan call. That call only returns, or ends as cancelled, when Trio has
    ended with all its calls.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._nursery: trio.Nursery | None = None  # None: no lifespan
        self._calls: set[_Call] = set()  # without the lifespan's

    def __repr__(self) -> str:
        state = "stopped" if self._nursery is None else "running"
        return f"<GuestBridge {state}, {len(self._calls)} calls>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection; called in asyncio.

        When cancelled, it cancels the app and waits for its end.

        Raises:
            RuntimeError: There is no lifespan, or it ended before the app did. If it ended with an
                error, that is the cause.
            BaseException: Raised by the app, without the groups in which nurseries wrap a single
                error; for the lifespan, also any error that ended Trio itself.
        """
        if scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        else:
            await self._serve_connection(_Call(self._app, scope, receive, send))

    async def _serve_connection(self, call: _Call) -> None:
        if self._nursery is None:
            raise RuntimeError("the app does not run: no lifespan has begun, or it has ended")
        self._nursery.start_soon(call.run)
        self._calls.add(call)
        try:
            await call.wait_ended()
        finally:
            self._calls.remove(call)

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run Trio until the lifespan has ended."""
        # Pass on the message that the shutdown is complete only when Trio has ended: Hypercorn
        # cancels the lifespan as soon as it gets this message.
        last: list[Message] = []

        async def send_all_but_last(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown."):
                last.append(message)
            else:
                await send(message)

        lifespan = _Call(self._app, scope, receive, send_all_but_last)
        self._start_guest(lifespan)
        await lifespan.wait_ended()
        for message in last:
            await send(message)

    def _start_guest(self, lifespan: _Call) -> None:
        loop = asyncio.get_running_loop()
        trio.lowlevel.start_guest_run(
            self._live,
            lifespan,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=loop.call_soon,
            done_callback=partial(self._guest_ended, lifespan),
            host_uses_signal_set_wakeup_fd=True,  # asyncio does
        )

    async def _live(self, lifespan: _Call) -> None:
        """In Trio: the main task, which lasts as long as the lifespan."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await lifespan.serve()
            finally:
                self._nursery = None
            nursery.cancel_scope.cancel()

    def _guest_ended(self, lifespan: _Call, end: End) -> None:
        for call in self._calls:
            call.end(_cut_short(end))
        lifespan.end(end)


class _Call:
    """One ASGI connection: the app in Trio, and its way back to asyncio."""

    def __init__(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self._app = app
        self._asgi_scope = scope
        self._receive = receive
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._unread: deque[Receiving] = deque()  # the app gave up waiting for these
        self._scope = trio.CancelScope()
        self._ended: asyncio.Future[End] = self._loop.create_future()

    def end(self, end: End) -> None:
        """Let `wait_ended` return with this result; only the first call counts."""
        if not self._ended.done():
            self._ended.set_result(_ungrouped(end))

    async def wait_ended(self) -> None:
        """In asyncio: wait for the app's end and raise its error; if cancelled, cancel the app."""
        cancelled: asyncio.CancelledError | None = None
        while not self._ended.done():
            try:
                await asyncio.wait([self._ended])
            except asyncio.CancelledError as error:
                self._scope.cancel()
                cancelled = error
        self._ended.result().unwrap()
        if cancelled is not None:
            raise cancelled

    async def run(self) -> None:
        """In Trio: serve, and pass the result to asyncio."""
        end = await outcome.acapture(self.serve)
        if isinstance(end, outcome.Error) and _is_cancellation(end.error):
            if not self._scope.cancel_called:
                return  # Trio is ending; `_guest_ended` will pass on why
            end = outcome.Value(None)  # asyncio cancelled it; `wait_ended` raises that itself
        self.end(end)

    async def serve(self) -> None:
        """In Trio: run the app until it ends or asyncio cancels it."""
        try:
            with self._scope:
                await self._app(self._asgi_scope, self.receive, self.send)
        finally:
            while self._unread:
                await _cancel(self._unread.pop())

    async def receive(self) -> Message:
        """In Trio: return the server's next message; a cancellation loses none."""
        receiving = self._unread.popleft() if self._unread else self._start_receiving()
        try:
            await _wait_done(receiving)
        except trio.Cancelled:
            self._unread.append(receiving)
            raise
        return receiving.result().unwrap()

    def _start_receiving(self) -> Receiving:
        return self._loop.create_task(outcome.acapture(self._receive))

    async def send(self, message: Message) -> None:
        """In Trio: pass a message to the server; if cancelled, cancel the server's send."""
        sending = self._loop.create_task(outcome.acapture(self._send, message))
        try:
            await _wait_done(sending)
        except trio.Cancelled:
            await _cancel(sending)
            raise
        sending.result().unwrap()


async def _wait_done(task: asyncio.Task[object]) -> None:
    """In Trio: wait for the end of an asyncio task, without raising its error."""
    done = trio.Event()

    def set_done(_: object) -> None:
        done.set()

    task.add_done_callback(set_done)
    try:
        await done.wait()
    finally:
        task.remove_done_callback(set_done)


async def _cancel(task: asyncio.Task[object]) -> None:
    """In Trio: cancel an asyncio task, and wait for its end.

    The shield has no deadline, since the task ends at its next step, unless the server suppresses
    the cancellation.
    """
    task.cancel()
    with trio.CancelScope(shield=True):
        await _wait_done(task)


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.split(trio.Cancelled)[1] is None
    return isinstance(error, trio.Cancelled)


def _ungrouped(end: End) -> End:
    if not isinstance(end, outcome.Error):
        return end
    error = end.error
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return outcome.Error(error)


def _cut_short(guest_end: End) -> End:
    """Return the result of a call that was still running when the guest run ended."""
    error = RuntimeError("the lifespan has ended before this call")
    if isinstance(guest_end, outcome.Error):
        error.__cause__ = guest_end.error
    return outcome.Error(error)
