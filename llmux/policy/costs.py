"""What switches cost: a moving average of hook time for each pair of models."""

from __future__ import annotations

from collections.abc import Mapping

SMOOTHING = 0.3
"""Weight of the newest observation (as in the original llmux's cost tracker)."""


class SwitchCosts:
    """Exponential moving averages of switch costs, in seconds of hook time.

    A cost is that of the sleep hook of `source` plus the wake hook of `target`; how long the
    requests in flight took to drain is not part of it. Cold starts (nothing was awake) are pairs of
    their own, with `source` None. Only successful switches are recorded.
    """

    def __init__(self) -> None:
        self._into: dict[str, dict[str | None, float]] = {}  # by target, then source
        # Kept, since policies ask again and again: a switch adds up a few numbers, a decision none.
        self._means: dict[str, float] = {}  # of each target's
        self._mean = 0.0  # of all

    def __repr__(self) -> str:
        return f"<SwitchCosts {self._into!r}>"

    def record(self, source: str | None, target: str, seconds: float) -> float:
        """Take in one successful switch; returns the new estimate, exact for the first."""
        into = self._into.setdefault(target, {})
        known = into.get(source, seconds)
        into[source] = known + SMOOTHING * (seconds - known)
        self._means[target] = _mean(into)
        self._add_up()
        return into[source]

    def forget(self, model: str) -> None:
        """Have never seen a switch from or to the model."""
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
        """Seconds of hook time that this switch is expected to take; None if never seen."""
        return self._into.get(target, {}).get(source)

    def estimates_from(self, source: str | None) -> Mapping[str, float]:
        """Every known estimate for a switch away from `source`, by target."""
        return {target: into[source] for target, into in self._into.items() if source in into}

    def typical(self, target: str) -> float:
        """The mean of what is known of switches into `target`, or else of all; 0 if nothing is."""
        return self._means.get(target, self._mean)


def _mean(costs: Mapping[str | None, float]) -> float:
    return sum(costs.values()) / len(costs)
