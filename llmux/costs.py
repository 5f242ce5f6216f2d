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
        self._by_pair: dict[tuple[str | None, str], float] = {}

    def __repr__(self) -> str:
        return f"<SwitchCosts {self._by_pair!r}>"

    def record(self, source: str | None, target: str, seconds: float) -> float:
        """Take in one successful switch; returns the new estimate, exact for the first."""
        known = self._by_pair.get((source, target), seconds)
        estimate = known + SMOOTHING * (seconds - known)
        self._by_pair[source, target] = estimate
        return estimate

    def estimate(self, source: str | None, target: str) -> float | None:
        """Seconds of hook time that this switch is expected to take; None if never seen."""
        return self._by_pair.get((source, target))

    def estimates_from(self, source: str | None) -> Mapping[str, float]:
        """Every known estimate for a switch away from `source`, by target."""
        return {target: cost for (start, target), cost in self._by_pair.items() if start == source}

    def typical(self, target: str) -> float:
        """The mean of what is known of switches into `target`, or else of all; 0 if nothing is."""
        into = [cost for (_, end), cost in self._by_pair.items() if end == target]
        known = into or list(self._by_pair.values())
        return sum(known) / len(known) if known else 0.0
