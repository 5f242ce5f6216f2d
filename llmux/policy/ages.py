"""Sums over the ages of the requests in one line, so that decisions do not iterate over it."""

from __future__ import annotations

import math

import msgspec

from llmux.policy.removed import with_removed_names

REMOVED = {
    "add": "a view is a value, and nothing can be added to it",
    "remove": "a view is a value, and nothing can be removed from it",
    "total_reaches": "ask total() at two times; it grows by `weight` each second",
}
"""Names from older versions of llmux, and what to use instead."""


@with_removed_names(REMOVED)
class Ages(msgspec.Struct, frozen=True, gc=False):
    """Sums over one line from which the sums over its ages follow for any time.

    Immutable: `plus` and `minus` return the sums with one request more or less, in constant time.
    An age is the time since the arrival, in seconds. Its weight is a factor from 0.001 to 1,000; 1
    unless the request asked for another.

    Attributes:
        count: Number of requests.
        weight: Sum of their weights.
    """

    count: int = 0
    weight: float = 0.0
    # Arrivals are relative to the first one: sums of large clock values would lose precision.
    _origin: float = 0.0
    _first: float = 0.0  # sum of weight times arrival
    _second: float = 0.0  # sum of weight times arrival squared

    def __repr__(self) -> str:
        return f"<Ages of {self.count}>"

    def plus(self, arrived_at: float, weight: float = 1.0) -> Ages:
        """Return the sums with one more request."""
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
        """Return the sums without a request, given the numbers that it was added with."""
        if self.count == 1:
            return NO_AGES  # drops rounding errors
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
        """Return the sum of weight times age, in seconds."""
        if not self.count:
            return 0.0
        return max(0.0, self.weight * (now - self._origin) - self._first)

    def squares(self, then: float) -> float:
        """Return the sum of weight times age squared at time `then`, in seconds squared."""
        if not self.count:
            return 0.0
        since = then - self._origin
        return max(0.0, (self.weight * since - 2 * self._first) * since + self._second)

    def squares_reach(self, wanted: float) -> float:
        """Return when `squares` reaches `wanted`: in the past if it already has.

        -inf if it is above that at any time, infinity for an empty line.
        """
        if not self.count:
            return math.inf
        mean = self._first / self.weight
        spread = self._second / self.weight - mean * mean
        rest = wanted / self.weight - spread
        return self._origin + mean + math.sqrt(rest) if rest >= 0 else -math.inf


NO_AGES = Ages()
