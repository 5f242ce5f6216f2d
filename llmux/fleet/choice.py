"""Choose among hosts: a pure, synchronous function of their outlooks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
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


def choose(
    hosts: Sequence[HostView], model: str, *, now: float, only: Collection[str] | None = None
) -> list[str]:
    """Return the endpoints that may serve a request for a model, best first.

    First come the hosts with a view, by the time until they have served it: the wait that they
    expect, corrected by what this chooser has sent there since, and the usual latency. A host
    that refuses, or does not have the model, is left out. Hosts without a view, or with one that is
    older than `USELESS_S`, come last, in an order that depends on the model alone: so a chooser
    that has heard nothing yet sends each model to a home of its own.

    Args:
        hosts: All hosts.
        model: The name that the request has.
        now: The time, in seconds of the clock of `HostView.seen_at`.
        only: The endpoints to choose among; None: all.

    Returns:
        Endpoints; empty if no host would serve it.
    """
    known: list[_Candidate] = []
    unknown: list[str] = []
    for host in hosts:
        if only is not None and host.endpoint not in only:
            continue
        if host.outlook is None or now - host.seen_at > USELESS_S:
            if host.outlook is None or host.model(model) is not None:
                unknown.append(host.endpoint)
        elif (there := host.model(model)) and host.outlook.state == "ready" and not there.refused:
            known.append(_Candidate(host, model, there, now - host.seen_at))
    usual_s = max((c.there.cost_secs or 0.0 for c in known), default=0.0)
    latencies = [c.there.latency_secs for c in known if c.there.latency_secs is not None]
    latency_s = min(latencies, default=0.0)
    known.sort(key=lambda each: each.rank(usual_s, latency_s))
    unknown.sort(key=lambda endpoint: affinity(model, endpoint))
    return [each.host.endpoint for each in known] + unknown


def affinity(model: str, endpoint: str) -> int:
    """Return a number that orders hosts differently for each model (rendezvous hashing)."""
    digest = hashlib.blake2b(f"{model}\0{endpoint}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@dataclass(frozen=True)
class _Candidate:
    """A host that would serve the request.

    Attributes:
        host: The host.
        name: The model, as the request names it.
        there: The model there.
        age_s: Age of the host's view, in seconds.
    """

    host: HostView
    name: str
    there: ModelOutlook
    age_s: float

    def rank(self, usual_s: float, latency_s: float) -> tuple[float, float, int, int]:
        """Return what hosts are sorted by: smaller is better.

        Args:
            usual_s: The wait to assume where none is known.
            latency_s: The latency to assume where none is known.
        """
        there = self.there
        if there.latency_secs is not None:
            latency_s = there.latency_secs
        wait_s = usual_s if there.wait_secs is None else there.wait_secs
        if self.age_s > STALE_S:
            trust = max(0.0, (USELESS_S - self.age_s) / (USELESS_S - STALE_S))
            wait_s = trust * wait_s + (1 - trust) * usual_s
        wait_s += self._queued_since_s(latency_s) + self._switches_since_s()
        total_s = wait_s + latency_s
        at_work = there.running + there.waiting + self._sent_of(self.name)
        return (total_s, at_work, -there.awake, affinity(self.name, self.host.endpoint))

    def _sent_of(self, name: str) -> int:
        return self.host.sent.get(name, 0)

    def _queued_since_s(self, latency_s: float) -> float:
        """Return how much longer the wait is for what was sent to the model since the view."""
        slots, sent = self.there.max_in_flight, self._sent_of(self.name)
        if slots is None or not sent:
            return 0.0
        ahead = self.there.waiting + (self.there.running if self.there.awake else 0)

        def queued_s(count: int) -> float:
            return max(0, count + 1 - slots) / slots * latency_s

        return queued_s(ahead + sent) - queued_s(ahead)

    def _switches_since_s(self) -> float:
        """Return the switches that requests for other models have caused since the view."""
        if self.there.awake or self._sent_of(self.name):
            return 0.0
        others = [self.host.model(name) for name, sent in self.host.sent.items() if sent]
        return sum(o.cost_secs or 0.0 for o in others if o is not None and not o.awake)
