"""Find streams whose backend has gone silent, and WebSockets that nobody uses.

One task polls all of them. That costs nothing per chunk, since the kernel keeps the time of the
last one. A stream's silence is the sum of the polling intervals in which it waited for its backend:
so neither a client that does not read, nor a process that was stopped or a machine that was
suspended, makes backends look silent.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from llmux.config import Config
from llmux.errors import BackendSilent
from llmux.observe.logs import get_logger
from llmux.proxy.journey import Journey
from llmux.proxy.journeys import Journeys
from llmux.switching.model import SERVES
from llmux.switching.switchboard import Switchboard
from llmux.upstream import Backend

LOOK_S = 1.0
"""Polling interval, unless a limit is short."""

LOOKS = 4
"""Polls within the shortest limit, at least."""

SHORTEST_LOOK_S = 0.05
"""Shortest polling interval, whatever the limit: polling 1000 streams takes a few milliseconds."""

log = get_logger(__name__)


class QuietWatch:
    """Cuts silent streams, and has unused WebSockets give way.

    Args:
        journeys: The requests under way.
        board: Their models.
        config: Returns the config in use.
    """

    def __init__(
        self, journeys: Journeys, board: Switchboard, config: Callable[[], Config]
    ) -> None:
        self._journeys = journeys
        self._board = board
        self._config = config
        self._silent_s: dict[Journey, float] = {}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            looked_at = trio.current_time()
            while True:
                interval_s = self._interval_s()
                await trio.sleep(interval_s)
                now = trio.current_time()
                # Capped: a process that was stopped must not find every stream silent.
                passed_s, looked_at = min(now - looked_at, 2 * interval_s), now
                for model in self.end_silent(passed_s):
                    nursery.start_soon(self._board.silent, model)
                self._board.look_at_sockets()

    def _interval_s(self) -> float:
        config = self._config()
        limits_s = [config.policy.websocket_idle_secs]
        limits_s += [model.stream_idle_secs for model in config.models.values()]
        shortest_s = min((each for each in limits_s if each is not None), default=math.inf)
        return max(SHORTEST_LOOK_S, min(LOOK_S, shortest_s / LOOKS))

    def end_silent(self, passed_s: float) -> list[str]:
        """Cut the streams of which the backend has sent nothing for too long.

        Args:
            passed_s: Seconds since the last call, capped.

        Returns:
            The models of those streams whose backend has sent nothing else either: it has failed.
        """
        before, self._silent_s = self._silent_s, {}
        heard_at: dict[Backend, float] = {}  # one system call for each connection in use
        failed: list[str] = []
        now = trio.current_time()
        for journey in self._journeys:
            backend = journey.backend
            if backend is None:
                continue
            limit_s = journey.upstream.stream_idle_s
            if limit_s == math.inf or not self._is_awaited(journey):
                continue
            if backend not in heard_at:
                heard_at[backend] = backend.heard_at()
            # Add up intervals, as the module says, and start again after each byte.
            silent_s = before[journey] + passed_s if journey in before else 0.0
            silent_s = min(silent_s, now - _last_sign(journey, heard_at[backend]))
            self._silent_s[journey] = silent_s
            if silent_s >= limit_s:
                del self._silent_s[journey]  # it is cut once
                self._end(journey, limit_s)
                if journey.model and heard_at[backend] <= now - limit_s:
                    failed.append(journey.model)
        return failed

    def _is_awaited(self, journey: Journey) -> bool:
        """Return whether the backend is to send the next part of a stream."""
        flight, answer = journey.flight, journey.answer
        if flight is None or not flight.is_in or journey.lane.is_sending:
            return False
        model = self._board.models.get(journey.model)
        if model is not None and model.preserves_in_flight and model.phase not in SERVES:
            return False  # it is frozen with its requests
        if answer is None:
            return journey.expects_stream
        return answer.stream is None and answer.has_body and not answer.has_ended

    @staticmethod
    def _end(journey: Journey, limit_s: float) -> None:
        log.warning("stream_silent", model=journey.model, limit_secs=limit_s)
        assert journey.flight is not None
        journey.flight.cut(BackendSilent(limit_s))


def _last_sign(journey: Journey, backend_heard_at: float) -> float:
    """Return the time of the stream's last sign of life (Trio's clock, seconds).

    Before its first byte, a request may wait for others inside its backend. So until then, any byte
    from that backend is a sign of life.
    """
    answer = journey.answer
    if answer is None or answer.seen.first_at is None:
        return backend_heard_at
    return answer.heard_at()
