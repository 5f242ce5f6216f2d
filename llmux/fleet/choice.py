"""Choose among hosts: a pure, synchronous function of their outlooks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmux.observe.schemas.outlook import ModelOutlook, Outlook

STALE_S = 3.0
"""Age from which an outlook counts less."""

USELESS_S = 10.0
"""Age from which an outlook does not count at all."""


@dataclass(frozen=True, kw_only=True)
class HostView:
    """What a chooser knows of a host.

    Attributes:
        endpoint: Its address, as the proxy in front knows it: `10.0.0.1:3000`.
        outlook: What it said last; None: nothing yet.
        seen_at: When that came, in seconds of the chooser's clock.
        sent: Requests that this chooser has sent there since then, by model.
    """

    endpoint: str
    outlook: Outlook | None
    seen_at: float = -math.inf
    sent: Mapping[str, int] = field(default_factory=dict)

    def model(self, name: str) -> ModelOutlook | None:
        """Return the outlook of a model by its name or an alias; None: it is not known there."""
        if self.outlook is None:
            return None
        if (found := self.outlook.models.get(name)) is not None:
            return found
        models = self.outlook.models.values()
        return next((each for each in models if name in each.aliases), None)


def choose(hosts: Sequence[HostView], model: str, *, now: float) -> list[str]:
    """Return the endpoints that may serve a request for a model, best first.

    Args:
        hosts: All hosts.
        model: The name that the request has.
        now: The time, in seconds of the clock of `HostView.seen_at`.

    Returns:
        Endpoints; empty if no host would serve it.
    """
    ranked: list[tuple[float, str]] = []
    for host in hosts:
        there = host.model(model)
        if host.outlook is None or there is None or now - host.seen_at > USELESS_S:
            continue
        if host.outlook.state == "ready" and there.refused is None:
            ranked.append((there.wait_secs or 0.0, host.endpoint))
    return [endpoint for _, endpoint in sorted(ranked)]
