"""Choose among hosts: a pure, synchronous function of their outlooks.

Hosts are ranked by the time until they would have served the request, and by what serving it there
would cost others:

    wait        as the host expects it, its policy's own stay included; corrected by what this
                chooser has sent there since
    latency     from the request's admission to its end, as usual there
    harm        of putting other models to sleep for it, or of keeping others waiting

docs/inside/fleet-study.md says what each part is worth.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from llmux.base.wildcards import Names
from llmux.observe.schemas.outlook import ModelOutlook, Outlook

STALE_S = 3.0
"""Age from which an outlook counts less."""

USELESS_S = 10.0
"""Age from which an outlook does not count at all."""

UNMEASURED_S = 1.0
"""Hook time of a switch while none has been measured anywhere."""

COPY_SHARE = 0.1
"""What a switch costs that puts no model to sleep, as a share of its hook time: so that a model is
not woken at two hosts that are alike."""


@dataclass(frozen=True, kw_only=True)
class HostView:
    """A host, as a chooser knows it.

    Attributes:
        endpoint: Its address, as the proxy in front knows it: `10.0.0.1:3000`.
        outlook: What it said last; None: nothing yet.
        seen_at: When that came, in seconds of the chooser's clock.
        sent: Requests that this chooser has sent there since then, by model.
        names: Its models by all their names; None: by those of the outlook, without patterns.
    """

    endpoint: str
    outlook: Outlook | None
    seen_at: float = -math.inf
    sent: Mapping[str, int] = field(default_factory=dict)
    names: Names | None = None

    def own_name(self, name: str) -> str | None:
        """Return the model that a name means there: at each host it may be another one."""
        if self.names is not None:
            return self.names.find(name)
        models = {} if self.outlook is None else self.outlook.models
        if name in models:
            return name
        return next((own for own, model in models.items() if name in model.aliases), None)

    def model(self, name: str) -> ModelOutlook | None:
        """Return the outlook of a model by any of its names; None: it is not known there."""
        own = self.own_name(name)
        return None if self.outlook is None or own is None else self.outlook.models.get(own)

    def sent_to(self, name: str) -> int:
        """Return the requests that were sent to a model, by any of its names."""
        return self.sent.get(self.own_name(name) or name, 0)


def choose(
    hosts: Sequence[HostView],
    model: str,
    *,
    now: float,
    only: Collection[str] | None = None,
    tied_by: str | None = None,
) -> list[str]:
    """Return the endpoints that may serve a request for a model, best first.

    A host that refuses, or that does not have the model, is left out. Hosts without a view, or with
    one older than `USELESS_S`, come last, in an order that depends on the model alone: a chooser
    that has heard nothing yet sends each model to a home of its own.

    Args:
        hosts: All hosts.
        model: The name that the request has.
        now: The time, in seconds of the clock of `HostView.seen_at`.
        only: The endpoints to choose among; None: all.
        tied_by: What decides among hosts that are alike; None: the name. One for all names of a
            model keeps it at one host.

    Returns:
        Endpoints; empty if no host would serve it.
    """
    tied_by = tied_by or model
    allowed = [host for host in hosts if only is None or host.endpoint in only]
    seen = [host for host in allowed if host.outlook and now - host.seen_at <= USELESS_S]
    # An old view still says which models there are.
    unseen = [
        host.endpoint
        for host in allowed
        if host not in seen and (host.outlook is None or host.model(model) is not None)
    ]
    usual = _Usual(seen, model)
    known = [
        _Candidate(host, model, tied_by, there, host.outlook, now - host.seen_at, usual)
        for host in seen
        if (there := host.model(model)) is not None and host.outlook is not None
        if host.outlook.state == "ready" and there.refused is None
    ]
    known.sort(key=_Candidate.rank)
    return [each.host.endpoint for each in known] + sorted(
        unseen, key=lambda e: affinity(tied_by, e)
    )


def affinity(model: str, endpoint: str) -> int:
    """Return a number that orders hosts differently for each model (rendezvous hashing)."""
    digest = hashlib.blake2b(f"{model}\0{endpoint}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class _Usual:
    """Values for hosts that have not measured their own, and sums over all hosts.

    Attributes:
        cost_s: Hook time of a switch.
        latency_s: Latency of the model.
        rate: Arrivals of requests for the model at all hosts, per second.
    """

    def __init__(self, hosts: Sequence[HostView], model: str) -> None:
        theirs = [there for host in hosts if (there := host.model(model)) is not None]
        everything = [each for h in hosts if h.outlook for each in h.outlook.models.values()]
        own = [each.cost_secs for each in theirs if each.cost_secs]
        others = [each.cost_secs for each in everything if each.cost_secs]
        self.cost_s = max(own or others or [UNMEASURED_S])
        latencies = [each.latency_secs for each in theirs if each.latency_secs is not None]
        self.latency_s = min(latencies, default=0.0)
        self.rate = sum(each.arrivals_per_sec for each in theirs)


@dataclass(frozen=True)
class _Candidate:
    """A host that would serve the request.

    Attributes:
        host: The host.
        name: The model, as the request names it.
        tied_by: See `choose`.
        there: The model there.
        outlook: The host's outlook.
        age_s: Its age, in seconds.
        usual: What to assume where nothing is measured.
    """

    host: HostView
    name: str
    tied_by: str
    there: ModelOutlook
    outlook: Outlook
    age_s: float
    usual: _Usual

    def rank(self) -> tuple[float, bool, int, int]:
        """Return what hosts are sorted by: smaller is better."""
        there = self.there
        total_s = self._wait_s() + self._latency_s + self._harm_s()
        at_work = there.running + there.waiting + self._sent
        tie = affinity(self.tied_by, self.host.endpoint)
        return round(total_s, 6), not (there.awake or self._is_wanted), at_work, tie

    @property
    def _sent(self) -> int:
        return self.host.sent_to(self.name)

    @property
    def _is_wanted(self) -> bool:
        """True if a switch to the model is under way, or will be."""
        return bool(self.there.waiting or self._sent)

    @property
    def _latency_s(self) -> float:
        measured = self.there.latency_secs
        return self.usual.latency_s if measured is None else measured

    # ---- Wait ----

    def _wait_s(self) -> float:
        there, usual_s = self.there, self.usual.cost_s
        wait_s = usual_s if there.wait_secs is None else there.wait_secs
        if there.cost_secs is None and not self._is_wanted:
            wait_s = max(wait_s, usual_s)  # a host takes what it has not measured for nothing
        if self.age_s > STALE_S:
            trust = max(0.0, (USELESS_S - self.age_s) / (USELESS_S - STALE_S))
            wait_s = trust * wait_s + (1 - trust) * usual_s
        return wait_s + self._queued_since_s() + self._switches_since_s()

    def _queued_since_s(self) -> float:
        """Return how much longer the wait is for what was sent to the model since the view."""
        slots = self.there.max_in_flight
        if slots is None or not self._sent:
            return 0.0
        ahead = self.there.waiting + (self.there.running if self.there.awake else 0)

        def queued_s(count: int) -> float:
            return max(0, count + 1 - slots) / slots * self._latency_s

        return queued_s(ahead + self._sent) - queued_s(ahead)

    def _switches_since_s(self) -> float:
        """Return the switches that requests for other models have caused since the view."""
        if self.there.awake or self._is_wanted:
            return 0.0
        others = (self.host.model(name) for name, sent in self.host.sent.items() if sent)
        return sum(
            self.usual.cost_s if other.cost_secs is None else other.cost_secs
            for other in others
            if other is not None and not other.awake and not other.waiting
        )

    # ---- Harm ----

    def _harm_s(self) -> float:
        """Return what others lose for each request for this model that is served here."""
        if self.there.awake:
            return self._delay_s()
        return 0.0 if self._is_wanted else self._eviction_s()

    def _others(self) -> Sequence[tuple[ModelOutlook, int]]:
        """The other models here, with the requests sent to each since the view."""
        sent = self.host.sent
        models = self.outlook.models.items()
        return [(each, sent.get(name, 0)) for name, each in models if each is not self.there]

    def _delay_s(self) -> float:
        """Return the longer wait of requests that wait for this model to leave.

        One more request lengthens the drain by its share of a batch, as in `adaptive`.
        """
        waiting = sum(each.waiting + sent for each, sent in self._others() if not each.awake)
        return waiting * self._latency_s / (self.there.running + self._sent + 1)

    def _eviction_s(self) -> float:
        """Return what a switch to this model costs the users of those that may have to leave.

        The first of their requests waits for the switch back, and all others that come meanwhile
        wait for half of the absence, on average. The requests for this model that come during the
        switch share that.
        """
        usual_s = self.usual.cost_s
        away_s = 2 * usual_s + self._latency_s
        lost_s = COPY_SHARE * usual_s + sum(
            usual_s + each.arrivals_per_sec * away_s**2 / 2
            for each, sent in self._others()
            if each.awake or each.waiting or sent
        )
        return lost_s / max(1.0, self.usual.rate * usual_s)
