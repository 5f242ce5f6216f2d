"""Estimates of costs, drains, absences, rates and latencies, measured in operation."""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Mapping
from types import MappingProxyType

from llmux.policy.costs import SMOOTHING, SwitchCosts
from llmux.policy.latencies import Latencies, Served
from llmux.policy.removed import with_removed_names

NOTICED = 4.0
"""Upper limit of an absence, in multiples of the wait of the first request in line. Without it, a
night without requests would count as a very long absence. In simulation, 1 and 2 are worse."""

ARRIVALS = 16
"""Number of recent arrivals that a rate covers."""

DRAINS = 16
"""Number of recent drains of a group that are kept. In simulation, 4 and 8 are worse, and 64 is no
better."""

DRAIN_MARGIN = 2.0
"""Safety factor on the average drain of the same number of requests. In simulation, 1 and 1.5 break
the bound, and always expecting the longest drain makes waits longer under overload."""

NOTHING: Mapping[str, float] = MappingProxyType({})


class Rate:
    """The rate of an event, from its most recent times."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=ARRIVALS)

    def copy(self) -> Rate:
        copied = Rate()
        copied._times = self._times.copy()
        return copied

    def note(self, now: float) -> None:
        self._times.append(now)

    def per_second(self, now: float) -> float:
        """Return the present rate; it falls while nothing happens, and is 0 before two events."""
        if len(self._times) < 2:
            return 0.0
        return len(self._times) / max(now - self._times[0], 1e-9)


class _Measurements:
    """The numbers that `Measures` writes and `Estimates` reads, by model name."""

    def __init__(self) -> None:
        self.costs = SwitchCosts()
        self.sleeps_s: dict[str, float] = {}
        self.wakes_s: dict[str, float] = {}
        self.starts_s: dict[str, float] = {}  # wakes after a stop
        self.drains_s: dict[str, float] = {}
        self.last_drains_s: deque[float] = deque(maxlen=DRAINS)
        self.drains = defaultdict[str, Latencies](Latencies)
        self.absences_s: dict[str, float] = {}
        self.line_first: dict[str, tuple[float, int]] = {}  # seconds, number of requests
        self.closed_at: dict[str, float] = {}
        self.rates: dict[str, Rate] = {}
        self.latencies = defaultdict[str, Latencies](Latencies)
        self.served: dict[str, Served] = {}

    def __repr__(self) -> str:
        return repr(vars(self))

    def copy(self) -> _Measurements:
        copied = _Measurements()
        for name, value in vars(self).items():
            setattr(copied, name, copy.copy(value))
        copied.costs = self.costs.copy()
        for kept, mine in ((copied.drains, self.drains), (copied.latencies, self.latencies)):
            kept.update((model, each.copy()) for model, each in mine.items())
        copied.rates = {model: rate.copy() for model, rate in self.rates.items()}
        copied.served = {model: each.copy() for model, each in self.served.items()}
        return copied


NOTES = (
    "forget",
    "note_arrival",
    "note_closed",
    "note_drained",
    "note_line_first",
    "note_open",
    "note_reopened",
    "note_served",
    "note_switched",
)
REMOVED = {
    "costs": "use cost_s(), known_cost_s() or typical_cost_s()",
    **dict.fromkeys(NOTES, "a policy only reads estimates; llmux itself measures"),
}
"""Names from older versions of llmux, and what to use instead."""


@with_removed_names(REMOVED)
class Estimates:
    """Read-only estimates for one group of models.

    Durations are in seconds.
    """

    def __init__(self, known: _Measurements) -> None:
        self._known = known

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._known.costs!r}>"

    def cost_s(self, source: str | None, target: str) -> float:
        """Return the hook time of a switch; of an unseen one, the typical cost of its target.

        That is 0 while nothing is known, so that every switch is tried.
        """
        return self._known.costs.expected(source, target)

    def known_cost_s(self, source: str | None, target: str) -> float | None:
        """Return the hook time of a switch; None if unseen."""
        return self._known.costs.estimate(source, target)

    def typical_cost_s(self, target: str) -> float:
        """Return the mean hook time of switches to a model, else of all switches, else 0."""
        return self._known.costs.typical(target)

    def sleep_s(self, model: str) -> float | None:
        """Return the hook time of putting the model to sleep, `verify_asleep` included, or None."""
        return self._known.sleeps_s.get(model)

    def wake_s(self, model: str) -> float | None:
        """Return the hook time of waking the model, up to its first sign of life, or None."""
        return self._known.wakes_s.get(model)

    def usual_wake_s(self, model: str, *, is_stopped: bool = False) -> float:
        """Return the time of waking the model; the mean of the others if unknown, else 0.

        Args:
            model: The model.
            is_stopped: True if it was stopped since its sleep (`stop`), and so takes longer.
        """
        if is_stopped and model in self._known.starts_s:
            return self._known.starts_s[model]
        return _usual(self._known.wakes_s, model)

    def usual_sleep_s(self, model: str) -> float:
        """Return the time of putting the model to sleep; the mean of the others, else 0."""
        return _usual(self._known.sleeps_s, model)

    def drain_s(self, model: str) -> float:
        """Return the average drain of the model; 0 while unknown."""
        return self._known.drains_s.get(model, 0.0)

    def longest_drain_s(self) -> float:
        """Return the longest of the group's recent drains; 0 while there was none."""
        return max(self._known.last_drains_s, default=0.0)

    def drain_ahead_s(self, model: str, in_flight: int) -> float:
        """Return a pessimistic estimate of a drain of `in_flight` requests.

        The longest recent drain of the group is its upper limit, and stands for unknown ones.
        """
        if not in_flight:
            return 0.0
        drains = self._known.drains.get(model)
        usual_s = drains.extrapolate(in_flight) if drains else None
        longest_s = self.longest_drain_s()
        return longest_s if usual_s is None else min(longest_s, DRAIN_MARGIN * usual_s)

    def absence_s(self, model: str) -> float | None:
        """Return how long the model usually stays away after it closes; None while unknown."""
        return self._known.absences_s.get(model)

    def arrivals_per_s(self, model: str, now: float) -> float:
        """Return the rate at which requests for the model arrive."""
        rate = self._known.rates.get(model)
        return rate.per_second(now) if rate else 0.0

    def latency_s(self, model: str, in_flight: int) -> float | None:
        """Return the latency of a request that raises the number to `in_flight`, or None."""
        latencies = self._known.latencies.get(model)
        return latencies.estimate(in_flight) if latencies else None


class Measures(Estimates):
    """Records the measurements of one group of models."""

    def __init__(self) -> None:
        super().__init__(_Measurements())

    def copy(self) -> Measures:
        """Return measurements that start as these, and go their own way."""
        copied = Measures()
        copied._known = self._known.copy()
        return copied

    @property
    def costs(self) -> SwitchCosts:
        """Hook times of the switches seen, by pair."""
        return self._known.costs

    @property
    def estimates(self) -> Estimates:
        """A read-only view, for policies."""
        return Estimates(self._known)

    def knows_wake(self, model: str) -> bool:
        """Return whether a wake of the model was ever measured."""
        return model in self._known.wakes_s or self.costs.knows(model)

    def note_switched(
        self,
        source: str | None,
        target: str,
        hooks_s: float,
        *,
        sleeps_s: Mapping[str, float] = NOTHING,
        wake_s: float | None = None,
        was_stopped: bool = False,
    ) -> float:
        """Record a successful switch and return the new estimate of its cost.

        Args:
            source: The model that was active; None if nothing was awake.
            target: The model that was woken.
            hooks_s: Total hook time, in seconds.
            sleeps_s: Its part for each model put to sleep, in seconds.
            wake_s: Its part for the wake, in seconds; None if not measured separately.
            was_stopped: True if the target had been stopped since its sleep.
        """
        for model, seconds in sleeps_s.items():
            _smooth(self._known.sleeps_s, model, seconds)
        if wake_s is not None:
            self.note_woken(target, wake_s, was_stopped=was_stopped)
        return self.costs.record(source, target, hooks_s)

    def note_slept(self, model: str, seconds: float) -> None:
        """Record how long it took to put the model to sleep."""
        _smooth(self._known.sleeps_s, model, seconds)

    def note_woken(self, model: str, seconds: float, *, was_stopped: bool = False) -> None:
        """Record how long it took to wake the model."""
        if was_stopped:
            _smooth(self._known.starts_s, model, seconds)
        if not was_stopped or model not in self._known.wakes_s:
            _smooth(self._known.wakes_s, model, seconds)

    def note_arrival(self, model: str, now: float) -> None:
        """Record the arrival of a request that was not refused."""
        rates = self._known.rates
        rate = rates.get(model)
        if rate is None:
            rate = rates[model] = Rate()
        rate.note(now)

    def note_line_first(self, model: str, seconds: float, in_flight: int) -> None:
        """Record, as the model closes, how long it took to admit its own line first.

        Args:
            model: The model.
            seconds: Duration since the switch was decided.
            in_flight: Number of requests to drain, those in line included.
        """
        self._known.line_first[model] = seconds, in_flight

    def note_closed(self, model: str, now: float) -> None:
        """Record that the model stopped admitting requests."""
        line_s, _ = self._known.line_first.get(model, (0.0, 0))
        self._known.closed_at[model] = now - line_s

    def note_reopened(self, model: str) -> None:
        """Record that the switch away from the model was abandoned: it was not absent."""
        self._known.closed_at.pop(model, None)
        self._known.line_first.pop(model, None)

    def note_open(self, model: str, now: float, wanted_since: float | None) -> None:
        """Record that the model admits requests again.

        Args:
            model: The model.
            now: The time.
            wanted_since: Arrival time of the oldest request that needs it, or None. An absence that
                nobody noticed is not recorded, and one noticed late counts as shorter.
        """
        self._known.line_first.pop(model, None)
        closed_at = self._known.closed_at.pop(model, None)
        if closed_at is not None and wanted_since is not None:
            noticed_s = NOTICED * (now - wanted_since)
            _smooth(self._known.absences_s, model, min(now - closed_at, noticed_s))

    def note_drained(self, model: str, in_flight: int, seconds: float) -> float:
        """Record the drain of the requests that were in flight when the model closed.

        Returns:
            Its total duration in seconds, including the time to admit the model's own line first.
        """
        line_s, in_all = self._known.line_first.pop(model, (0.0, 0))
        in_flight, seconds = max(in_flight, in_all), seconds + line_s
        _smooth(self._known.drains_s, model, seconds)
        self._known.last_drains_s.append(seconds)
        self._known.drains[model].note(in_flight, seconds)
        return seconds

    def note_served(self, model: str, in_flight: int, seconds: float) -> None:
        """Record the latency of a request that raised the number in flight to `in_flight`."""
        known = self._known
        known.latencies[model].note(in_flight, seconds)
        served = known.served.get(model)
        if served is None:
            served = known.served[model] = Served()
        served.note(in_flight, seconds)

    def served(self, model: str) -> Served:
        """Return how long the model's requests take, for forecasts."""
        return self._known.served.get(model) or Served()

    def forget(self, model: str) -> None:
        """Drop everything about a removed model."""
        known = self._known
        known.costs.forget(model)
        for by_model in (
            known.sleeps_s,
            known.wakes_s,
            known.starts_s,
            known.drains_s,
            known.drains,
            known.absences_s,
            known.line_first,
            known.closed_at,
            known.rates,
            known.latencies,
            known.served,
        ):
            by_model.pop(model, None)


def _smooth(averages: dict[str, float], model: str, value: float) -> None:
    known = averages.get(model, value)
    averages[model] = known + SMOOTHING * (value - known)


def _usual(seconds: Mapping[str, float], model: str) -> float:
    return seconds[model] if model in seconds else sum(seconds.values()) / max(1, len(seconds))
