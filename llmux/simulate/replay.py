"""Reconstruct a simulation from a journal: each request's work, and the switch costs.

The speed of a backend with n requests in flight is derived from the journal. A request that is
alone progresses by 1 second of work per second; n requests progress by L(1)/L(n) each, where L is
the latency by number in flight. The work of a request is its progress from admission to end. A
replay under the recorded policy therefore reproduces what happened, and one under another policy
predicts what would have happened.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

from llmux.config import PolicyConfig
from llmux.observe.journal import Request, Started, Switch
from llmux.policy import Policy, load_policy
from llmux.policy.latencies import Latencies
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Server, Sharing
from llmux.simulate.engine import Setup, simulate
from llmux.simulate.outcome import Outcome, mean
from llmux.simulate.spans import Spans

Speed = Callable[[int], float]
"""Returns the progress of each of n requests per second, in seconds of work."""


@dataclass(frozen=True)
class Recording:
    """The part of a journal that concerns one group.

    Attributes:
        started: The last start, with the models of all starts.
        requests: The admitted requests, in order of arrival.
        turned_away: Number of requests that were refused, timed out, or whose clients left before
            admission. They are not replayed.
        switches: The switches, in order.
    """

    started: Started
    requests: Sequence[Request]
    turned_away: int
    switches: Sequence[Switch]

    @property
    def models(self) -> list[str]:
        """The models with recorded requests."""
        return sorted({request.model for request in self.requests})

    @property
    def is_drained(self) -> bool:
        """True if models drained or froze their requests before a switch, as simulations do."""
        return self.started.drains or set(self.models) <= set(self.started.freezes)

    def held_waits(self) -> list[float]:
        """Return each request's wait in line and frozen with its model, in seconds."""
        waits = []
        for request in self.requests:
            frozen_s = self._frozen[request.model].between(admitted(request), request.ended)
            waits.append(admitted(request) - request.arrived + frozen_s)
        return waits

    def simulate(self, policy: str, progress: Callable[[int], None] = lambda _: None) -> Outcome:
        """Simulate the requests under a policy; see `setup`."""
        return simulate(self.setup(policy), self.arrivals(), progress=progress)

    def setup(self, policy: str, **settings: object) -> Setup:
        """Return the setup for simulating these models under a policy.

        Args:
            policy: A built-in policy, or `package.module:Class`, also in the working directory.
            settings: Policy settings that override the recorded ones.
        """
        return Setup(
            models=self.models,
            cost=self._costs(),
            server=self._servers(),
            policy=self._policy(policy, settings),
            max_in_flight=dict(self.started.slots),
            preserves_in_flight=self.started.freezes,
        )

    def _policy(self, policy: str, settings: Mapping[str, object]) -> Callable[[], Policy]:
        used = {
            "max_wait_secs": self.started.max_wait_s,
            "min_active_secs": self.started.min_active_s,
            "options": self.started.options if policy == self.started.policy else {},
        }
        config = PolicyConfig(name=policy, **{**used, **settings})  # type: ignore[arg-type]
        return partial(load_policy, config, Path.cwd())

    def _servers(self) -> Callable[[str], Server]:
        speeds = {model: speed_of(self._served(model)) for model in self.models}
        return lambda model: Sharing(speeds[model])

    def arrivals(self) -> list[Arrival]:
        """Return the requests, each with its work."""
        first = min(request.arrived for request in self.requests)
        work: dict[str, Iterator[float]] = {}
        for model in self.models:
            served = self._served(model)
            work[model] = iter(works(served, speed_of(served)))
        return [
            Arrival(request.arrived - first, request.model, next(work[request.model]))
            for request in self.requests
        ]

    def _served(self, model: str) -> list[Served]:
        """Return a model's requests on a clock that stands still while the model is frozen."""
        frozen = self._frozen[model]
        return [
            Served(
                admitted(request) - frozen.before(admitted(request)),
                request.ended - frozen.before(request.ended),
                request.company,
            )
            for request in self.requests
            if request.model == model
        ]

    @cached_property
    def _frozen(self) -> Mapping[str, Spans]:
        """When each model was frozen."""
        return {model: Spans(intervals) for model, intervals in self._absences().items()}

    def _absences(self) -> Mapping[str, Sequence[tuple[float, float]]]:
        """Return from the switch away from each model that freezes until it was awake again."""
        spans: dict[str, list[tuple[float, float]]] = {model: [] for model in self.models}
        left: dict[str, float] = {}
        for switch in self.switches:
            if switch.result == "abandoned":
                continue
            if switch.source is not None and switch.source in self.started.freezes:
                left.setdefault(switch.source, switch.started)
            if switch.result == "success" and switch.target in left:
                spans[switch.target].append((left.pop(switch.target), switch.ended))
        return spans

    def _costs(self) -> Callable[[str | None, str], float]:
        """Return mean hook times: of the pair, else of switches to the target, else of all."""
        seen: dict[object, list[float]] = defaultdict(list)
        for switch in self.switches:
            if switch.result == "success":
                for key in ((switch.source, switch.target), switch.target, None):
                    seen[key].append(switch.hooks_s)
        means = {key: mean(times) for key, times in seen.items()}
        default_s = means.get(None, 0.0)
        return lambda source, target: means.get((source, target), means.get(target, default_s))


def admitted(request: Request) -> float:
    """Return the admission time of an admitted request."""
    assert request.admitted is not None
    return request.admitted


class Served(NamedTuple):
    """A request's admission and end on its model's own clock, and the number in flight then."""

    begun: float
    ended: float
    company: int


def speed_of(requests: Iterable[Served]) -> Speed:
    """Return a backend's speed by number of requests in flight, made non-increasing."""
    latencies = Latencies()
    for request in requests:
        latencies.note(request.company, max(0.0, request.ended - request.begun))

    @cache
    def latency_s(count: int) -> float:
        seconds = latencies.estimate(count) or 1e-6
        return seconds if count <= 1 else max(seconds, latency_s(count - 1))

    return lambda count: latency_s(1) / latency_s(count)


def works(requests: Sequence[Served], speed: Speed) -> list[float]:
    """Return the work of each request of one model: its progress while it was in flight."""
    lasting = [(index, each) for index, each in enumerate(requests) if each.ended > each.begun]
    moments = sorted(
        [(request.begun, 1, index) for index, request in lasting]
        + [(request.ended, 0, index) for index, request in lasting],
        key=lambda moment: moment[:2],
    )
    begun: dict[int, float] = {}
    needed = [0.0] * len(requests)
    progress = last = 0.0
    for at, begins, index in moments:
        if begun:
            progress += (at - last) * speed(len(begun))
        last = at
        if begins:
            begun[index] = progress
        else:
            needed[index] = progress - begun.pop(index)
    return needed
