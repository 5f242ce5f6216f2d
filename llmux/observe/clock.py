"""The one place that turns Trio's time into wall time.

Everything inside llmux is timed with Trio's clock, which never jumps; only what leaves the process
(events, journal, traces) carries Unix times.
"""

from __future__ import annotations

import time

import trio

from llmux.observe.pauses import LEFT_OUT


class WallClock:
    """Converts Trio times to Unix times, both in seconds.

    The offset is taken once, at first use, so that setting the host's clock cannot change the order
    of events. Pauses of the process are added, since `llmux.observe.pauses` takes them out of
    Trio's clock.

    The feed and the journal share one instance, so that their times agree. Each trace has its own,
    since its spans must match those of other hosts by the host's current clock.
    """

    def __init__(self) -> None:
        self._base_s: float | None = None

    def start(self) -> None:
        """Take the offset now, if nothing has used the clock yet."""
        _ = self.offset_s

    @property
    def offset_s(self) -> float:
        """Unix time minus Trio time, now."""
        if self._base_s is None:
            self._base_s = time.time() - trio.current_time() - LEFT_OUT.seconds
        return self._base_s + LEFT_OUT.seconds

    def unix(self, at: float) -> float:
        """Return the Unix time of a Trio time, rounded to a tenth of a millisecond."""
        return round(at + self.offset_s, 4)

    def unix_ns(self, at: float) -> int:
        """Return the Unix time of a Trio time in nanoseconds, as OpenTelemetry expects it."""
        return int(1e9 * (at + self.offset_s))

    def now(self) -> float:
        return self.unix(trio.current_time())
