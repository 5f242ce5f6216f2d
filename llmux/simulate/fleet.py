"""Several simulated hosts behind a router, in one order of time.

Hosts do not know of each other: each is a simulation of its own, which is brought up to the time of
each arrival. A router sees what a proxy in front would see, and returns the hosts in the order in
which to try them. Hosts may die or freeze; what waited there is sent elsewhere.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmux.simulate.arrivals import Arrival
from llmux.simulate.fleet_hosts import FleetHost, HostSetup, at_work, host_of
from llmux.simulate.outcome import Outcome
from llmux.switching.core import ModelState


@dataclass(frozen=True)
class Fault:
    """A time during which a host does nothing.

    Attributes:
        host: Its index.
        at: When it begins, in seconds.
        down_s: How long the host is down. It starts again with nothing awake.
        frozen_s: How long it hangs before that: it takes requests, and does nothing with them,
            until a watchdog ends it.
    """

    host: int
    at: float
    down_s: float
    frozen_s: float = 0.0


@dataclass
class FleetOutcome:
    """What became of the requests.

    Attributes:
        parts: The outcome of each start of each host.
        cut: Number of requests that were in flight on a host when it died.
        resent: Number of requests that were sent to another host after one had died.
        refused: Number of requests that no host took.
    """

    parts: list[Outcome] = field(default_factory=list)
    cut: int = 0
    resent: int = 0
    refused: int = 0

    @property
    def switches(self) -> int:
        """Number of successful switches of all hosts."""
        return sum(part.switches for part in self.parts)

    @property
    def count(self) -> int:
        """Number of answered requests."""
        return sum(part.count for part in self.parts)

    def waits(self) -> list[float]:
        """Return each request's total wait, in line and inside its backend, in seconds."""
        return [wait for part in self.parts for wait in part.waits()]

    def line_waits(self) -> list[float]:
        """Return each request's wait in the lines of hosts, in seconds."""
        return [wait for part in self.parts for wait in part.line_waits()]


class Place:
    """A host as the proxy in front sees it: it may be started more than once.

    Attributes:
        index: Its position in the fleet.
        endpoint: Its address.
        host: Its present start; None while it is down.
        boot: Number of its starts.
        is_frozen: True while it takes requests and does nothing.
        held: The requests that it has taken meanwhile.
    """

    def __init__(self, index: int, setup: HostSetup, rng: random.Random) -> None:
        self.index = index
        self.endpoint = f"host-{index}"
        self.host: FleetHost | None = None
        self.boot = 0
        self.is_frozen = False
        self.held: list[Arrival] = []
        self._setup = setup
        self._rng = rng
        self.names = frozenset(_names_of(setup))
        self.start()

    def start(self) -> None:
        """Start its llmux, with nothing awake."""
        self.boot += 1
        self.host = host_of(self._setup, self._rng)

    def advance(self, until: float) -> None:
        """Process its events up to a time."""
        if self.host is not None and not self.is_frozen:
            self.host.advance(until)

    def active(self) -> int:
        """Return the number of requests that it has taken and not answered."""
        return at_work(self.models()) + len(self.held)

    def models(self) -> Sequence[ModelState]:
        """Return its models; none while it is down."""
        return () if self.host is None else self.host.models()

    def take(self, arrival: Arrival) -> None:
        """Take a request that arrives now."""
        assert self.host is not None
        if self.is_frozen:
            self.held.append(arrival)
        else:
            self.host.offer(arrival)
            self.host.advance(arrival.at)


def _names_of(setup: HostSetup) -> Iterable[str]:
    models: Iterable[str] = getattr(setup, "models", ())
    return models or setup.memory.needs  # type: ignore[union-attr]


class Router(Protocol):
    """Chooses among hosts."""

    def look_at(self, until: float) -> float | None:
        """Return when, up to a time, it looks at the hosts next; None: not before then."""
        ...

    def look(self, places: Sequence[Place], now: float) -> None:
        """Look at the hosts."""
        ...

    def order(self, places: Sequence[Place], model: str, now: float) -> Sequence[int]:
        """Return the indices of the hosts that a request should be sent to, best first.

        Args:
            places: The hosts that have the model.
            model: The model.
            now: The time.
        """
        ...

    def note_sent(self, place: Place, model: str) -> None:
        """Note which host has taken the request that `order` was asked about last."""
        ...


def simulate_fleet(
    setups: Sequence[HostSetup],
    arrivals: Iterator[Arrival] | Sequence[Arrival],
    router: Router,
    *,
    faults: Sequence[Fault] = (),
    seed: int = 0,
    progress: Callable[[int], object] = lambda _count: None,
) -> FleetOutcome:
    """Run until all requests have ended.

    Args:
        setups: The hosts.
        arrivals: The requests, in order of time.
        router: Chooses a host for each.
        faults: When hosts die.
        seed: Seed of the hosts' own random choices.
        progress: Called with the number of requests that have arrived, every 1000.
    """
    fleet = _Fleet(setups, router, random.Random(seed))  # noqa: S311
    fleet.plan(faults)
    for count, arrival in enumerate(arrivals, 1):
        fleet.happen_until(arrival.at)
        fleet.arrive(arrival)
        if count % 1000 == 0:
            progress(count)
    return fleet.end()


class _Fleet:
    def __init__(self, setups: Sequence[HostSetup], router: Router, rng: random.Random) -> None:
        self.places = [Place(index, setup, rng) for index, setup in enumerate(setups)]
        self.outcome = FleetOutcome()
        self._router = router
        self._due: list[tuple[float, int, Callable[[float], None]]] = []

    def plan(self, faults: Sequence[Fault]) -> None:
        """Plan what happens at which time."""
        for fault in faults:
            place = self.places[fault.host]
            dies_at = fault.at + fault.frozen_s
            if fault.frozen_s:
                self._at(fault.at, lambda _, place=place: self._freeze(place))  # type: ignore[misc]
            self._at(dies_at, lambda now, place=place: self._die(place, now))  # type: ignore[misc]
            self._at(dies_at + fault.down_s, lambda _, place=place: place.start())  # type: ignore[misc]

    def _at(self, at: float, then: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (at, len(self._due), then))

    def happen_until(self, until: float) -> None:
        """Bring everything up to a time."""
        while True:
            due_at = self._due[0][0] if self._due else math.inf
            look_at = self._router.look_at(min(until, due_at))
            if look_at is not None:
                self._advance(look_at)
                self._router.look(self.places, look_at)
            elif due_at <= until:
                self._advance(due_at)
                heapq.heappop(self._due)[2](due_at)
            else:
                break
        self._advance(until)

    def _advance(self, until: float) -> None:
        for place in self.places:
            place.advance(until)

    def arrive(self, arrival: Arrival) -> None:
        """Send a request to the first host that takes it."""
        having = [place for place in self.places if arrival.model in place.names]
        for index in self._router.order(having, arrival.model, arrival.at):
            place = self.places[index]
            if place.host is not None:
                place.take(arrival)
                self._router.note_sent(place, arrival.model)
                return
        self.outcome.refused += 1

    def _freeze(self, place: Place) -> None:
        place.is_frozen = True

    def _die(self, place: Place, now: float) -> None:
        host = place.host
        assert host is not None, "a host dies twice at once"
        self.outcome.parts.append(host.outcome)
        self.outcome.cut += sum(model.in_flight.in_use for model in host.models())
        waiting = [job for model in host.models() for job in model.waiters]
        lost = [
            Arrival(now, job.model, job.work_s, job.lost_s + now - job.arrived_at)
            for job in sorted(waiting, key=lambda job: job.arrived_at)
        ]
        lost += (
            Arrival(now, each.model, each.work_s, each.lost_s + now - each.at)
            for each in place.held
        )
        place.host, place.is_frozen, place.held = None, False, []
        self.outcome.resent += len(lost)
        for arrival in lost:
            self.arrive(arrival)

    def end(self) -> FleetOutcome:
        """Let all hosts finish."""
        while self._due:
            self.happen_until(self._due[0][0])
        for place in self.places:
            if place.host is not None:
                place.host.run(math.inf)
                self.outcome.parts.append(place.host.outcome)
        return self.outcome
