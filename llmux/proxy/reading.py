"""The reading phase: a request's body, and the fields in it that may name a model.

Small bodies are searched on the event loop. Large ones, and those that turn out to take long, are
searched in a thread, so that other requests go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

from llmux.config import Config
from llmux.errors import BodyTooLarge, ShuttingDown
from llmux.openai.codings import Bounds, content_codings
from llmux.openai.dialects import plain_path
from llmux.openai.fields import Fields, read_coded, read_fields
from llmux.openai.filtering import Filter
from llmux.openai.jsonbody import LARGE_BYTES, Value, may_be_wide
from llmux.openai.rewriting import decoded_headers, decoded_text
from llmux.openai.scanning import Pause, PauseBudget, TooLong
from llmux.proxy.beside import run_beside
from llmux.proxy.held import Bodies
from llmux.proxy.journey import Journey
from llmux.proxy.lane import Lane, Tunnel
from llmux.proxy.opening import GREETING, FirstMessage, names_no_model, opened_headers

T = TypeVar("T")

HUGE_BYTES = 8 << 20
"""Larger bodies get a thread of their own, so that normal prompts need not wait for them."""

LARGE_MESSAGE_BYTES = 16 << 10
"""Larger first messages are read in a thread: 1 MiB of empty objects takes 0.5 s."""


class Reader:
    """Reads requests as far as it takes to know their models.

    Args:
        config: The first config.
        bodies: Counts what is held in memory.
    """

    def __init__(self, config: Config, bodies: Bodies) -> None:
        self._bodies = bodies
        # One thread at a time: more would only take the interpreter lock from the event loop.
        self._threads = trio.CapacityLimiter(1)
        # Takes seconds at worst.
        self._threads_for_huge = trio.CapacityLimiter(1)
        self._pause_budget = PauseBudget()
        self._opening: set[trio.CancelScope] = set()  # WebSockets without their first message
        self._is_stopping = False
        self.apply(config)

    def apply(self, config: Config) -> None:
        self._names = config.names

    def stop(self) -> None:
        """Refuse WebSockets that wait for their first message: no model would be woken for them."""
        self._is_stopping = True
        for scope in self._opening:
            scope.cancel()

    async def read(self, journey: Journey) -> None:
        """Read the body, and the first message of a WebSocket whose handshake names no model.

        Raises:
            BadRequest, BodyTooLarge, QueueFull, ShuttingDown: The request is refused.
            ClientLeft: The client left.
        """
        lane = journey.lane
        await lane.read_body()
        fields = self._fields_at_once(lane)
        journey.fields = await self._fields_beside(lane) if fields is None else fields
        tunnel = lane.tunnel
        if tunnel and names_no_model(lane.target, lane.headers, journey.fields, self._names):
            journey.first = await self._first_message(journey, tunnel)
            journey.fields = journey.first.fields
            journey.headers = opened_headers(journey.headers)

    def _fields_at_once(self, lane: Lane) -> Fields | None:
        """Search a body on the event loop; returns None if it is compressed or takes too long."""
        headers, data = lane.headers, lane.body.data
        if len(data) > LARGE_BYTES or (data and content_codings(headers)):
            return None
        try:
            return read_fields(headers, data, self._pause_budget.begin())
        except TooLong:
            return None

    async def _fields_beside(self, lane: Lane) -> Fields:
        headers, data = lane.headers, lane.body.data
        codings = content_codings(headers)
        async with lane.present():
            if codings or may_be_wide(data):
                return await self._on_decoded(lane, partial(read_coded, headers, data, codings))
            return await run_beside(
                lambda pause: read_fields(headers, data, pause), self._limiter_for(data)
            )

    async def decode(self, journey: Journey) -> None:
        """Replace the body by its decoded text, so that a name in it can be replaced.

        A large body is decoded a second time here: it waits in line compressed, since its text may
        take a thousand times the memory. So is any body whose name a reload has changed meanwhile.

        Raises:
            BodyTooLarge, QueueFull: No room for the text.
        """
        codings = journey.fields.codings
        work = partial(decoded_text, journey.lane.body.data, codings)
        journey.fields.decoded = await self._on_decoded(journey.lane, work)
        self.keep_decoded(journey)

    @staticmethod
    def keep_decoded(journey: Journey) -> None:
        """Replace the body by its text, which is decoded already; raises QueueFull."""
        fields = journey.fields
        assert fields.decoded is not None
        journey.lane.body.swap(fields.decoded)
        journey.headers = decoded_headers(journey.headers, fields.codings)
        fields.codings, fields.decoded = (), None

    async def filter(self, journey: Journey, chosen: Filter) -> None:
        """Change the fields of a JSON body, as the config of its model says.

        Raises:
            BadRequest: It has too many members to look through, or is no JSON after all.
            QueueFull: No room for what is put in.
        """
        body, fields = journey.lane.body, journey.fields
        data = body.data

        def work(pause: Pause) -> tuple[bytes, list[Value] | None]:
            filtered = chosen.apply(data, pause)
            return filtered, fields.refind(filtered, pause)

        done = None
        if len(data) <= LARGE_BYTES:
            with suppress(TooLong):
                done = work(self._pause_budget.begin())
        if done is None:
            with body.copying() as count:
                count(len(data))
                done = await run_beside(work, self._limiter_for(data))
        filtered, values = done
        if filtered is not data:
            body.swap(filtered)
            fields.move(values)

    def _limiter_for(self, data: bytes) -> trio.CapacityLimiter:
        return self._threads if len(data) <= HUGE_BYTES else self._threads_for_huge

    async def _on_decoded(self, lane: Lane, work: Callable[[Bounds], T]) -> T:
        """Do work that decodes the body: on the event loop if the text is small, else in a thread.

        The size of the text is only known once it is decoded. So work that exceeds one bound starts
        again in the queue for larger texts.

        Raises:
            BodyTooLarge: The text exceeds the limit for bodies.
            QueueFull: No room for the text.
        """
        most = self._bodies.most_bytes
        if len(lane.body.data) <= LARGE_BYTES:
            with suppress(TooLong):
                return work(Bounds(min(LARGE_BYTES, most), self._pause_budget.begin()))
        for limiter, limit in ((self._threads, HUGE_BYTES), (self._threads_for_huge, most)):
            with suppress(TooLong), lane.body.copying() as count:
                done = partial(_within, work, min(limit, most), _on_loop(count))
                return await run_beside(done, limiter)
        raise BodyTooLarge(most)

    async def _first_message(self, journey: Journey, tunnel: Tunnel) -> FirstMessage:
        """Accept a WebSocket whose handshake names no model, and wait for its first message."""
        if self._is_stopping:
            raise ShuttingDown
        lane, names = journey.lane, self._names
        greeting = GREETING if plain_path(lane.target).endswith(b"/realtime") else b""
        data = b""
        with trio.CancelScope() as scope:
            self._opening.add(scope)
            try:
                headers = [(b"x-llmux-request-id", journey.id.encode())]
                data = await tunnel.accept_early(headers, greeting)
            finally:
                self._opening.discard(scope)
        if scope.cancelled_caught:
            raise ShuttingDown
        if len(data) <= LARGE_MESSAGE_BYTES:
            return FirstMessage(data, names)
        return await run_beside(lambda _: FirstMessage(data, names), self._threads)


def _within(
    work: Callable[[Bounds], T], most_bytes: int, count: Callable[[int], None], pause: Pause
) -> T:
    return work(Bounds(most_bytes, pause, count))


def _on_loop(count: Callable[[int], None]) -> Callable[[int], None]:
    """Wrap a function so that a thread can call it on the event loop."""

    def call(by: int) -> None:
        trio.from_thread.run_sync(count, by)

    return call
