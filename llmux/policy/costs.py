"""Switch costs: a moving average of hook time for each pair of models."""

from __future__ import annotations

from collections.abc import Mapping

SMOOTHING = 0.3
"""Weight of the newest observation, as in the cost tracker of the original llmux."""

# Shared by all lookups: a decision makes dozens, and an empty dict for each would cost time.
NO_COSTS: Mapping[str | None, float] = {}


class SwitchCosts:
    """Exponential moving averages of switch costs, in seconds of hook time.

    A cost is the time of the sleep hook of `source` plus that of the wake hook of `target`, without
    the drain. Cold starts (nothing was awake) are pairs with `source` None. Only successful
    switches are recorded.
    """

    def __init__(self) -> None:
        self._into: dict[str, dict[str | None, float]] = {}  # by target, then source
        # Updated with each switch, since decisions are far more frequent and read them often.
        self._means: dict[str, float] = {}  # by target
        self._mean = 0.0  # of all pairs

    def __repr__(self) -> str:
        return f"<SwitchCosts {self._into!r}>"

    def copy(self) -> SwitchCosts:
        copied = SwitchCosts()
        copied._into = {target: into.copy() for target, into in self._into.items()}
        copied._means, copied._mean = self._means.copy(), self._mean
        return copied

    def record(self, source: str | None, target: str, seconds: float) -> float:
        """Record a successful switch and return the new estimate; the first is taken as it is."""
        into = self._into.setdefault(target, {})
        known = into.get(source, seconds)
        into[source] = known + SMOOTHING * (seconds - known)
        self._means[target] = _mean(into)
        self._add_up()
        return into[source]

    def forget(self, model: str) -> None:
        """Drop every switch from or to the model."""
        for into in self._into.values():
            into.pop(model, None)
        self._into.pop(model, None)
        self._into = {target: into for target, into in self._into.items() if into}
        self._means = {target: _mean(into) for target, into in self._into.items()}
        self._add_up()

    def _add_up(self) -> None:
        total = sum(self._means[target] * len(into) for target, into in self._into.items())
        self._mean = total / max(1, sum(map(len, self._into.values())))

    def estimate(self, source: str | None, target: str) -> float | None:
        """Return the average hook time of this switch in seconds; None if never seen."""
        return self._into.get(target, NO_COSTS).get(source)

    def expected(self, source: str | None, target: str) -> float:
        """Return the average hook time of this switch in seconds, or the typical one if unseen."""
        known = self._into.get(target, NO_COSTS).get(source)
        return self.typical(target) if known is None else known

    def estimates_from(self, source: str | None) -> Mapping[str, float]:
        """Return the known estimates of switches away from `source`, by target."""
        return {target: into[source] for target, into in self._into.items() if source in into}

    def knows(self, target: str) -> bool:
        """Return whether a switch to `target` was seen, from whatever source."""
        return target in self._means

    def typical(self, target: str) -> float:
        """Return the mean estimate of switches to `target`, else of all switches, else 0."""
        return self._means.get(target, self._mean)


def _mean(costs: Mapping[str | None, float]) -> float:
    return sum(costs.values()) / len(costs)
