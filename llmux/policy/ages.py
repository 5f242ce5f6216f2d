"""Sums over the ages of the requests in one line: a decision costs the same for any length."""

from __future__ import annotations

import math

import msgspec

from llmux.policy.gone import gone

GONE = {
    "add": "a view is a value, and nothing can be added to it",
    "remove": "a view is a value, and nothing can be removed from it",
    "total_reaches": "ask total() at two times; it grows by `weight` each second",
}
"""Names that policies written for an older llmux use, and what to use instead."""


@gone(GONE)
class Ages(msgspec.Struct, frozen=True, gc=False):
    """The sums over the requests in one line from which those over their ages follow at any time.

    A value: `plus` and `minus` return the sums with one request more or less. Each takes the same
    time however long the line is. An age is the time since the arrival, in seconds; a weight is the
    factor by which it counts: 1 unless the request asked for another, and from 0.001 to 1,000.

    Attributes:
        count: Number of requests.
        weight: Sum of their weights.
    """

    count: int = 0
    weight: float = 0.0
    # Arrivals count from that of the first request: small numbers lose no digits.
    _origin: float = 0.0
    _first: float = 0.0  # sum of weight times arrival
    _second: float = 0.0  # sum of weight times arrival squared

    def __repr__(self) -> str:
        return f"<Ages of {self.count}>"

    def plus(self, arrived_at: float, weight: float = 1.0) -> Ages:
        """Return the sums with one request more."""
        count = self.count
        origin = self._origin if count else arrived_at
        since = arrived_at - origin
        moment = weight * since
        return Ages(
            count + 1,
            self.weight + weight,
            origin,
            self._first + moment,
            self._second + moment * since,
        )

    def minus(self, arrived_at: float, weight: float = 1.0) -> Ages:
        """Return the sums without a request that was added with the same numbers."""
        if self.count == 1:
            return NO_AGES  # without what rounding has left
        since = arrived_at - self._origin
        moment = weight * since
        return Ages(
            self.count - 1,
            self.weight - weight,
            self._origin,
            self._first - moment,
            self._second - moment * since,
        )

    def total(self, now: float) -> float:
        """Sum of weight times age, in seconds."""
        if not self.count:
            return 0.0
        return max(0.0, self.weight * (now - self._origin) - self._first)

    def squares(self, then: float) -> float:
        """Sum of weight times the square of the age at a time, in seconds squared."""
        if not self.count:
            return 0.0
        since = then - self._origin
        return max(0.0, (self.weight * since - 2 * self._first) * since + self._second)

    def squares_reach(self, wanted: float) -> float:
        """The time at which `squares` will reach a value; past if it has, -inf if always."""
        if not self.count:
            return math.inf
        mean = self._first / self.weight
        spread = self._second / self.weight - mean * mean
        rest = wanted / self.weight - spread
        return self._origin + mean + math.sqrt(rest) if rest >= 0 else -math.inf


NO_AGES = Ages()
