"""How long requests of a model take, by the number of them in flight."""

from __future__ import annotations

from collections import deque

LATENCY_SMOOTHING = 0.1
"""Weight of the newest latency in its bucket, after the first ten."""

STEADY_SMOOTHING = 0.02
"""The same for forecasts, after the first fifty: a long line multiplies an error."""

SERVED = 32
"""Number of recent durations that say how much they vary."""


class Latencies:
    """Latencies of a model, or durations of its drains, by its number of requests in flight.

    There is one bucket per power of two, with the running mean of both numbers. Estimates are
    interpolated between buckets; outside of them, the nearest bucket counts.
    """

    __slots__ = ("_buckets", "_smoothing")

    def __init__(self, smoothing: float = LATENCY_SMOOTHING) -> None:
        self._smoothing = smoothing
        self._buckets: dict[int, tuple[int, float, float]] = {}  # samples, in flight, seconds

    def copy(self) -> Latencies:
        copied = Latencies(self._smoothing)
        copied._buckets = self._buckets.copy()
        return copied

    def note(self, in_flight: int, seconds: float) -> None:
        """Record an answer to a request that raised the number to `in_flight`, or a drain."""
        bucket = in_flight.bit_length()
        samples, mean_count, mean_s = self._buckets.get(bucket, (0, 0.0, 0.0))
        weight = max(self._smoothing, 1 / (samples + 1))
        mean_count += weight * (in_flight - mean_count)
        mean_s += weight * (seconds - mean_s)
        self._buckets[bucket] = (samples + 1, mean_count, mean_s)

    def estimate(self, in_flight: int) -> float | None:
        """Return the seconds for a request that raises the number to `in_flight`, or None."""
        below: tuple[float, float] | None = None
        for bucket in sorted(self._buckets):
            _, count, seconds = self._buckets[bucket]
            if count >= in_flight:
                if below is None:
                    return seconds
                share = (in_flight - below[0]) / (count - below[0])
                return below[1] + share * (seconds - below[1])
            below = (count, seconds)
        return below[1] if below else None

    def extrapolate(self, in_flight: int) -> float | None:
        """Return the same, but beyond the last bucket in proportion to the number in flight."""
        seconds = self.estimate(in_flight)
        if seconds is None:
            return None
        _, most, _ = self._buckets[max(self._buckets)]
        return seconds * max(1.0, in_flight / most) if most else seconds


class Served:
    """How long the requests of a model take, for forecasts.

    Attributes:
        latencies: Means over a long time.
        latest: The latest durations, in multiples of what was usual then.
    """

    __slots__ = ("latencies", "latest")

    def __init__(self) -> None:
        self.latencies = Latencies(STEADY_SMOOTHING)
        self.latest: deque[float] = deque(maxlen=SERVED)

    def copy(self) -> Served:
        copied = Served()
        copied.latencies, copied.latest = self.latencies.copy(), self.latest.copy()
        return copied

    def note(self, in_flight: int, seconds: float) -> None:
        usual_s = self.latencies.estimate(in_flight)
        self.latencies.note(in_flight, seconds)
        if usual_s:
            self.latest.append(seconds / usual_s)
