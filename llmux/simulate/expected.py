"""What to expect of requests: when more of them arrive, and how long they take.

Durations vary as the latest ones did: of requests that all took as long as usual, a drain would end
far too early, since it lasts as long as the longest one.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from llmux.policy.estimates import Measures
from llmux.simulate.arrivals import Arrival

ENOUGH = 8
"""Number of durations from which on they say how much durations vary; before, new requests are
taken to last as long as usual, and those in flight to end at random."""


class Works:
    """Draws the work of requests, in seconds on an otherwise idle server.

    Args:
        measures: The latencies so far.
        models: The names of the models.
    """

    def __init__(self, measures: Measures, models: Iterable[str]) -> None:
        served = {name: measures.served(name) for name in models}
        self._usual_s = {n: each.latencies.estimate(1) or 0.0 for n, each in served.items()}
        self._spreads = {name: _spread(each.latest) for name, each in served.items()}
        self._rng = random.Random(2)  # noqa: S311 - not for secrets

    def usual_s(self, model: str) -> float:
        """Return the mean; 0 while unknown."""
        return self._usual_s[model]

    def new_s(self, model: str) -> float:
        """Draw the work of a request."""
        spread = self._spreads[model]
        return self._usual_s[model] * (self._rng.choice(spread) if spread else 1.0)

    def left_s(self, model: str, count: int) -> list[float]:
        """Return what is left of requests in flight: quantiles of the distribution of the rest."""
        usual_s, spread = self._usual_s[model], self._spreads[model]
        shares = ((index + 0.5) / count for index in range(count))
        if not spread:
            return [-usual_s * math.log(1 - share) for share in shares]
        return [usual_s * rest for rest in _rests(spread, shares)]


def _spread(latest: Iterable[float]) -> list[float]:
    """Return the latest durations in multiples of their mean, shortest first; empty if too few."""
    spread = sorted(latest)
    total = sum(spread)
    if len(spread) < ENOUGH or not total:
        return []
    return [each * len(spread) / total for each in spread]


def _rests(spread: list[float], shares: Iterable[float]) -> Iterator[float]:
    """Yield quantiles of the rest of a duration at a random moment, in multiples of the mean.

    That one is longer than x with the probability E[max(duration - x, 0)] / E[duration], which is
    linear between two durations.
    """
    count, total = len(spread), sum(spread)
    gaps = [end - begin for begin, end in zip([0.0, *spread[:-1]], spread, strict=True)]
    rises = [gap * (count - index) / total for index, gap in enumerate(gaps)]
    until = list(accumulate(rises))
    for share in shares:
        index = min(bisect_left(until, share), count - 1)
        missing = (until[index] - share) / rises[index] if rises[index] else 0.0
        yield spread[index] - missing * gaps[index]


def expected_arrivals(
    models: Iterable[str], measures: Measures, works: Works, now: float
) -> Iterator[Arrival]:
    """Yield requests for each model at its present rate, at random times from a fixed seed.

    Evenly spaced, they would never leave a gap in which a model is idle, and some policies wait for
    such a gap.
    """
    rng = random.Random(1)  # noqa: S311 - not for secrets
    coming: list[tuple[float, str, float]] = []
    for name in models:
        rate = measures.arrivals_per_s(name, now)
        if rate > 0:
            coming.append((now + rng.expovariate(rate), name, rate))
    heapq.heapify(coming)
    while coming:
        at, name, rate = coming[0]
        yield Arrival(at, name, works.new_s(name))
        heapq.heapreplace(coming, (at + rng.expovariate(rate), name, rate))
