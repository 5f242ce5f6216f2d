"""Estimates that no config gives: measured while the models are switched and used."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from types import MappingProxyType

from llmux.policy.costs import SMOOTHING, SwitchCosts
from llmux.policy.gone import gone

NOTICED = 4.0
"""An absence counts as at most so many times what the first in line has waited: else a night in
which nobody came would look like a very long one. Simulated, 1 and 2 are worse."""

ARRIVALS = 16
"""Over how many of the last arrivals a rate is taken."""

DRAINS = 16
"""Of how many of a group's last drains the longest is remembered. Simulated, 4 and 8 are worse, 64
is no better."""

DRAIN_MARGIN = 2.0
"""A drain is expected to take up to so many times what those of as many requests took on average.
Simulated, 1 and 1.5 are too short for the bound; always to expect the longest drain waits longer
under overload."""

LATENCY_SMOOTHING = 0.1
"""Weight of the newest latency in its bucket, once there are ten."""


NOTHING: Mapping[str, float] = MappingProxyType({})


class Latencies:
    """How long a model takes to answer, or to drain, by how many requests it has at once.

    One bucket for each power of two, with the running mean of both numbers; between buckets the
    mean latency is interpolated, beyond the last known ones it is that of the nearest.
    """

    __slots__ = ("_buckets",)

    def __init__(self) -> None:
        self._buckets: dict[int, tuple[int, float, float]] = {}  # samples, in flight, seconds

    def note(self, in_flight: int, seconds: float) -> None:
        """Take in one answer, to a request that made the number `in_flight`; or one drain."""
        bucket = in_flight.bit_length()
        samples, mean_count, mean_s = self._buckets.get(bucket, (0, 0.0, 0.0))
        weight = max(LATENCY_SMOOTHING, 1 / (samples + 1))
        mean_count += weight * (in_flight - mean_count)
        mean_s += weight * (seconds - mean_s)
        self._buckets[bucket] = (samples + 1, mean_count, mean_s)

    def estimate(self, in_flight: int) -> float | None:
        """Seconds for a request that makes the number in flight `in_flight`; None if unknown."""
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
        """As `estimate`, but beyond the last known ones in proportion to the number in flight."""
        seconds = self.estimate(in_flight)
        if seconds is None:
            return None
        _, most, _ = self._buckets[max(self._buckets)]
        return seconds * max(1.0, in_flight / most)


class Rate:
    """How often something happens, by its last few times."""

    __slots__ = ("_times",)

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=ARRIVALS)

    def note(self, now: float) -> None:
        """It has happened."""
        self._times.append(now)

    def per_second(self, now: float) -> float:
        """The rate now: it falls while nothing happens; 0 until it has happened twice."""
        if len(self._times) < 2:
            return 0.0
        return len(self._times) / max(now - self._times[0], 1e-9)


class _Known:
    """The numbers that `Measures` takes in and `Estimates` reads; of models by name."""

    def __init__(self) -> None:
        self.costs = SwitchCosts()
        self.sleeps_s: dict[str, float] = {}
        self.wakes_s: dict[str, float] = {}
        self.drains_s: dict[str, float] = {}
        self.last_drains_s: deque[float] = deque(maxlen=DRAINS)
        self.drains = defaultdict[str, Latencies](Latencies)
        self.absences_s: dict[str, float] = {}
        self.line_first: dict[str, tuple[float, int]] = {}  # seconds, and with how many requests
        self.closed_at: dict[str, float] = {}
        self.rates: dict[str, Rate] = {}
        self.latencies = defaultdict[str, Latencies](Latencies)

    def __repr__(self) -> str:
        return repr(vars(self))


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
GONE = {
    "costs": "use cost_s(), known_cost_s() or typical_cost_s()",
    **dict.fromkeys(NOTES, "a policy only reads estimates; llmux itself measures"),
}
"""Names that policies written for an older llmux use, and what to use instead."""


@gone(GONE)
class Estimates:
    """Read-only estimates for one group of models, from measurements."""

    def __init__(self, known: _Known) -> None:
        self._known = known

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._known.costs!r}>"

    def cost_s(self, source: str | None, target: str) -> float:
        """Hook time of a switch; where unseen the mean of those into the target, or else of all.

        0 while nothing is known, so that everything is tried.
        """
        costs = self._known.costs
        known = costs.estimate(source, target)
        return costs.typical(target) if known is None else known

    def known_cost_s(self, source: str | None, target: str) -> float | None:
        """Hook time of a switch; None if there was none yet."""
        return self._known.costs.estimate(source, target)

    def typical_cost_s(self, target: str) -> float:
        """Mean hook time of the switches into a model, or else of all; 0 while there was none."""
        return self._known.costs.typical(target)

    def sleep_s(self, model: str) -> float | None:
        """Hook time of putting the model to sleep, `verify_asleep` included; None while unknown.

        No policy uses it yet, nor `wake_s`.
        """
        return self._known.sleeps_s.get(model)

    def wake_s(self, model: str) -> float | None:
        """Hook time of waking the model, up to its first sign of life; None while unknown."""
        return self._known.wakes_s.get(model)

    def drain_s(self, model: str) -> float:
        """How long the model takes to drain; 0 while unknown."""
        return self._known.drains_s.get(model, 0.0)

    def longest_drain_s(self) -> float:
        """The longest of the group's last drains; 0 while there was none."""
        return max(self._known.last_drains_s, default=0.0)

    def drain_ahead_s(self, model: str, in_flight: int) -> float:
        """How long a drain of so many requests will take, rather too much than too little.

        But no longer than the longest of late, which also stands for what is not known.
        """
        if not in_flight:
            return 0.0
        drains = self._known.drains.get(model)
        usual_s = drains.extrapolate(in_flight) if drains else None
        longest_s = self.longest_drain_s()
        return longest_s if usual_s is None else min(longest_s, DRAIN_MARGIN * usual_s)

    def absence_s(self, model: str) -> float | None:
        """How long the model is away once it closes; None while unknown."""
        return self._known.absences_s.get(model)

    def arrivals_per_s(self, model: str, now: float) -> float:
        """How many requests for the model come per second."""
        rate = self._known.rates.get(model)
        return rate.per_second(now) if rate else 0.0

    def latency_s(self, model: str, in_flight: int) -> float | None:
        """How long a request takes that makes the number in flight `in_flight`; None: unknown."""
        latencies = self._known.latencies.get(model)
        return latencies.estimate(in_flight) if latencies else None


class Measures(Estimates):
    """Takes in what is measured of one group of models."""

    def __init__(self) -> None:
        super().__init__(_Known())

    @property
    def costs(self) -> SwitchCosts:
        """Hook time of the switches seen, by pair."""
        return self._known.costs

    @property
    def estimates(self) -> Estimates:
        """The same for policies, read-only."""
        return Estimates(self._known)

    def note_switched(
        self,
        source: str | None,
        target: str,
        hooks_s: float,
        *,
        sleeps_s: Mapping[str, float] = NOTHING,
        wake_s: float | None = None,
    ) -> float:
        """A switch has succeeded; returns the new estimate of its cost.

        Args:
            source: The model that it has left; None: nothing was awake.
            target: The model that it has woken.
            hooks_s: Seconds of hook time in all.
            sleeps_s: The part of each model that it has put to sleep.
            wake_s: The part of the wake; None: not known apart.
        """
        for model, seconds in sleeps_s.items():
            _smooth(self._known.sleeps_s, model, seconds)
        if wake_s is not None:
            _smooth(self._known.wakes_s, target, wake_s)
        return self.costs.record(source, target, hooks_s)

    def note_arrival(self, model: str, now: float) -> None:
        """A request for the model has come, and was not refused."""
        rates = self._known.rates
        rate = rates.get(model)
        if rate is None:
            rate = rates[model] = Rate()
        rate.note(now)

    def note_line_first(self, model: str, seconds: float, in_flight: int) -> None:
        """Before the model closes, now: those in its line were let in first, which took so long.

        They count as in flight.
        """
        self._known.line_first[model] = seconds, in_flight

    def note_closed(self, model: str, now: float) -> None:
        """The model does not admit any more."""
        line_s, _ = self._known.line_first.get(model, (0.0, 0))
        self._known.closed_at[model] = now - line_s

    def note_reopened(self, model: str) -> None:
        """The switch away from it was abandoned: it was not absent."""
        self._known.closed_at.pop(model, None)
        self._known.line_first.pop(model, None)

    def note_open(self, model: str, now: float, wanted_since: float | None) -> None:
        """The model admits again, for those who have wanted it since then (None: nobody).

        An absence that hardly anybody noticed was not as long as the clock says.
        """
        self._known.line_first.pop(model, None)
        closed_at = self._known.closed_at.pop(model, None)
        if closed_at is not None and wanted_since is not None:
            noticed_s = NOTICED * (now - wanted_since)
            _smooth(self._known.absences_s, model, min(now - closed_at, noticed_s))

    def note_drained(self, model: str, in_flight: int, seconds: float) -> float:
        """The requests that were in flight when the model closed have taken so long.

        The time of those let in before that belongs to it; returns how long it was in all.
        """
        line_s, in_all = self._known.line_first.pop(model, (0.0, 0))
        in_flight, seconds = max(in_flight, in_all), seconds + line_s
        _smooth(self._known.drains_s, model, seconds)
        self._known.last_drains_s.append(seconds)
        self._known.drains[model].note(in_flight, seconds)
        return seconds

    def note_served(self, model: str, in_flight: int, seconds: float) -> None:
        """A request that made the number in flight `in_flight` was served."""
        self._known.latencies[model].note(in_flight, seconds)

    def forget(self, model: str) -> None:
        """The model was removed."""
        known = self._known
        known.costs.forget(model)
        for by_model in (
            known.sleeps_s,
            known.wakes_s,
            known.drains_s,
            known.drains,
            known.absences_s,
            known.line_first,
            known.closed_at,
            known.rates,
            known.latencies,
        ):
            by_model.pop(model, None)


def _smooth(averages: dict[str, float], model: str, value: float) -> None:
    known = averages.get(model, value)
    averages[model] = known + SMOOTHING * (value - known)
