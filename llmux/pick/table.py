"""What the picker knows of each host: a table that subscriptions write and picks read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from llmux.base.wildcards import Names
from llmux.fleet.choice import USELESS_S, HostView
from llmux.observe.schemas.outlook import Outlook


@dataclass(frozen=True, order=True)
class Address:
    """Where a host is.

    Attributes:
        endpoint: Its address as Envoy knows it: `10.0.0.1:3000`.
        control: URL of its control API.
        name: The host's name in the certificate that the control API must show; empty: as in URL.
    """

    endpoint: str
    control: str
    name: str = ""


@dataclass
class Host:
    """A host.

    Attributes:
        address: Where it is.
        outlook: What it said last; None: nothing yet.
        seen_at: When that came (the picker's clock); minus infinity once its stream has broken.
        sent: Requests that were sent there since then, by the name that the model has there.
        trouble: Why it cannot be heard; empty: it can.
    """

    address: Address
    outlook: Outlook | None = None
    seen_at: float = -math.inf
    sent: Counter[str] = field(default_factory=Counter)
    trouble: str = "not heard yet"
    _names: Names | None = None

    @property
    def names(self) -> Names:
        """Each name that it knows, with its model's name there."""
        if self._names is None:
            self._names = _all_names([self.outlook])
        return self._names

    def hear(self, outlook: Outlook, now: float) -> bool:
        """Note what it has said; returns whether its names are others now."""
        is_new = self.outlook is None or _names_of(self.outlook) != _names_of(outlook)
        if is_new:
            self._names = None
        self.outlook, self.seen_at, self.trouble = outlook, now, ""
        self.sent.clear()
        return is_new

    @property
    def view(self) -> HostView:
        """What the choice is told."""
        return HostView(
            endpoint=self.address.endpoint,
            outlook=self.outlook,
            seen_at=self.seen_at,
            sent=self.sent,
            names=self.names,
        )

    def is_fresh(self, now: float) -> bool:
        """Return whether its outlook still counts."""
        return self.outlook is not None and now - self.seen_at <= USELESS_S


class Table:
    """All hosts, by endpoint."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self._names: Names | None = None

    def __repr__(self) -> str:
        heard = sum(not host.trouble for host in self.hosts.values())
        return f"<Table {heard} of {len(self.hosts)} hosts heard>"

    def __iter__(self) -> Iterator[Host]:
        return iter(self.hosts.values())

    def keep(self, addresses: Iterable[Address]) -> tuple[list[Host], list[Host]]:
        """Have these hosts and no others; return those that are new, and those that are gone."""
        wanted = {address.endpoint: address for address in addresses}
        gone = [host for host in self if wanted.get(host.address.endpoint) != host.address]
        for host in gone:
            del self.hosts[host.address.endpoint]
        new = [Host(address) for key, address in wanted.items() if key not in self.hosts]
        self.hosts.update((host.address.endpoint, host) for host in new)
        self._names = None
        return new, gone

    def note_heard(self, host: Host, outlook: Outlook, now: float) -> None:
        """Note what a host has said."""
        if host.hear(outlook, now):
            self._names = None

    def note_lost(self, host: Host, why: str) -> None:
        """Note that a host is not heard any more: it may have died, so its outlook is void."""
        host.seen_at, host.trouble = -math.inf, why

    def note_sent(self, endpoint: str, model: str) -> None:
        """Note that a request goes to a host, which its next outlook will include."""
        if (host := self.hosts.get(endpoint)) is not None:
            host.sent[host.names.find(model) or model] += 1

    def views(self, only: Collection[str] | None = None) -> list[HostView]:
        """Return the views of all hosts, or of those with one of these endpoints or addresses."""
        return [host.view for host in self if only is None or _is_among(only, host)]

    def is_heard_whole(self, now: float) -> bool:
        """Return whether no host may know more models than are known here."""
        return all(host.is_fresh(now) for host in self)

    @property
    def names(self) -> Names:
        """Each name that any host knows, with its model's name at one of them."""
        if self._names is None:
            self._names = _all_names([host.outlook for host in self])
        return self._names

    @property
    def models(self) -> list[str]:
        """The models of all hosts, sorted."""
        return sorted({name for host in self for name, _ in _names_of(host.outlook)})


def _names_of(outlook: Outlook | None) -> list[tuple[str, list[str]]]:
    models = {} if outlook is None else outlook.models
    return [(name, model.aliases) for name, model in models.items()]


def _all_names(outlooks: Sequence[Outlook | None]) -> Names:
    known: dict[str, str] = {}
    for outlook in outlooks:
        for model, aliases in _names_of(outlook):
            known.update((alias, model) for alias in aliases if alias not in known)
    for outlook in outlooks:  # a model's own name wins, wherever it is
        known.update((model, model) for model, _ in _names_of(outlook))
    return Names(known)


def _is_among(only: Collection[str], host: Host) -> bool:
    endpoint = host.address.endpoint
    return endpoint in only or endpoint.rpartition(":")[0].strip("[]") in only
