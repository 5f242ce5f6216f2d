"""How long the requests in one line have waited, all together, by sums kept as they go."""

from __future__ import annotations

import math


class Ages:
    """Sums over the requests in one line, from which those over their ages follow at any time.

    Adding, removing and asking cost the same however long the line is. An age is the time since the
    arrival, in seconds; a weight is what one request counts for: 1 if nobody asked for another, and
    from 0.001 to 1,000.

    Attributes:
        count: How many requests there are.
        weight: The sum of their weights.
    """

    __slots__ = ("_first", "_origin", "_second", "count", "weight")

    def __init__(self) -> None:
        self.count = 0
        self._clear()

    def __repr__(self) -> str:
        return f"<Ages of {self.count}>"

    def _clear(self) -> None:
        self.weight = self._first = self._second = 0.0
        self._origin = math.nan  # arrivals count from here: small numbers lose no digits

    def add(self, arrived_at: float, weight: float = 1.0) -> None:
        """Take a request in."""
        if not self.count:
            self._origin = arrived_at
        self.count += 1
        since = arrived_at - self._origin
        self.weight += weight
        self._first += weight * since
        self._second += weight * since * since

    def remove(self, arrived_at: float, weight: float = 1.0) -> None:
        """Take one out that was taken in with the same numbers."""
        self.count -= 1
        if not self.count:
            self._clear()  # what rounding has left, too
            return
        since = arrived_at - self._origin
        self.weight -= weight
        self._first -= weight * since
        self._second -= weight * since * since

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

    def total_reaches(self, wanted: float) -> float:
        """The time at which `total` will reach a value; past if it has."""
        if not self.count:
            return math.inf
        return self._origin + (wanted + self._first) / self.weight
