"""From a journal to a simulation: what each request needed, and what switches cost.

How fast a backend is with n requests at once is taken from the journal: one alone makes progress at
1 second a second, n of them at L(1)/L(n) each, where L is the latency by requests in flight. What a
request needed is its progress from its admission to its end. So a replay under the policy that was
really used repeats what happened, and under another one what would have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from llmux.config import PolicyConfig
from llmux.observe.journal import Request, Started, Switch, read_journal
from llmux.policy import load_policy
from llmux.policy.estimates import Latencies
from llmux.simulate.arrivals import Arrival
from llmux.simulate.backends import Sharing
from llmux.simulate.engine import Setup
from llmux.simulate.outcome import mean
from llmux.simulate.spans import Spans

Speed = Callable[[int], float]
"""Progress that each of n requests makes in a second, in seconds of work."""


@dataclass(frozen=True)
class Recording:
    """What a journal says of one group.

    Attributes:
        started: The last start in it, with the models of all.
        requests: Those that were let in, in order of arrival.
        turned_away: How many were not: refused, too late, or their clients left. They are not
            replayed.
        switches: In order.
    """

    started: Started
    requests: Sequence[Request]
    turned_away: int
    switches: Sequence[Switch]

    @property
    def models(self) -> list[str]:
        """The models that it has requests for."""
        return sorted({request.model for request in self.requests})

    @property
    def is_drained(self) -> bool:
        """Whether each model that was left finished or kept its requests, as in a simulation."""
        return self.started.drains or set(self.models) <= set(self.started.freezes)

    def held_waits(self) -> list[float]:
        """What llmux has made each request wait: in line, and frozen with its model; in seconds."""
        waits = []
        for request in self.requests:
            frozen_s = self._frozen[request.model].between(admitted(request), request.ended)
            waits.append(admitted(request) - request.arrived + frozen_s)
        return waits

    def setup(self, policy: str, **settings: object) -> Setup:
        """The simulation of these models under a policy.

        Args:
            policy: One of llmux's, or one's own: `package.module:Class`, also in this directory.
            settings: Of its config, where they are not to be those that were used.
        """
        used = {
            "max_wait_secs": self.started.max_wait_s,
            "min_active_secs": self.started.min_active_s,
            "options": self.started.options if policy == self.started.policy else {},
        }
        config = PolicyConfig(name=policy, **{**used, **settings})  # type: ignore[arg-type]
        speeds = {model: speed_of(self._served(model)) for model in self.models}
        return Setup(
            models=self.models,
            cost=self._costs(),
            server=lambda model: Sharing(speeds[model]),
            policy=partial(load_policy, config, Path.cwd()),
            max_in_flight=dict(self.started.slots),
            preserves_in_flight=self.started.freezes,
        )

    def arrivals(self) -> list[Arrival]:
        """The requests, each with the work that it was."""
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
        """The requests of one model, by its own time: it stands still while the model is frozen."""
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
        """When each model was frozen: from where it was left to where it was awake again."""
        spans: dict[str, list[tuple[float, float]]] = {model: [] for model in self.models}
        left: dict[str, float] = {}
        for switch in self.switches:
            if switch.result == "abandoned":
                continue
            if switch.source is not None and switch.source in self.started.freezes:
                left.setdefault(switch.source, switch.started)
            if switch.result == "success" and switch.target in left:
                spans[switch.target].append((left.pop(switch.target), switch.ended))
        return {model: Spans(those) for model, those in spans.items()}

    def _costs(self) -> Callable[[str | None, str], float]:
        """Mean hook times: of the pair, else of switches into the target, else of all."""
        seen: dict[object, list[float]] = defaultdict(list)
        for switch in self.switches:
            if switch.result == "success":
                for key in ((switch.source, switch.target), switch.target, None):
                    seen[key].append(switch.hooks_s)
        means = {key: mean(times) for key, times in seen.items()}
        default_s = means.get(None, 0.0)
        return lambda source, target: means.get((source, target), means.get(target, default_s))


def admitted(request: Request) -> float:
    """When a request was let in that was."""
    assert request.admitted is not None
    return request.admitted


class BadLines:
    """The lines of a file that are no entries.

    Attributes:
        count: How many.
        first: Which is the first, and what is wrong with it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first = ""

    def note(self, number: int, error: ValueError) -> None:
        """One more."""
        self.count += 1
        self.first = self.first or f"line {number}: {error}"


def load_recordings(
    paths: Iterable[Path], tell: Callable[[str], object] = lambda _remark: None
) -> dict[str, Recording]:
    """The recordings of each group in a journal's files, whichever comes first.

    Args:
        paths: The files.
        tell: Called with a line for people on each thing that will not be replayed.

    Raises:
        OSError: A file cannot be read.
        ValueError: It is no journal, or there is nothing in it to replay.
    """
    starts: list[Started] = []
    requests: list[Request] = []
    switches: list[Switch] = []
    for path in paths:
        bad = BadLines()
        for entry in read_journal(path, bad.note):
            match entry:
                case Started():
                    starts.append(entry)
                case Request():
                    requests.append(entry)
                case Switch():
                    switches.append(entry)
        if bad.count:
            tell(f"{path}: lines skipped: {bad.count}; {bad.first}")
    if not starts or not requests:
        raise ValueError("the journal says of no request, or of no start")
    starts.sort(key=lambda start: start.at)
    requests.sort(key=lambda request: request.arrived)
    switches.sort(key=lambda switch: switch.ended)
    recordings = _by_group(merged(starts), requests, switches, tell)
    if not recordings:
        raise ValueError("the journal has no request that can be replayed")
    return recordings


def _by_group(
    started: Started,
    requests: Sequence[Request],
    switches: Sequence[Switch],
    tell: Callable[[str], object],
) -> dict[str, Recording]:
    groups = started.groups
    recordings = {}
    for group in dict.fromkeys(groups.values()):
        asked = [request for request in requests if groups.get(request.model) == group]
        let_in = [request for request in asked if request.admitted is not None]
        if let_in:
            entered = [switch for switch in switches if groups.get(switch.target) == group]
            recordings[group] = Recording(started, let_in, len(asked) - len(let_in), entered)
        elif asked:
            tell(f"group {group}: requests skipped: {len(asked)}; none was let in")
    unknown = [request.model for request in requests if request.model not in groups]
    if unknown:
        names = ", ".join(sorted(set(unknown)))
        tell(f"requests skipped: {len(unknown)}; no start in the journal names {names}")
    return recordings


def merged(starts: Sequence[Started]) -> Started:
    """The last start, with the models of all: each as the last that names it says."""
    by_model = {model: start for start in starts for model in start.groups}
    return replace(
        starts[-1],
        groups={model: start.groups[model] for model, start in by_model.items()},
        slots={m: start.slots[m] for m, start in by_model.items() if m in start.slots},
        freezes=[model for model, start in by_model.items() if model in start.freezes],
        drains=all(start.drains for start in starts),
    )


class Served(NamedTuple):
    """When a request began and ended, by its model's own time, and how many there were then."""

    begun: float
    ended: float
    company: int


def speed_of(requests: Iterable[Served]) -> Speed:
    """How fast a backend has been with n requests at once; never faster with more."""
    latencies = Latencies()
    for request in requests:
        latencies.note(request.company, max(0.0, request.ended - request.begun))

    @cache
    def latency_s(count: int) -> float:
        here = latencies.estimate(count) or 1e-6
        return here if count <= 1 else max(here, latency_s(count - 1))

    return lambda count: latency_s(1) / latency_s(count)


def works(requests: Sequence[Served], speed: Speed) -> list[float]:
    """What each request of one model needed: its progress while it was in flight."""
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
