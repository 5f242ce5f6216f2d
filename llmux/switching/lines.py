"""The requests that wait for a model, and the number in flight on it."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import Generic, Protocol, TypeVar

from llmux.policy.ages import NO_AGES


class Waiting(Protocol):
    """A request that can wait in line.

    Attributes:
        arrived_at: When it joined the line.
        weight: The factor by which its age counts.
    """

    @property
    def arrived_at(self) -> float: ...
    @property
    def weight(self) -> float: ...


RequestT = TypeVar("RequestT", bound=Waiting)


class Line(Generic[RequestT]):
    """The requests that wait for one model, oldest first, and those granted but not settled yet.

    Attributes:
        ages: The sums over the ages of those in line, and of those frozen with the model.
    """

    __slots__ = ("_line", "_settling", "ages")

    def __init__(self) -> None:
        self.ages = NO_AGES
        # Neither granted nor refused yet, in order of arrival. Not a plain dict: after many
        # deletions at its front, finding its first key takes time proportional to their number.
        self._line: OrderedDict[RequestT, None] = OrderedDict()
        self._settling: set[RequestT] = set()

    @property
    def count(self) -> int:
        """Number of requests in line, without granted ones."""
        return len(self._line)

    @property
    def settling(self) -> int:
        """Number of granted requests that are neither in flight nor gone yet."""
        return len(self._settling)

    @property
    def unsettled(self) -> Iterator[RequestT]:
        """Those granted requests themselves, in no order."""
        return iter(self._settling)

    @property
    def oldest(self) -> float | None:
        """Arrival time of the first request in line, or None."""
        for request in self._line:
            return request.arrived_at
        return None

    def __iter__(self) -> Iterator[RequestT]:
        return iter(self._line)

    def add(self, request: RequestT) -> None:
        self._line[request] = None
        self.ages = self.ages.plus(request.arrived_at, request.weight)

    def remove(self, request: RequestT) -> None:
        """Remove a request from the line if it is still there."""
        if request in self._line:
            del self._line[request]
            self.ages = self.ages.minus(request.arrived_at, request.weight)

    def take_first(self, room: float = math.inf) -> list[RequestT]:
        """Remove and return the first `room` requests in line; they are settling from now on."""
        line, ages = self._line, self.ages
        granted = list(line if room >= len(line) else islice(line, max(0, int(room))))
        if len(granted) == ages.count:  # the whole line, and no request is frozen
            line.clear()
            self.ages = NO_AGES
        else:
            for request in granted:
                del line[request]
                ages = ages.minus(request.arrived_at, request.weight)
            self.ages = ages
        self._settling.update(granted)
        return granted

    def settle(self, request: RequestT) -> None:
        """Note that a request, granted or not, is now in flight or gone."""
        if request in self._settling:
            self._settling.remove(request)
        else:
            self.remove(request)


class Occupancy:
    """The requests in flight on one model, as numbers.

    Attributes:
        in_use: Number of requests in flight.
        frozen_s: Total seconds for which requests have been frozen with the model so far.
    """

    __slots__ = ("frozen_s", "in_use")

    def __init__(self) -> None:
        self.in_use = 0
        self.frozen_s = 0.0
